"""What an engine of vLLM cannot do for a run, said before it starts."""

from __future__ import annotations

from typing import Literal

import torch

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
            "sampler=vllm takes plain LoRA on whole weights, merged or as an adapter, and this policy has 4-bit "
            "weights (model.dtype=nf4) or an adapter of another kind (model.adapter, model.lora.options); choose "
            "sampler=generate, or a plain LoRA adapter."
        )
    if sync == "adapter" and policy.lora is None:
        raise ValueError(
            "sampler.sync=adapter hands over a LoRA adapter, and model.lora=null trains all weights; type "
            "sampler.sync=merged."
        )


def refuse_ranks(processes: int, ranks: int) -> None:
    """Raise a ValueError where a run's ranks are not divided by the processes of an engine."""
    if ranks % processes:
        fitting = ", ".join(str(k) for k in range(1, ranks + 1) if ranks % k == 0)
        raise ValueError(
            f"sampler.tensor_parallel={processes} makes engines of {processes} processes each, and this run has "
            f"{ranks}; choose {fitting} or another number of trainer.devices."
        )


def refuse_group(policy: Policy, processes: int, ranks: int) -> None:
    """Raise a ValueError where a run's ranks, or a model's layers, are not divided by the processes of an engine."""
    refuse_ranks(processes, ranks)
    config = policy.causal_lm.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        n = getattr(config, name, None) or processes
        copied = name == "num_key_value_heads" and processes % n == 0  # several processes have the same one
        if n % processes and not copied:
            raise ValueError(
                f"sampler.tensor_parallel={processes} divides every layer among {processes} processes, and "
                f"{policy.source.name} has {name}={n}; choose a divisor of it."
            )


def refuse_shares(policy: Policy) -> None:
    """Raise a ValueError inside `for_sampling` for a policy whose weights are not whole on this rank."""
    if not policy.is_gathered:
        raise ValueError(
            "sampler=vllm takes whole weights, and the sharded ones (trainer=fsdp) are not gathered: they take more "
            "than half of a rank's free memory, or model.compute.gather=never. Choose sampler=generate, "
            "model.compute.gather=always, or trainer=ddp."
        )


def refuse_place(device: torch.device, ranks: int) -> None:
    """Raise a ValueError for another GPU than the first that a single process sees: the engine would take the first."""
    if ranks == 1 and device.type == "cuda" and device.index:
        raise ValueError(
            f"The engine of a single process takes the first GPU that it sees, and the policy is on {device}; set "
            f"CUDA_VISIBLE_DEVICES={device.index} and type trainer.devices=1, or choose sampler=generate."
        )


def refuse_device(policy_on: str, built_for: str) -> None:
    """Raise a ValueError where the installed vLLM is built for another device than the policy's."""
    if policy_on != built_for:
        raise ValueError(
            f"The policy is on {policy_on} and the installed vLLM is built for {built_for}; choose "
            f"trainer={'cpu' if built_for == 'cpu' else 'gpu'}, or sampler=generate."
        )
