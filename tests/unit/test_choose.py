"""All ranks choose the pairs that one rank would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ranks import FakeRanks
from pools import put
from toy_labelers import given

from callbacks.optune import OPTune
from choosy.data.pool import Pool
from choosy.methods.selection import PairChoice
from choosy.parallel.ranks import OneRank, Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds.choose import choose_pairs
from choosy.types import Candidates, Pair


class ByLength:
    fraction, count, direction, per_prompt, score_all = 1.0, None, "largest", None, False

    def pair_utilities(self, candidates: Sequence[Candidates], at: Any) -> list[list[float]]:
        texts = ([r.text for r in c.responses] for c in candidates)
        return [[float(len(one) - len(other)) for one, other in combinations(of, 2)] for of in texts]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_leave_out_equal_texts_and_what_is_judged(size: int) -> None:
    labeled, tied = given("q", "a", "bb", "ccc"), given("t", "dd", "e", "f")
    every = [
        given("p", "a", "a", "bb"),
        replace(labeled, pairs=(Pair(2, 0),)),
        given("r", "a", "bbbb"),
        replace(tied, undecided=((1, 2),)),
    ]

    def play(ranks: Ranks) -> PairChoice | None:
        at: Any = SimpleNamespace(phases=Phases(), number=0, seed=0, given={}, ranks=ranks, pool=Pool())
        return choose_pairs(at, shard(every, ranks), ByLength())  # type: ignore[arg-type]

    alone = play(OneRank())
    assert alone is not None
    left = {0: {(0, 2), (1, 2)}, 1: {(0, 1), (1, 2)}, 2: {(0, 1)}, 3: {(0, 1), (0, 2)}}
    assert {(n, i, j) for n, i, j, _ in alone.ranked} == {(n, *pair) for n, pairs in left.items() for pair in pairs}
    assert FakeRanks.play(size, play) == [alone] * size


def test_optune_ranks_by_no_score_that_says_nothing() -> None:
    """A question that a person has skipped is stored as the labeler's neutral score."""
    rewards = {"p": (1.0, 0.0), "q": (-1.0, 0.0), "r": (0.0, 0.0)}
    every = [given(name, "a", "bb") for name in rewards]
    scored = [
        replace(
            c, responses=tuple(replace(r, reward=x) for r, x in zip(c.responses, rewards[c.prompt.id], strict=True))
        )
        for c in every
    ]
    at: Any = SimpleNamespace(pool=put(Pool(), scored, round=0), neutral=0.0)
    assert OPTune().prompt_utilities([c.prompt for c in every], at) == [-1.0, 1.0, 0.0]
    at.neutral = None
    assert OPTune().prompt_utilities([c.prompt for c in every], at) == [-0.5, 0.5, 0.0]
