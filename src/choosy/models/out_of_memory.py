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
        advice = [f"type batching.tokens_per_step={max(policy.compute.tokens_per_step // 2, 1)}"]
        if not policy.compute.gradient_checkpointing:
            advice.append("model.compute.gradient_checkpointing=true")
        raise ValueError(
            f"A training step of batching.tokens_per_step={policy.compute.tokens_per_step} does not fit into the "
            f"memory of {policy.device}; {' or '.join(advice)}, and go on with ckpt_path=last. ({error})"
        ) from error
