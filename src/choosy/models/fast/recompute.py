"""Activations that the backward computes again, so that fewer are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

again: Callable[..., Any] = partial(checkpoint, use_reentrant=False)  # calls a function, and once more in the backward


def recompute_layers(model: PreTrainedModel, *, frozen: bool) -> None:
    """Let the backward recompute the activations of each layer, of a model whose embeddings may be frozen."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if frozen:
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # transformers gives it no type
