"""A step costs the same however it is computed, for every loss of the menu, also a new file in conf/loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_configs import options
from tiny import CONF
from torch import Tensor

from choosy.data.batches import Batch, Item, batch_of
from choosy.methods.loss_inputs import Facts, form_of
from choosy.models.degree_head import DegreeHead
from choosy.module import WeightedDPO

TEXTS = (
    ("Green hills, old towns. Cold beer.", "No, never."),
    ("The red fox jumps. Dogs sleep.", "A fox."),
    ("Yes, it is.", "It is no fox and no dog at all."),
    ("Snow, and rain.", "Warm soup, fresh bread."),
    ("Tea!", "Chess and maps."),
)
SIZES = {"pair": 2, "list": 2, "single": 1}


@pytest.fixture(params=options("loss"))
def module(request: pytest.FixtureRequest, load_policy) -> WeightedDPO:
    """The loss with a policy that has moved away from its reference."""
    loss = instantiate(OmegaConf.load(CONF / "loss" / f"{request.param}.yaml"), _convert_="object")
    module = WeightedDPO(load_policy(), loss=loss, optimizer=torch.optim.Adam)
    module.facts = Facts(kl=0.3, reward=0.2, steps=1)
    if "degrees" in loss.needs:
        module.degree_head = DegreeHead(module.policy, loss.degrees)
        torch.nn.init.normal_(module.degree_head.linear.weight, generator=torch.Generator().manual_seed(2))
    return module


def items(module: WeightedDPO) -> list[Item]:
    """Five items in the form that the loss takes, each with two own samples, and numbers drawn by lot."""
    tokens, draw = module.policy.tokens, torch.Generator().manual_seed(3)

    def drawn(ids: Sequence[int]) -> list[float]:
        return (-6 * torch.rand(len(ids), generator=draw)).tolist()

    found = []
    for n, texts in enumerate(TEXTS):
        prompt_ids = tokens.tokenizer.encode(f"Tell me of {n}.")
        ids = [tuple(tokens.tokenizer.encode(text)) for text in (*texts, *(f"Own {n} {k}." for k in range(2)))]
        refs = [drawn(of_response) for of_response in ids]
        size = SIZES[form_of(module.loss.needs)]
        found.append(
            Item(
                f"p{n}",
                prompt_ids,
                ids[:size],
                [sum(ref) for ref in refs[:size]],
                weight=0.5 + n,
                rewards=[1.5 - n / 3, -0.5][:size],
                good=n % 2 == 0,
                ref_token_logps=refs[:size] if "tokens" in module.loss.needs else (),
                own_ids=ids[2:] if "own" in module.loss.needs else (),
                own_ref_logps=[sum(ref) for ref in refs[2:]] if "own" in module.loss.needs else (),
                own_logps=[sum(ref) - 0.5 for ref in refs[2:]] if "own" in module.loss.needs else (),
            )
        )
    return found


def computed(module: WeightedDPO, parts: Sequence[Batch], step: Batch) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step in these parts, and its gradients."""
    partners = module.find_partners(step) if "step" in module.loss.needs else None
    module.zero_grad()
    losses = [module.part_loss(part, partners)[0] for part in parts]
    sum(losses).backward()
    return sum(loss.item() for loss in losses), {
        name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
    }


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    largest = max(gradient.abs().max().item() for gradient in one[1].values())
    assert largest > 0
    for name, gradient in one[1].items():
        found = other[1][name]
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4 * largest, msg=lambda m, n=name: n + m)


def test_a_prompt_that_is_computed_once_for_its_responses_changes_no_step(module: WeightedDPO) -> None:
    step = batch_of(items(module))
    shared = computed(module, [step], step)
    assert module.policy.shares_prompts
    del module.policy.shares_prompts  # which is cached
    module.policy.compute = replace(module.policy.compute, share_prompt=False)
    assert not module.policy.shares_prompts
    assert_same(shared, computed(module, [step], step))


@pytest.mark.parametrize("size", [2, 3])
def test_the_shares_of_ranks_are_the_step_of_one(module: WeightedDPO, size: int) -> None:
    step = batch_of(items(module))
    shares = [batch_of(items(module), rank=rank, size=size) for rank in range(size)]
    assert sum(map(len, shares)) == len(step)
    assert_same(computed(module, [step], step), computed(module, shares, step))
