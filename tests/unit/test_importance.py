"""Weights of labels on what was sampled ahead: by the ratios of the responses in each item."""

from __future__ import annotations

import math

import pytest
import torch

from choosy.data.pool import Pool
from choosy.methods.losses import SigmoidLoss
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.parallel.ranks import OneRank
from choosy.reporting.display import Phases
from choosy.rounds.context import Round
from choosy.rounds.importance import ratio_of, weigh_importance, weighed
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Pair, Prompt, Response

THREE = tuple(Response(text, logp=-2.0) for text in "abc")
RATIOS = {0: 2.0, 1: 0.5, 2: 1.5}


def test_a_pair_weighs_by_its_two_responses_and_a_list_by_all():
    c = Candidates(Prompt("p", "?"), THREE, pairs=(Pair(0, 2, weight=3.0), Pair(1, 2)))
    assert [pair.weight for pair in weighed(c, RATIOS, is_list=False).pairs] == [9.0, 0.75]
    assert [pair.weight for pair in weighed(c, RATIOS, is_list=True).pairs] == [4.5, 1.5]


def test_a_lone_response_weighs_by_its_own():
    assert weighed(Candidates(Prompt("p", "?"), THREE[:1], weight=3.0), {0: 0.5}, is_list=False).weight == 1.5
    assert weighed(Candidates(Prompt("p", "?"), THREE[:1]), {0: 0.5}, is_list=False).weight == 0.5
    unlabeled = Candidates(Prompt("p", "?"), THREE)
    assert weighed(unlabeled, {}, is_list=False) is unlabeled


def test_a_ratio_is_of_now_to_then():
    c = Candidates(Prompt("p", "?"), (*THREE, Response("d")))
    assert ratio_of(c, 0, -1.0) == pytest.approx(math.e)
    assert ratio_of(c, 0, -1e9) > 0
    assert ratio_of(c, 0, 1e9) < math.inf
    with pytest.raises(AssertionError, match="prompt p: a response was sampled without its log-prob"):
        ratio_of(c, 3, -1.0)


@pytest.mark.parametrize("lora", [Lora(r=4), None], ids=["lora", "full"])
def test_a_policy_that_has_not_moved_gives_ratios_of_1_in_bf16(lora, tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), lora=lora, dtype="bfloat16")
    policy.load(device=torch.device("cpu"), seed=3)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in policy.trainable():
            p += 0.05 * torch.randn(p.shape, generator=noise)
    engine, prompts = Generate(max_new_tokens=32, max_ratio=1e6), [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
    sampled = engine.sample(policy, prompts, [[1, 2], [3, 4], [5, 6]])
    of_ids = zip(prompts, sampled, strict=True)
    mine = [Candidates(Prompt(str(ids), "?"), tuple(two), ids, 1, pairs=(Pair(0, 1),)) for ids, two in of_ids]
    parts = (policy, engine, Pool(), OneRank(), Phases(), SigmoidLoss(), None)
    made = weigh_importance(Round(1, 0, *parts, ahead=[]), mine)
    assert all(p.grad is None and p.requires_grad and not p.is_inference() for _, p in policy.trainable())
    assert [c.pairs[0].weight for c in made] == pytest.approx([1.0] * 3, abs=0.02)
