"""Settings of speed or memory, which never change a value."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from choosy.errors import refuse_unknown
from choosy.models.rows import Group, cut
from choosy.parallel.ranks import Ranks

Gather = Literal["auto", "always", "never"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h


@dataclass(frozen=True)
class Compute:
    """How the passes of a model are computed: their speed and memory, never their values.

    Args:
        tokens_per_step: Tokens of a forward pass, padding included.
        attention: Attention implementation of transformers, or `grouped`; auto = grouped on a CPU, if the model takes
            it, else what transformers chooses: sdpa where it can.
        share_prompt: Compute a prompt once for all its responses, where the architecture allows it.
        fused: Layers that do the same in fewer passes over memory; not of sharded weights (trainer=fsdp).
        packed: Sample with packed copies of the weights, where the processor multiplies by such (bf16 on a CPU).
        keep_freed_memory: Let the process keep the memory that it has freed, on a CPU under glibc.
        gradient_checkpointing: Recompute activations in the backward: less memory, more time.
        split_long: Compute the responses of an item that is longer than `tokens_per_step` one after the other, all
            but the last of them once more in the backward; not with sharded weights (trainer=fsdp).
        gather: Gather sharded weights once for a whole phase of sampling or scoring, not layer by layer in each
            forward: `auto` = if they fit into half of the free memory.
    """

    tokens_per_step: int = 2048
    attention: str = "auto"
    share_prompt: bool = True
    fused: bool = True
    packed: bool = True
    keep_freed_memory: bool = True
    gradient_checkpointing: bool = False
    split_long: bool = False
    gather: Gather = "auto"

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1:
            raise ValueError(f"batching.tokens_per_step={self.tokens_per_step} holds no token; choose at least 1.")
        refuse_unknown("model.compute.gather", self.gather, get_args(Gather))

    def refuse_sharded(self, *, nf4: bool) -> None:
        """Refuse what sharded weights, which all ranks gather together, do not allow."""
        if nf4:
            raise ValueError("model.dtype=nf4 keeps whole weights on each device, which trainer=fsdp shards; use ddp.")
        if self.split_long:
            raise ValueError(
                "model.compute.split_long=true lets ranks make different numbers of passes, and with trainer=fsdp each "
                "pass takes all ranks; type trainer=ddp, or model.compute.gradient_checkpointing=true instead."
            )

    def pieces(self, groups: Sequence[Group]) -> list[list[Group]]:
        """What is computed at once of groups that were packed to be: all, or with `split_long` few long responses."""
        if not self.split_long or sum(group.tokens for group in groups) <= self.tokens_per_step:
            return [list(groups)]
        return [[piece] for group in groups for piece in cut(group, self.tokens_per_step)]

    def gathers(self, needed: int, device: torch.device, ranks: Ranks) -> bool:
        """Whether sharded weights of so many bytes are gathered at once; all ranks must call this."""
        if self.gather == "auto":
            free = free_memory(device) // (ranks.size if device.type == "cpu" else 1)
            return all(ranks.gather([2 * needed <= free]))
        return self.gather == "always"

    @contextmanager
    def explain_oom(self, device: torch.device, tokens_of: Mapping[str, int]) -> Iterator[None]:
        """Say which setting helps when a training pass within the block runs out of memory.

        Args:
            tokens_of: The tokens of each prompt with its responses that the pass is made of.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            ((prompt_id, tokens),) = tokens_of.items() if len(tokens_of) == 1 else [("", 0)]
            if long := tokens > self.tokens_per_step:  # it is a pass by itself, whatever the budget
                what = f"The item of prompt {prompt_id} whose length in tokens is {tokens}"
                advice = [] if self.split_long else ["type model.compute.split_long=true"]
            else:
                what = f"A training step of batching.tokens_per_step={self.tokens_per_step}"
                advice = [f"type batching.tokens_per_step={max(self.tokens_per_step // 2, 1)}"]
            if not self.gradient_checkpointing:
                advice.append(f"{'' if advice else 'type '}model.compute.gradient_checkpointing=true")
            if long:
                advice.append("shorten responses (sampler.max_new_tokens, data.reader.max_response_tokens)")
            raise ValueError(
                f"{what} does not fit into the memory of {device}; {' or '.join(advice)}, and continue with "
                f"ckpt_path=last. ({error})"
            ) from error


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks; True if that worked.

    By default each large activation is mapped afresh, and the kernel zeroes its pages at the first touch: on two
    cores that took about 40% of a forward pass (docs/log.md). Other systems and C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_THRESHOLD, 1 << 30), mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1), mallopt(M_ARENA_MAX, 1)])


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still allocate on the device, as far as the driver or the kernel can tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
