"""A pool is scored again under a reference that has moved: in pieces, in one phase, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_ranks import FakeRanks
from pools import put
from test_pool import candidates

from choosy.data.pool import Pool
from choosy.methods.losses import SigmoidLoss
from choosy.reporting.display import Phases
from choosy.rounds import score
from choosy.rounds.context import Round
from choosy.rounds.score import rescore_pool
from choosy.terminal import counted
from choosy.types import Candidates


class ByIds:
    """A policy whose reference gives each response a hundred times its first id."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked: list[str] = []

    def reference_scores(
        self, pieces: Iterable[Sequence[Candidates]], tick: Any, *, tokens: bool
    ) -> Iterator[list[Candidates]]:
        self.calls += 1
        for piece in pieces:
            self.asked += [c.prompt.id for c in piece]
            tick(len(piece))
            yield [
                replace(c, responses=tuple(replace(r, logp_ref=100.0 * r.ids[0]) for r in c.responses)) for c in piece
            ]


@pytest.mark.parametrize("piece", [2, 4096])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_each_rank_scores_its_rows_at_one_entry_of_the_weights(
    size: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "PIECE", piece)
    fresh = [candidates(f"p{n}", rewards=[None] * 3, paired=n % 3 > 0) for n in range(8)]
    pool = put(Pool(), fresh, round=0)
    paired = [c.prompt.id for c in fresh if c.pairs]

    def play(ranks: FakeRanks) -> tuple[Pool, ByIds, list[str]]:
        policy, phases, lines = ByIds(), Phases(), []
        monkeypatch.setattr(phases, "say", lines.append)
        parts: Any = (policy, None, pool, ranks, phases, SigmoidLoss(), None)
        return rescore_pool(Round(1, 0, *parts, folder=tmp_path)), policy, lines

    played = FakeRanks.play(size, play)
    for rescored, policy, lines in played:
        assert rescored.round == 0
        for now, before in zip(rescored.candidates(), pool.candidates(), strict=True):
            logps = [r.logp_ref for r in now.responses]
            assert logps[:2] == ([0.0, 100.0] if before.pairs else pytest.approx([float("nan")] * 2, nan_ok=True))
            assert logps[2:] == pytest.approx([float("nan")], nan_ok=True), "no pair has it"
        assert policy.calls == 1, "one without rows, too, enters: all ranks gather sharded weights together"
        scored = [line for line in lines if "score" in line]
        count = len(policy.asked)
        assert [line.split("  ")[1:3] for line in scored] == [["score", counted(count, "prompts")]] * (count > 0)
    assert [name for _, policy, _ in played for name in policy.asked] == paired
