"""An engine in a process of its own: the responses of one in this process, from the weights that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling.elsewhere import Elsewhere, copied_weights, sendable
from choosy.sampling.generate import Generate
from choosy.sampling.protocol import Request

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]
SEEDS = [[1, 2], [3], [4, 5, 6]]


@pytest.fixture
def policy(tiny_policy_dir):
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=4), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=3)
    with torch.no_grad():
        for _, p in policy.trainable():
            p += 0.02
    return policy


@pytest.mark.slow
def test_another_process_samples_what_this_one_would(policy):
    engine, threads = Generate(max_new_tokens=6, batch_size=3, ahead=1), torch.get_num_threads()
    here = engine.sample(policy, PROMPTS, SEEDS)
    elsewhere = Elsewhere.of(engine)
    ended: dict[int, Any] = {}
    try:
        there = elsewhere.sample(policy, PROMPTS, SEEDS, done=ended.update)
        before = copied_weights(policy)
        with torch.no_grad():
            for _, p in policy.trainable():
                p += 1.0  # as a step of training would
        later, *_ = elsewhere.answer_from(before, Request(policy, PROMPTS, SEEDS, engine), lambda ended: None)
    finally:
        process = elsewhere._process
        elsewhere.close()
    for responses in (there, later, [ended[p] for p in range(3)]):
        assert [[r.ids for r in each] for each in responses] == [[r.ids for r in each] for each in here]
        logps = [r.logp for each in responses for r in each]
        assert logps == pytest.approx([r.logp for each in here for r in each], abs=1e-5)
    assert elsewhere.origin == "sampler=generate"
    assert process is not None
    assert process.poll() is not None
    assert torch.get_num_threads() == threads


def test_an_error_that_cannot_cross_crosses_in_words():
    class Strange(Exception):
        def __init__(self, one: int, other: Mapping[str, int]) -> None:
            super().__init__(f"{one} of {other}")

    assert str(sendable(Strange(1, {"a": 2}))) == "Strange: 1 of {'a': 2}"
    assert isinstance(sendable(ValueError("as it is")), ValueError)
