"""Activations that the backward computes again, so that fewer are kept.

Axes: B rows, L tokens of a row, l tokens of a segment, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Recompute = Literal["layers", "mlp", "both"]

SEGMENT = 1024  # tokens: a shorter one saves little more, as the hidden states themselves are kept whole

again: Callable[..., Any] = partial(checkpoint, use_reentrant=False)  # calls a function, and once more in the backward


def recompute_layers(model: PreTrainedModel, *, frozen: bool) -> None:
    """Let the backward recompute the activations of each layer, of a model whose embeddings may be frozen."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if frozen:
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # transformers gives it no type


def recompute_mlps(model: nn.Module, size: int = SEGMENT) -> int:
    """Let the backward recompute gated layers like Llama's, a segment of tokens at a time, and count them.

    Each token goes through such a layer by itself, so that the segments change no value.
    """
    mlps = [m for m in model.modules() if {"gate_proj", "up_proj", "down_proj"} <= {n for n, _ in m.named_children()}]
    for mlp in mlps:
        mlp.forward = in_segments(mlp.forward, size)  # as `fuse` does
    return len(mlps)


def in_segments(forward: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """A forward that is the same for tokens in segments, and keeps nothing but its input for the backward."""

    def segmented(x_BLD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x_BLD)
        return torch.cat([cast(Tensor, again(forward, x_BlD)) for x_BlD in torch.split(x_BLD, size, dim=1)], dim=1)

    return segmented
