"""Settings of speed or memory, which never change a value."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from choosy.errors import refuse_unknown
from choosy.models.rows import Group, cut, deduplicated
from choosy.parallel.ranks import Ranks

Gather = Literal["auto", "always", "never"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc, malloc.h


@dataclass(frozen=True)
class Compute:
    """How the passes of a model are computed: their speed and memory, never their values.

    Args:
        tokens_per_step: Tokens of a forward pass, padding included; a model that cannot share prompts between responses
            takes more in training, where each response of an item brings the prompt again.
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
    def explain_oom(
        self, device: torch.device, items: Sequence[tuple[str, Group]], *, sharded: bool = False
    ) -> Iterator[None]:
        """Say which setting helps when a training pass within the block runs out of memory.

        Args:
            items: The prompt's id and the tokens of each item that the pass is made of.
            sharded: Whether the weights are, which do not allow `split_long`.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            checkpointing = [] if self.gradient_checkpointing else ["model.compute.gradient_checkpointing=true"]
            if len(items) == 1:  # it is a pass by itself, whatever the budget
                ((group,), _) = deduplicated([group for _, group in items])
                what = f"The item of prompt {items[0][0]} whose length in tokens is {group.tokens}"
                advice = [*checkpointing, *([] if sharded else self._smaller_pieces(group))]
            else:
                what = f"A training step of batching.tokens_per_step={self.tokens_per_step}"
                advice = [f"batching.tokens_per_step={max(self.tokens_per_step // 2, 1)}", *checkpointing]
            advice = [f"type {' or '.join(advice)}"] if advice else []
            if len(items) == 1:
                advice.append("shorten responses (sampler.max_new_tokens, data.reader.max_response_tokens)")
            raise ValueError(
                f"{what} does not fit into the memory of {device}; {' or '.join(advice)}, and continue with "
                f"ckpt_path=last. ({error})"
            ) from error

    def _smaller_pieces(self, group: Group) -> list[str]:
        """What to type to compute a group in more pieces; nothing if its responses do not allow that."""
        split = [] if self.split_long else ["model.compute.split_long=true"]
        half = max(min(self.tokens_per_step, group.tokens) // 2, 1)
        for tokens, lower in ((self.tokens_per_step, []), (half, [f"batching.tokens_per_step={half}"])):
            if len(cut(group, tokens)) > len(self.pieces([group])):
                return [" ".join([*split, *lower])]
        return []


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
