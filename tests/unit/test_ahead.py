"""What is known of a round that was sampled ahead when it begins: its prompts, its seconds, and errors."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import torch
from fake_ranks import FakeRanks

from choosy.data.pool import Pool
from choosy.methods.losses import SigmoidLoss
from choosy.parallel.ranks import OneRank, Ranks
from choosy.reporting.display import Phases
from choosy.rounds.ahead import Plan, SampleAhead, Sampled
from choosy.rounds.context import Round
from choosy.sampling.elsewhere import second_device
from choosy.sampling.generate import Generate
from choosy.types import Prompt


def sampled(result: Sampled | Exception) -> SampleAhead:
    """Round 1 has been sampled ahead, with this result."""
    ahead = SampleAhead(Generate(ahead=1))
    ahead._plan, ahead._sampling = Plan(1, [], {}), Future()
    if isinstance(result, Exception):
        ahead._sampling.set_exception(result)
    else:
        ahead._sampling.set_result(result)
    return ahead


def round_1(ranks: Ranks) -> Round:
    parts: Any = (None, None, Pool(), ranks, Phases(), SigmoidLoss(), None)
    return Round(1, 0, *parts)


def test_an_error_of_one_rank_is_raised_on_all():
    def finished(ranks: FakeRanks) -> list[str]:
        ahead = sampled(Sampled() if ranks.rank == 0 else ValueError("the second GPU is on fire"))
        with pytest.raises(ValueError, match="on fire") as raised:
            ahead.finish(round_1(ranks), [], responses=2)
        return ranks.gather([str(raised.value)])

    assert FakeRanks.play(3, finished) == [["the second GPU is on fire"] * 3] * 3


def test_what_an_evaluation_has_waited_for_was_not_hidden():
    ahead, at = sampled(Sampled(tokens=10, seconds=5.0, sync_seconds=0.5)), round_1(OneRank())
    ahead._engine.waited_seconds = 3.0
    assert ahead.finish(at, [], responses=2) == []
    assert at.counts["hidden_milliseconds"] == pytest.approx(2000, abs=100)
    assert at.counts["sync_milliseconds"] == 500


def test_a_plan_of_prompts_that_the_round_may_not_sample_says_what_to_type():
    plan = Plan(1, [("p1", 0.5), ("p2", 0.1)], {})
    assert [one.prompt.id for one in plan.chosen_of([Prompt(name, "?") for name in ("p2", "p1")])] == ["p1", "p2"]
    with pytest.raises(ValueError, match=r"Prompt p2 was chosen for round 2.*data\.prompts_per_round is another"):
        plan.chosen_of([Prompt("p1", "?")])


def test_a_gpu_that_is_not_there_is_refused():
    gpu = torch.device("cuda:0")
    assert second_device(gpu, "cuda:1", gpus=2) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"ahead_device=cuda:9: there is cuda:0 to cuda:1; type one that is there"):
        second_device(gpu, "cuda:9", gpus=2)
    with pytest.raises(ValueError, match=r"ahead_device=cuda: there is no GPU"):
        second_device(torch.device("cpu"), "cuda", gpus=0)
    with pytest.raises(ValueError, match=r"sampler\.ahead_device=cpu where servers sample"):
        second_device(gpu, "auto", gpus=1)
