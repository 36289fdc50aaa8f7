"""Weights sharded over the ranks of a run (FSDP2)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from choosy.parallel.ranks import Ranks


def refuse_tensor_parallel(mesh: Sequence[int], nodes: int) -> None:
    """Refuse sizes that would have no effect: all ranks share the weights."""
    if mesh[0] != nodes:
        raise ValueError(
            f"trainer.strategy asks for {mesh[0]} x {mesh[1]} data and tensor parallel ranks, and Choosy shards the "
            "weights over all ranks; leave data_parallel_size and tensor_parallel_size at auto."
        )


def shard_weights(
    root: nn.Module, blocks: Sequence[nn.Module], *, device: torch.device, compute: torch.dtype | None
) -> None:
    """Leave each rank its share of every weight; a block is gathered when its forward or backward runs.

    Args:
        root: Holds the blocks, which are decoder layers, and other weights; its forward must contain every trained one.
        compute: Precision in which weights are gathered; None = their own. Gradients are summed in fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision)
    fully_shard(root, mesh=mesh, mp_policy=MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False))


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights are sharded over the ranks."""
    return isinstance(module, FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor of which this rank may hold a share; for a sharded one every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Put a full tensor on another one's device, sharded if that one is; then every rank must call this."""
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements) if isinstance(model, DTensor) else tensor


@contextmanager
def gathered(root: nn.Module, filler: Callable[[], object]) -> Iterator[None]:
    """Give every rank all weights within the block, where forwards need no other rank; all ranks must enter.

    `filler` runs a forward at the end, so that no rank is without one: FSDP2 remembers the layers of forwards without
    gradient, too, and gathers one of them in the next backward, which takes all ranks.
    """
    parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
        filler()
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not root, recurse=False)


@contextmanager
def lockstep(root: nn.Module, inner: nn.Module, filler: Callable[[], object], ranks: Ranks) -> Iterator[None]:
    """Let every rank run as many forwards of `inner` within the block as the busiest one; all ranks must enter.

    For weights that do not fit into one rank's memory: each forward gathers them block by block, which takes all ranks.
    A rank that has finished its own forwards runs `filler`, one forward of `inner`, as long as others have some left.
    """
    busy = True

    def announce(*_: object) -> None:
        if busy:
            ranks.gather([True])

    cast(FSDPModule, root).unshard()
    hook = inner.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
        busy = False
        while any(ranks.gather([False])):
            filler()
    finally:
        hook.remove()
        cast(FSDPModule, root).reshard()


def unpickled(checkpoint: Path) -> Iterator[io.BytesIO]:
    """Yield the values of a sharded checkpoint that are no tensors, which torch unpickles whatever they hold."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # most runs need neither
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    found = FileSystemReader(checkpoint).read_metadata()
    for index, stored in (found.storage_data or {}).items():
        if isinstance(found.state_dict_metadata[index.fqn], BytesStorageMetadata):
            with (checkpoint / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                yield io.BytesIO(file.read(stored.length))
