"""Advice for a training step that needs more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from choosy.models.policy import Policy


@contextmanager
def explain_oom(policy: Policy) -> Iterator[None]:
    """Say which setting helps when the block runs out of memory.

    Raises:
        ValueError: It did.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = [f"type batching.tokens_per_step={max(policy.tokens_per_step // 2, 1)}"]
        if not policy.gradient_checkpointing:
            advice.append("model.gradient_checkpointing=true")
        raise ValueError(
            f"A training step of batching.tokens_per_step={policy.tokens_per_step} does not fit into the memory of "
            f"{policy.device}; {' or '.join(advice)}, and go on with ckpt_path=last. ({error})"
        ) from error
