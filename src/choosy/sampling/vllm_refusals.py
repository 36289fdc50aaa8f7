"""What an engine of vLLM cannot do for a run, said before it starts."""

from __future__ import annotations

from typing import Literal

from choosy.models.policy import Policy

Sync = Literal["merged", "adapter"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters that vLLM has room for


def engine_rank(rank: int) -> int:
    """The smallest of the ranks that vLLM has room for which takes an adapter of this one.

    Example:
        >>> engine_rank(4), engine_rank(64)
        (8, 64)
    """
    if rank > RANKS[-1]:
        raise ValueError(f"sampler.sync=adapter takes ranks up to {RANKS[-1]}; type sampler.sync=merged.")
    return next(room for room in RANKS if room >= rank)


def refuse_sync(policy: Policy, sync: Sync) -> None:
    """Raise a ValueError for weights that an engine cannot take in this way."""
    if not policy.is_mergeable:
        raise ValueError(
            f"sampler=vllm takes plain LoRA, merged or as an adapter, which {policy.adapter} is not; choose "
            "sampler=generate, or a plain LoRA adapter."
        )
    if sync == "adapter" and policy.lora is None:
        raise ValueError(
            "sampler.sync=adapter hands over a LoRA adapter, and model.lora=null trains all weights; type "
            "sampler.sync=merged."
        )


def refuse_shares(policy: Policy) -> None:
    """Raise a ValueError inside `for_sampling` for a policy whose weights are not whole on this rank."""
    if not policy.is_gathered:
        raise ValueError(
            "sampler=vllm takes whole weights, and the sharded ones (trainer=fsdp) are not gathered: they take more "
            "than half of a rank's free memory, or model.compute.gather=never. Choose sampler=generate, "
            "model.compute.gather=always, or trainer=ddp."
        )


def refuse_device(policy_on: str, built_for: str) -> None:
    """Raise a ValueError where the installed vLLM is built for another device than the policy's."""
    if policy_on != built_for:
        raise ValueError(
            f"The policy is on {policy_on} and the installed vLLM is built for {built_for}; choose "
            f"trainer={'cpu' if built_for == 'cpu' else 'gpu'}, or sampler=generate."
        )
