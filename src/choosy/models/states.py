"""The trainable weights in other states: as at the start, as the reference has them, merged to be sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import full_tensor, local, placed_like


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of what is trained."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


class States:
    """Copies of the trainable weights: at the start of the run, and of the reference, which is the start or later."""

    def __init__(self, model: nn.Module, *, sharded: bool) -> None:
        self._model = model
        self._sharded = sharded
        self.start = {name: p.detach().clone() for name, p in trainable(model)}
        self.reference = self.start

    @torch.no_grad()
    def restore_start(self) -> None:
        """Set the weights back to the start of the run."""
        for name, p in trainable(self._model):
            p.copy_(self.start[name].to(p.device))

    @torch.no_grad()
    def refer_to_current(self, share: float = 1.0) -> None:
        """Make the present weights the reference from now on, or mix that share of them with the reference before."""
        moved = {}
        for name, p in trainable(self._model):
            before = self.reference[name].to(p.device)
            moved[name] = p.detach().clone() if share == 1 else before + share * (p.detach() - before)
        self.reference = moved

    def is_reference(self) -> bool:
        """Whether the present weights are the reference's; every rank must call this."""
        pairs = ((local(p), local(self.reference[name]).to(p.device)) for name, p in trainable(self._model))
        return all(current_ranks().gather([all(torch.equal(now, then) for now, then in pairs)]))

    def as_reference(self) -> AbstractContextManager[None]:
        """The reference's weights within the block."""
        return self._in_state(self.reference)

    def as_start(self) -> AbstractContextManager[None]:
        """The weights of the start of the run within the block."""
        return self._in_state(self.start)

    @contextmanager
    def referring_to_start(self) -> Iterator[None]:
        """The start of the run as the reference within the block."""
        moved, self.reference = self.reference, self.start
        try:
            yield
        finally:
            self.reference = moved

    @contextmanager
    def _in_state(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        pairs = [(p, state[name].to(p.device)) for name, p in trainable(self._model)]
        if not self._sharded:
            with swapped_in(pairs):
                yield
            return
        assert all(local(p) is not p for p, _ in pairs), "a state is entered before its weights are gathered"
        with torch.no_grad():  # gathering reads the shards themselves, so that pointers would not do
            before = [p.detach().clone() for p, _ in pairs]
            try:
                for p, data in pairs:
                    p.copy_(data)
                yield
            finally:
                for (p, _), data in zip(pairs, before, strict=True):
                    p.copy_(data)

    def to_save(self, *, with_start: bool) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """The start, if wanted, and the reference, if it has moved, on rank 0; every rank must call this."""
        moved = self.reference is not self.start
        return on_rank_0(self.start) if with_start else None, on_rank_0(self.reference) if moved else None

    def load(self, start: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor] | None) -> None:
        """Load what `to_save` gave; without a start this one stays, without a reference it is the start."""
        now = dict(trainable(self._model))
        if start is not None:
            self.start = self.reference = {k: placed_like(v, now[k]) for k, v in start.items()}
        if reference is not None:
            self.reference = {k: placed_like(v, now[k]) for k, v in reference.items()}


def on_rank_0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather full tensors one by one into rank 0's memory; every rank must call this, the others get nothing."""
    rank = current_ranks().rank
    tensors = ((name, full_tensor(tensor)) for name, tensor in state.items())
    return {name: tensor.detach().cpu() for name, tensor in tensors if rank == 0}


@contextmanager
def computing_in(modules: Sequence[Any], dtype: torch.dtype) -> Iterator[None]:
    """Let modules that keep the precision of their products as `compute_dtype` have another one within the block."""
    before = [module.compute_dtype for module in modules]
    for module in modules:
        module.compute_dtype = dtype
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.compute_dtype = own


@contextmanager
def swapped_in(weights: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Let parameters point to other tensors within the block."""
    before = [(p, p.data) for p, _ in weights]
    try:
        for p, data in weights:
            p.data = data
        yield
    finally:
        for p, data in before:
            p.data = data


def can_merge(model: PeftModel) -> bool:
    """Whether the adapter is plain LoRA, on weights of one layer each: the kind that `merged` merges exactly."""
    modules = list(model.modules())
    layers: list[Any] = [module for module in modules if isinstance(module, BaseTunerLayer)]
    if not all(type(layer) in (Linear, Embedding) for layer in layers):
        return False
    uses = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    plain = all(
        not layer.lora_variant and not any(layer.lora_bias.values()) and uses[layer.base_layer.weight] == 1
        for layer in layers
    )
    return plain and not any(isinstance(module, AuxiliaryTrainingWrapper) for module in modules)


def unadapted(model: nn.Module | None) -> AbstractContextManager[None]:
    """Leave the adapter out within the block where it adds exactly nothing, as a fresh one does: the pass is faster."""
    if not isinstance(model, PeftModel) or not can_merge(model):
        return nullcontext()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    moves = any(len(layer.lora_embedding_B) or any(up.weight.any() for up in layer.lora_B.values()) for layer in layers)
    return nullcontext() if moves else model.disable_adapter()


def merged(model: PeftModel) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each adapted weight with its adapter merged, in the weight's precision; one at a time, for a delta is fp32."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight, delta = layer.base_layer.weight, layer.get_delta_weight(layer.active_adapters[0])
        yield weight, cast(Tensor, (weight.float() + delta.float()).to(weight.dtype))
