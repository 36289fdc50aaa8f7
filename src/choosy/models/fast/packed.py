"""Linear layers with weights in the layout of oneDNN's products, which takes a fifth less time for few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def product(weight_ED: Tensor, rows: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Make a function x, bias -> x W' + bias with its own packed copy of W, without gradients.

    Args:
        weight_ED: In bf16, on the CPU.
        rows: About how many rows x will have, for which the layout is chosen.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_ED.detach(), rows)

    def multiply(x_BLD: Tensor, bias_E: Tensor | None) -> Tensor:
        y_BLE: Tensor = torch.ops.mkldnn._linear_pointwise(x_BLD, packed, bias_E, "none", [], "")
        return y_BLE

    return multiply


@contextmanager
def packed_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Let the model's linear layers multiply by packed copies of their present weights within the block.

    Args:
        model: Not to be trained within the block.
        rows: About how many rows the products will have.
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
