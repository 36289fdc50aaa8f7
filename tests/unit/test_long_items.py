"""An item longer than a pass is cut into its responses, and nothing changes but the memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from choosy.data.batches import Item, batch_of
from choosy.models.adapters import Lora
from choosy.models.compute import Compute
from choosy.models.policy import Policy
from choosy.models.rows import Group

CPU = torch.device("cpu")
ITEM = Group(
    list(range(5, 16)), [list(range(20, 20 + n)) for n in (9, 1, 14, 3, 12)], [(), (), (), (False, True, True)]
)
PIECES = {1: 5, 30: 3, 1000: 1}  # of the item, by the tokens of a pass


def built(folder: Path, *, lora: bool, tokens: int, **how: Any) -> Policy:
    compute = Compute(tokens_per_step=tokens, **how)
    policy = Policy(str(folder), lora=Lora(r=4) if lora else None, dtype="float32", compute=compute)
    policy.load(device=CPU, seed=0)
    policy.train()  # layers are recomputed in training only
    noise = torch.Generator().manual_seed(1)
    for name, p in policy.trainable():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=noise)
    return policy


def value_and_gradients(policy: Policy, groups: list[Group]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss in which each token's slope depends on all tokens, as that of a pair's log-probs does."""
    logp_2T = policy.token_logps(groups, collisions=True)
    logp_T, said_T = logp_2T[0].double(), torch.linspace(-1, 1, logp_2T.shape[1], dtype=torch.float64)
    loss = -torch.nn.functional.logsigmoid(0.1 * (logp_T * said_T).sum()) + 0.01 * (logp_T.cumsum(0) ** 2).mean()
    loss.backward()
    return logp_2T.detach(), {name: p.grad for name, p in policy.trainable() if p.grad is not None}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"gradient_checkpointing": True},
        {"attention": "sdpa", "fused": False},
        {"share_prompt": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("lora", [True, False])
def test_cutting_an_item_changes_no_value_and_no_gradient(
    how: dict[str, Any], lora: bool, tiny_policy_dir: Path
) -> None:
    whole = built(
        tiny_policy_dir, lora=lora, tokens=1, **how
    )  # without split_long an item is a pass, whatever its length
    wanted_2T, wanted = value_and_gradients(whole, [ITEM])
    for tokens in PIECES:
        cut = built(tiny_policy_dir, lora=lora, tokens=tokens, split_long=True, **how)
        found_2T, found = value_and_gradients(cut, [ITEM])
        torch.testing.assert_close(found_2T, wanted_2T, rtol=1e-5, atol=1e-5)
        assert found.keys() == wanted.keys() != set()
        for name, gradient in wanted.items():
            close = {"rtol": 1e-4, "atol": 1e-5 * gradient.abs().max().item()}
            torch.testing.assert_close(found[name], gradient, **close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("tokens", PIECES)
def test_each_pass_holds_what_fits(tokens: int, tiny_policy_dir: Path) -> None:
    policy = built(tiny_policy_dir, lora=True, tokens=tokens, split_long=True)
    value_and_gradients(policy, [ITEM])  # the first use compares the paths
    passes: list[int] = []
    policy.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, __, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    value_and_gradients(policy, [ITEM])
    n = PIECES[tokens]
    assert len(passes) == 2 * n - 1, "all but the last once more"
    assert passes[n:] == passes[: n - 1][::-1], "from the last but one to the first"
    longest = len(ITEM.prompt_ids) + max(map(len, ITEM.response_ids)) - 1
    assert max(passes) <= max(tokens, longest)


def test_sharded_weights_refuse_to_cut_items(tiny_policy_dir: Path) -> None:
    policy = Policy(str(tiny_policy_dir), lora=Lora(), compute=Compute(split_long=True))
    with pytest.raises(
        ValueError, match=r"split_long=true .* trainer=ddp, or model.compute.gradient_checkpointing=true"
    ):
        policy.load(device=CPU, seed=0, sharded=True)


def item(*lengths: int, prompt_id: str = "a") -> Item:
    """An item with responses of these lengths to a prompt of 10 tokens; those of one length are equal."""
    ids = [[n] * n for n in lengths]
    return Item(prompt_id, [1] * 10, ids, [0.0] * len(ids))


SPLIT, CHECKPOINT, SHORTEN = "model.compute.split_long=true", "model.compute.gradient_checkpointing=true", "shorten"
FOUR = [item(*pair) for pair in itertools.combinations((11, 12, 13, 14), 2)]  # 56 tokens as one prompt


@pytest.mark.parametrize(
    ("items", "how", "wanted"),
    [
        ([item(20), item(21, prompt_id="b")], {}, f"step=60 .* type batching.tokens_per_step=30 or {CHECKPOINT}, and"),
        (FOUR, {}, f"step=60 .* type batching.tokens_per_step=30 or {CHECKPOINT}, and"),
        ([item(40, 42)], {}, f"prompt a whose length in tokens is 90 .* type {CHECKPOINT} or {SPLIT} or {SHORTEN}"),
        ([item(42, 42)], {}, f"length in tokens is 51 .* type {CHECKPOINT} or {SHORTEN}"),
        ([item(82)], {}, f"length in tokens is 91 .*; type {CHECKPOINT} or {SHORTEN}"),  # nothing to split
        ([item(20, 22)], {}, f"in tokens is 50 .* type {CHECKPOINT} or {SPLIT} batching.tokens_per_step=25 or"),
        ([item(40, 42)], {"sharded": True}, f"in tokens is 90 .* type {CHECKPOINT} or {SHORTEN}"),
        ([item(40, 42)], {"split_long": True, "gradient_checkpointing": True}, f"tokens is 90 .* cpu; {SHORTEN}"),
        ([item(20, 22, 23)], {"split_long": True}, f"is 72 .* type {CHECKPOINT} or batching.tokens_per_step=30 or"),
    ],
)
def test_a_step_that_does_not_fit_says_what_helps(items: list[Item], how: dict[str, bool], wanted: str) -> None:
    how, sharded = {name: on for name, on in how.items() if name != "sharded"}, "sharded" in how
    compute = Compute(tokens_per_step=60, **how)
    (part,) = batch_of(items).parts(compute.tokens_per_step, one_row=True)
    with pytest.raises(ValueError, match=wanted), compute.explain_oom(CPU, part.named_groups, sharded=sharded):
        raise torch.OutOfMemoryError("out of memory")
