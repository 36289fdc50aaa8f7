"""Weights and margins from predicted reward gaps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_ranks import FakeRanks
from pools import put

from choosy.console import Terminal
from choosy.data.batches import PoolItems
from choosy.data.pool import Pool
from choosy.methods.losses import SelfRewardLoss, SigmoidLoss
from choosy.methods.reward_head import RewardHead
from choosy.methods.weighting import GapSource, RewardGap, Uniform, Weighting
from choosy.parallel.ranks import OneRank, Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds.context import PairTexts, Round, pair_texts
from choosy.rounds.weigh import weigh
from choosy.types import Candidates, Pair, Prompt, Response


class ByLength:
    """Predicts the number of letters; embeds nothing that is in no pair of round 1."""

    def __init__(self, *, cold: bool = False) -> None:
        self.cold = cold

    def head(self, at: Round) -> RewardHead | None:
        one_D = torch.ones(1, dtype=torch.float64)
        return None if self.cold else RewardHead(torch.zeros(1), 1.0, one_D, torch.zeros(1, 1))

    def differences(self, labeled: Sequence[Candidates], at: Round) -> dict[PairTexts, float] | None:
        return None if self.cold else {pair_texts(c, pair): 0.5 for c in labeled for pair in c.pairs}

    def embed(self, candidates: Sequence[Candidates], at: Round) -> list[torch.Tensor]:
        assert all(r.text != "unused" for c in candidates for r in c.responses)
        return [torch.tensor([[float(len(r.text))] for r in c.responses]) for c in candidates]


def prompt(name: str, *pairs: tuple[int, int, int]) -> Candidates:
    responses = tuple(Response(text, (1,)) for text in ("a", "aaa", "unused", "aaaa"))
    made = tuple(Pair(chosen, rejected, round=round) for chosen, rejected, round in pairs)
    return Candidates(Prompt(name, "?"), responses, (9,), 1, pairs=made)


LABELED = [
    prompt("as predicted", (3, 0, 1)),
    prompt("against it", (0, 1, 1)),
    prompt("without a pair"),
    prompt("two", (3, 1, 0), (1, 0, 1)),
]


def weighed(
    weighting: Weighting,
    *,
    ranks: Ranks | None = None,
    cold: bool = False,
    loss: Any = None,
    reward_gap: GapSource = "predicted",
    number: int = 1,
    phases: Any = None,
) -> list[Candidates]:
    loss = loss or SigmoidLoss()
    parts: Any = (None, None, Pool(), ranks or OneRank(), phases or Phases(), loss, ByLength(cold=cold))
    at = Round(number, 0, *parts)
    return weigh(at, shard(LABELED, at.ranks), weighting, reward_gap)


def weights(made: Sequence[Candidates]) -> list[float]:
    return [pair.weight for c in made for pair in c.pairs]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("sigmoid", [1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.0)), 1.0, 1 / (1 + math.exp(-1.0))]),
        ("inverse", [1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1.0)), 1.0, 1 / (1 + math.exp(1.0))]),
        ("linear", [1.5, 0.0, 1.0, 1.0]),
    ],
)
def test_verdicts_are_weighed_by_predicted_gaps(form: Any, expected: list[float]) -> None:
    """Gaps 3, -2 (against the verdict), 2 of round 1's pairs, beta2 a half; the pair of round 0 keeps its weight."""
    assert weights(weighed(RewardGap(form=form, beta2=0.5))) == pytest.approx(expected)


def test_verdicts_are_weighed_by_differences() -> None:
    assert weights(weighed(RewardGap(form="linear"), reward_gap="difference")) == [0.5, 0.5, 1.0, 0.5]
    assert weights(weighed(RewardGap(form="linear"), reward_gap="difference", cold=True)) == [1.0] * 4


@pytest.mark.parametrize("reward_gap", ["predicted", "difference"])
@pytest.mark.parametrize("size", [2, 5])
def test_several_ranks_weigh_as_one(size: int, reward_gap: GapSource) -> None:
    alone = weighed(RewardGap(), reward_gap=reward_gap)
    shares = FakeRanks.play(size, lambda ranks: weighed(RewardGap(), ranks=ranks, reward_gap=reward_gap))
    assert shares == [alone[rank::size] for rank in range(size)]


def test_every_pair_counts_one_while_nothing_is_predicted() -> None:
    assert weights(weighed(RewardGap(form="linear"), cold=True)) == [1.0] * 4
    assert [pair.predicted_gap for c in weighed(RewardGap(), cold=True) for pair in c.pairs if pair.round] == [0.0] * 3


@pytest.mark.parametrize(
    ("given", "effect"), [({}, "every new pair has weight 1."), ({"loss": SelfRewardLoss()}, "every new pair is 0.")]
)
def test_a_run_says_once_that_labels_are_too_few(given: Any, effect: str) -> None:
    phases, paper = Phases(), io.StringIO()
    phases.show_on(Terminal(file=paper, width=200))
    few: dict[str, Any] = {"phases": phases, "reward_gap": "difference", **given}
    weighting: Weighting = Uniform() if given else RewardGap()
    FakeRanks.play(2, lambda ranks: weighed(weighting, cold=True, number=0, ranks=ranks, **few))
    assert paper.getvalue().count("learned_reward.min_labels") == paper.getvalue().count(effect) == 1
    before = paper.getvalue()
    weighed(weighting, cold=True, **few)
    weighed(weighting, number=0, **few)
    assert paper.getvalue() == before


def test_a_margin_reads_the_predicted_gap_too() -> None:
    made = weighed(Uniform(), loss=SelfRewardLoss())
    items = PoolItems(put(Pool(), made, round=1), SelfRewardLoss().needs, round=1, only_round=True)
    assert sorted(tuple(item.rewards) for item in items) == [(-2.0, 0.0), (2.0, 0.0), (3.0, 0.0)]


def test_nothing_is_predicted_that_nothing_reads() -> None:
    for made in (weighed(Uniform()), weighed(Uniform(), loss=SelfRewardLoss(), reward_gap="bought")):
        assert all(math.isnan(pair.predicted_gap) for c in made for pair in c.pairs)


def test_the_predicted_gap_survives_the_table() -> None:
    made = weighed(RewardGap())
    kept = put(Pool(), made, round=1).candidates()
    gaps = {c.prompt.id: [pair.predicted_gap for pair in c.pairs] for c in kept}
    assert gaps["as predicted"] == [3.0]
    assert math.isnan(gaps["two"][0])
