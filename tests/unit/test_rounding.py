"""Certainty knows when its gaps are smaller than what bf16 rounds away, and can compute them in fp32."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_ranks import FakeRanks

from callbacks.certainty import Certainty
from choosy.methods.losses import SigmoidLoss
from choosy.methods.selection import certainty
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.models.rounding import gaps_and_error, log_ratios_in_fp32
from choosy.parallel.ranks import OneRank
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Prompt

TEXTS = ["Tea?", "Tell me about rain.", "Why?", "Who was that?", "x" * 20, "Name a fruit.", "Go on.", "Is it so?"]


def loaded(folder: Any, dtype: Any, *, moved: float) -> Policy:
    policy = Policy(str(folder), lora=Lora(r=4), dtype=dtype)
    policy.load(device=torch.device("cpu"), seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in policy.trainable():
            if "lora_B" in name:
                p.copy_(torch.empty(p.shape).normal_(0, moved, generator=noise))
    return policy


def sampled(policy: Policy) -> list[Candidates]:
    ids = [policy.tokens.encode_prompt(Prompt(text, text)) for text in TEXTS]
    responses = Generate(max_new_tokens=24).sample(policy, ids, [[0, 1, 2]] * len(TEXTS))
    drawn = [Candidates(Prompt(t, t), tuple(rs), i) for t, rs, i in zip(TEXTS, responses, ids, strict=True)]
    return policy.score_reference(drawn)


def ratios(candidates: list[Candidates]) -> list[list[float]]:
    return [[r.logp - r.logp_ref for r in c.responses] for c in candidates]


def rescored(policy: Policy, candidates: list[Candidates]) -> list[Candidates]:
    return [
        replace(c, responses=tuple(replace(r, logp=logp) for r, logp in zip(c.responses, of, strict=True)))
        for c, of in zip(policy.score_reference(candidates), policy.score(candidates), strict=True)
    ]


@pytest.fixture(scope="module", params=[1e-4, 0.3], ids=["hardly moved", "far moved"])
def moved(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def policy(tiny_policy_dir, moved) -> Policy:
    return loaded(tiny_policy_dir, "bfloat16", moved=moved)


@pytest.fixture(scope="module")
def candidates(policy) -> list[Candidates]:
    return sampled(policy)


def test_fp32_is_what_a_policy_in_fp32_computes(policy, candidates, tiny_policy_dir, moved):
    exact = loaded(tiny_policy_dir, "float32", moved=moved)
    weights = {name: p.detach().clone() for name, p in policy.named_parameters()}
    before = policy.score(candidates)
    found = log_ratios_in_fp32(policy, candidates)
    with torch.no_grad():  # the same weights: those of the policy in bf16
        for name, p in exact.named_parameters():
            p.copy_(weights[name])
    exact.states.start.update({n: p.float() for n, p in policy.states.start.items()})
    wanted = ratios(rescored(exact, candidates))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert policy.score(candidates) == before
    assert all(torch.equal(p, weights[n]) and p.dtype == weights[n].dtype for n, p in policy.named_parameters())


def test_gaps_are_compared_with_the_rounding_error(policy, candidates, moved):
    gap, error = gaps_and_error(policy, candidates, ratios(candidates), OneRank())
    assert error > 0
    assert (gap < error) == (moved < 0.01)


def test_every_rank_learns_the_same(policy, candidates, monkeypatch):
    alone = gaps_and_error(policy, candidates, ratios(candidates), OneRank())
    known = dict(zip(TEXTS, log_ratios_in_fp32(policy, candidates), strict=True))  # as these ranks are threads
    monkeypatch.setattr("choosy.models.rounding.log_ratios_in_fp32", lambda _, some: [known[c.prompt.id] for c in some])

    def program(ranks: FakeRanks) -> tuple[float, float]:
        mine = candidates[ranks.rank :: ranks.size]
        return gaps_and_error(policy, mine, ratios(mine), ranks)

    assert FakeRanks.play(2, program) == [pytest.approx(alone, rel=1e-3)] * 2


def utilities(policy: Policy, candidates: list[Candidates], *rescore: Any) -> list[list[float]]:
    class At:
        loss, ranks, ahead = SigmoidLoss(0.1), OneRank(), None

    At.policy = policy  # type: ignore[attr-defined]
    chosen = Certainty(rescore=rescore[0]) if rescore else Certainty()
    return chosen.pair_utilities(candidates, At())  # type: ignore[arg-type]


def test_certainty_warns_or_computes_again(policy, candidates, tiny_policy_dir, moved, caplog):
    rough = [pytest.approx([0.1 * g for g in certainty(of)]) for of in ratios(candidates)]
    exact = [pytest.approx([0.1 * g for g in certainty(of)]) for of in log_ratios_in_fp32(policy, candidates)]
    assert rough != exact
    with caplog.at_level(logging.INFO):
        assert utilities(policy, candidates, "never") == rough
        warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert bool(warned) == (moved < 0.01)
        assert all("are below the rounding error of bfloat16" in message for message in warned)
        assert all("Type callbacks.certainty.rescore=auto " in message for message in warned)
        assert utilities(policy, candidates) == (exact if moved < 0.01 else rough), "unless told otherwise, as by auto"
        assert utilities(policy, candidates, "auto") == utilities(policy, candidates)
        assert utilities(policy, candidates, "fp32") == exact
    precise = loaded(tiny_policy_dir, "float32", moved=moved)
    caplog.clear()
    utilities(precise, sampled(precise), "never")
    assert not caplog.records


def test_responses_that_earlier_weights_have_sampled_are_ranked_by_the_present_ones(policy, candidates, moved):
    earlier = [replace(c, responses=tuple(replace(r, logp=r.logp_ref) for r in c.responses)) for c in candidates]
    wanted = [pytest.approx([0.1 * g for g in certainty(of)]) for of in ratios(rescored(policy, candidates))]

    class At:
        loss, ranks, ahead = SigmoidLoss(0.1), OneRank(), ()

    At.policy = policy  # type: ignore[attr-defined]
    assert Certainty(rescore="never").pair_utilities(earlier, At()) == wanted  # type: ignore[arg-type]


def test_other_ways_to_score_are_refused():
    with pytest.raises(ValueError, match=r"rescore=often is none of never, auto, fp32"):
        Certainty(rescore="often")  # type: ignore[arg-type]
