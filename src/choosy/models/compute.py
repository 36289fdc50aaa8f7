"""Settings of speed and memory, which never change a value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Gather = Literal["auto", "always", "never"]


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
    gather: Gather = "auto"

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1:
            raise ValueError(f"batching.tokens_per_step={self.tokens_per_step} holds no token; choose at least 1.")
        if self.gather not in ("auto", "always", "never"):
            raise ValueError(f"model.compute.gather={self.gather} is none of auto, always, never.")

    @contextmanager
    def explain_oom(self, device: torch.device) -> Iterator[None]:
        """Say which setting helps when a training step within the block runs out of memory."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            advice = [f"type batching.tokens_per_step={max(self.tokens_per_step // 2, 1)}"]
            if not self.gradient_checkpointing:
                advice.append("model.compute.gradient_checkpointing=true")
            raise ValueError(
                f"A training step of batching.tokens_per_step={self.tokens_per_step} does not fit into the memory of "
                f"{device}; {' or '.join(advice)}, and go on with ckpt_path=last. ({error})"
            ) from error
