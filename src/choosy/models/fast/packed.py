"""Weights laid out as the processor's matrix products read them: a fifth less time where there are few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by such weights, on this processor and in this build of torch."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # not a rank's share, nor any other tensor with ways of its own
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def product(weight_ED: Tensor, rows: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function x, bias -> x W' + bias that keeps its own copy of W, without gradients.

    Args:
        weight_ED: In bf16, on the CPU.
        rows: How many rows x will have, about; the layout is chosen for these.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_ED.detach(), rows)

    def multiply(x_BLD: Tensor, bias_E: Tensor | None) -> Tensor:
        y_BLE: Tensor = torch.ops.mkldnn._linear_pointwise(x_BLD, packed, bias_E, "none", [], "")
        return y_BLE

    return multiply


@contextmanager
def packed_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Within the block, the model's linear layers multiply by packed copies of the weights that they have now.

    Args:
        model: Not to be trained within the block.
        rows: How many rows the products will have, about.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and can_pack(layer.weight)]
    try:
        for layer in layers:
            layer.forward = _forward(layer, rows)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    multiply = product(layer.weight, rows)

    def forward(x_BLD: Tensor) -> Tensor:
        if x_BLD.dtype != torch.bfloat16:
            return nn.Linear.forward(layer, x_BLD)
        return multiply(x_BLD, layer.bias)

    return forward
