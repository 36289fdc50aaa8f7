"""Edits of rejected responses, which all ranks train on and one buys."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_ranks import FakeRanks
from faulty_judge import Asked, FaultyJudge
from toy_labelers import Longer

from choosy.data.pool import Pool
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.judge.editor import Editor
from choosy.parallel.ranks import OneRank, Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds.context import Round
from choosy.rounds.edit import edit_pairs
from choosy.types import Candidates, Pair, Prompt, Response

TOKENS = SimpleNamespace(window=None, encode_response=lambda text, prompt: tuple(map(ord, text)))
LABELED = [
    Candidates(
        Prompt(f"p{n}", f"{n}?"), (Response(f"good {n}"), Response(f"bad {n}")), (9,), pairs=(Pair(0, 1, round=0),)
    )
    for n in range(5)
]


def edits(asked: Asked) -> str:
    """An editor that puts the first word of the better response before the worse one."""
    code = re.findall(r"lines that hold only (\w+)", asked.user)[-1]
    return f"{code}\n{asked.first.split()[0]} {asked.second}\n{code}"


def edited(ranks: Ranks, url: str, ledger: Path) -> list[Candidates]:
    labels = LabelBuyer(Longer(), ledger=str(ledger), editor=Editor("toy", base_url=url))
    labels.open("run")
    policy: Any = SimpleNamespace(tokens=TOKENS)
    parts: Any = (policy, None, Pool(), ranks, Phases(), None, None)
    return edit_pairs(Round(0, 0, *parts), shard(LABELED, ranks), labels)


def test_two_ranks_buy_each_edit_once_and_have_the_same(tmp_path: Path) -> None:
    """Each rank has a ledger of its own, as without a shared disk, so that no ledger can spare a second request."""
    with FaultyJudge(edits) as server:
        both = FakeRanks.play(2, lambda ranks: edited(ranks, server.url, tmp_path / f"{ranks.rank}.sqlite"))
        assert len(server.asked) == 5
        alone = edited(OneRank(), server.url, tmp_path / "one.sqlite")
        assert len(server.asked) == 10
    assert both == [alone[0::2], alone[1::2]]
    assert [c.responses[0].text for c in alone] == [f"good bad {n}" for n in range(5)]
