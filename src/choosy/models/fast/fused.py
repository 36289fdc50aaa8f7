"""Faster replacements for layers of transformers or PEFT, with equal values.

On a CPU the matrix products of a small model take about half of a training step; the rest is elementwise operations
that read and write whole activations. These layers work in place, and their backwards recompute what is cheap instead
of storing it. `fuse` puts them into a model wherever a layer gives equal values. `packed_linears` speeds up sampling:
products of few rows take a fifth less time with weights in oneDNN's layout.

Axes: N tokens, D features in, E features out, R rank of an adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from choosy.terminal import logger

log = logger(__name__)


class _AdaptedLinear(torch.autograd.Function):
    """x W' + b + s (x A') B': the adapter's product is added in place, and the frozen W gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor | None, a_RD: Tensor, b_ER: Tensor, scaling: float
    ) -> Tensor:
        a_RD, b_ER = a_RD.to(x_ND.dtype), (b_ER * scaling).to(x_ND.dtype)
        y_NE = F.linear(x_ND, weight_ED, bias_E)
        low_NR = x_ND @ a_RD.T
        y_NE.addmm_(low_NR, b_ER.T)
        ctx.save_for_backward(x_ND, weight_ED, a_RD, b_ER, low_NR)
        ctx.scaling = scaling
        return y_NE

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_ND, weight_ED, a_RD, b_ER, low_NR = ctx.saved_tensors
        grad_low_NR = grad_NE @ b_ER
        grad_x_ND = None
        if ctx.needs_input_grad[0]:
            grad_x_ND = grad_NE @ weight_ED
            grad_x_ND.addmm_(grad_low_NR, a_RD)
        grad_b_ER = (grad_NE.T @ low_NR).float().mul_(ctx.scaling)
        return grad_x_ND, None, None, (grad_low_NR.T @ x_ND).float(), grad_b_ER, None


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 within, rounded before the weight as transformers does."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide_ND = x_ND.float()
        size_N1 = torch.linalg.vector_norm(wide_ND, dim=-1, keepdim=True)
        inverse_N1 = torch.rsqrt(size_N1.square_().div_(x_ND.shape[-1]).add_(eps))
        ctx.save_for_backward(x_ND, weight_D, inverse_N1)
        unit_ND = wide_ND.mul_(inverse_N1) if wide_ND is not x_ND else wide_ND * inverse_N1
        return unit_ND.to(x_ND.dtype) * weight_D

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_ND, weight_D, inverse_N1 = ctx.saved_tensors
        unit_ND = x_ND.float() * inverse_N1
        slope_ND = grad_ND.float() * weight_D  # a fresh tensor, worked on in place from here on
        grad_weight_D = None
        if ctx.needs_input_grad[1]:
            grad_weight_D = (grad_ND.float() * unit_ND).flatten(0, -2).sum(0).to(weight_D.dtype)
        along_N1 = torch.linalg.vecdot(slope_ND, unit_ND).unsqueeze_(-1).div_(-x_ND.shape[-1])
        return slope_ND.addcmul_(unit_ND, along_N1).mul_(inverse_N1).to(x_ND.dtype), grad_weight_D, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, storing only its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate_NE: Tensor, up_NE: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NE, up_NE)
        return F.silu(gate_NE).mul_(up_NE)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor]:
        gate_NE, up_NE = ctx.saved_tensors
        grad_up_NE = F.silu(gate_NE).mul_(grad_NE)
        return torch.ops.aten.silu_backward(grad_NE * up_NE, gate_NE), grad_up_NE


def _fused_lora(layer: LoraLinear) -> Callable[[Tensor], Tensor] | None:
    """The fused forward of an adapted layer; None for an adapter that is more than A and B."""
    if len(layer.lora_A) != 1 or layer.lora_variant or not isinstance(layer.base_layer, nn.Linear):
        return None
    (name,) = layer.lora_A
    down, up, base, original = layer.lora_A[name], layer.lora_B[name], layer.base_layer, layer.forward
    dropout = layer.lora_dropout[name]
    drops = dropout.p > 0 if isinstance(dropout, nn.Dropout) else not isinstance(dropout, nn.Identity)
    if base.weight.requires_grad or drops or up.bias is not None:
        return None

    def forward(x_BLD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if layer.disable_adapters or layer.merged or args or kwargs:
            return cast(Tensor, original(x_BLD, *args, **kwargs))
        x_ND = x_BLD.flatten(0, -2).to(base.weight.dtype)
        y_NE: Tensor = _AdaptedLinear.apply(x_ND, base.weight, base.bias, down.weight, up.weight, layer.scaling[name])
        return y_NE.unflatten(0, x_BLD.shape[:-1])

    return forward


def _takes_one(layer: nn.Module) -> bool:
    return len(inspect.signature(layer.forward).parameters) == 1


def _fused_norm(norm: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The same of a norm like Llama's."""
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(eps, float) or not _takes_one(norm):
        return None

    def forward(x_BLD: Tensor) -> Tensor:
        return cast(Tensor, _RMSNorm.apply(x_BLD, norm.weight, eps))  # type: ignore[no-untyped-call]  # torch gives it no type

    return forward


def _fused_mlp(mlp: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The same of a gated layer like Llama's."""
    parts = {name for name, _ in mlp.named_children()}
    if parts != {"gate_proj", "up_proj", "down_proj", "act_fn"} or not _takes_one(mlp):
        return None

    def forward(x_BLD: Tensor) -> Tensor:
        y_BLD: Tensor = mlp.down_proj(_SwiGLU.apply(mlp.gate_proj(x_BLD), mlp.up_proj(x_BLD)))  # type: ignore[no-untyped-call, operator]  # torch gives it no type
        return y_BLD

    return forward


def fuse(model: nn.Module) -> int:
    """Give layers their fused forwards, where these give equal values on a probe, and count them."""
    fused = 0
    for layer in model.modules():
        forward = _fused_lora(layer) if isinstance(layer, LoraLinear) else _fused_norm(layer) or _fused_mlp(layer)
        if forward is not None and _agree(layer, forward):
            layer.forward = forward
            fused += 1
    log.debug("%d layers are fused.", fused)
    return fused


@torch.no_grad()
def _agree(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether both forwards give the same values, up to the rounding of the weights' precision."""
    weight = next(getattr(layer, "gate_proj", layer).parameters())  # (E, D), or (D,) of a norm
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(1, 5, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        wanted_NE, found_NE = layer(x_ND), forward(x_ND)
    coarse = 1e-5 if wanted_NE.dtype == torch.float32 else 0.02
    return bool((wanted_NE - found_NE).abs().max() <= coarse * wanted_NE.abs().max())


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN supports packed weights of this kind, on this processor and in this build of torch."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # not a rank's share, nor another subclass
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch gives it no type
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
            layer.forward = product(layer, rows)  # type: ignore[method-assign, assignment]  # until the block ends
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
