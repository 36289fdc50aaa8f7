"""Linear layers with weights in the layout of oneDNN's products, which takes a fifth less time for few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN supports packed weights of this kind, on this processor and in this build of torch."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # not a rank's share, nor another subclass
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def product(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    """The forward of a layer with a packed copy of its present weights, for products of about so many rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)

    def forward(x_BLD: Tensor) -> Tensor:
        if x_BLD.dtype != torch.bfloat16:
            return nn.Linear.forward(layer, x_BLD)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_BLD, packed, layer.bias, "none", [], ""))

    return forward


@contextmanager
def packed_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Let the model's linear layers multiply by packed copies of their present weights within the block."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and can_pack(layer.weight)]
    try:
        for layer in layers:
            layer.forward = product(layer, rows)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
