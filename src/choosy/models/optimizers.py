"""Optimisers that torch has not, or has for some weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import PreTrainedModel

there = find_spec("bitsandbytes") is not None
EightBit: Any = import_module("bitsandbytes.optim").AdamW8bit if there else torch.optim.AdamW


class AdamW8bit(EightBit):  # type: ignore[misc]  # bitsandbytes may not be there
    """AdamW with both states of a weight in 8 bits instead of 32 (Dettmers et al., arXiv 2110.02861).

    Weights of fewer than 4096 numbers have states in 32 bits.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if find_spec("bitsandbytes") is None:
            raise ValueError("optimizer=adamw_8bit needs bitsandbytes; type pip install 'choosy-tuning[nf4]'")
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def mark_vocabulary(model: PreTrainedModel) -> None:
    """Mark the weights with a row for each token, and the copies that an adapter trains, for `Muon` to leave out."""
    tables: list[nn.Module] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]  # transformers gives it no type
    for table in tables:
        for name, weight in table.named_parameters():
            weight.of_vocabulary = "lora_" not in name  # type: ignore[attr-defined]  # adapters are matrices as others


class Muon(Optimizer):
    """Muon for matrices, and AdamW for all other weights, those of the vocabulary among them.

    Muon steps along the momentum with all its singular values made equal (github.com/KellerJordan/Muon); a step is
    then as long as one of AdamW, so that both take the same learning rate (arXiv 2502.16982).

    Args:
        momentum: Of Muon.
        betas: Of AdamW.
        weight_decay: Of both.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        both: tuple[list[Parameter], list[Parameter]] = [], []
        for weight in params:
            both[weight.ndim != 2 or getattr(weight, "of_vocabulary", False)].append(weight)
        matrices, others = both
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **shared))
        if others:
            self.parts.append(torch.optim.AdamW(others, betas=(betas[0], betas[1]), fused=True, **shared))
        super().__init__([group for part in self.parts for group in part.param_groups], shared)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each part step, on the groups and states that a checkpoint may have replaced."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss
