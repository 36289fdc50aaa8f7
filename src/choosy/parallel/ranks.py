"""The ranks of a run behind four verbs, and weights sharded over them. The only file that imports torch.distributed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is there, but not in __all__
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

PATIENCE = timedelta(days=365)  # people who label take their time; a rank that dies is noticed by its closed socket


class Ranks(Protocol):
    """What a round needs to know of the processes that play it together."""

    rank: int
    size: int

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Everybody's items, on every rank, in order of rank."""
        ...

    def once(self, act: Callable[[], T]) -> T:
        """Act on rank 0 alone and give every rank the result; its error is raised on every rank."""
        ...


def shard(items: Sequence[T], ranks: Ranks) -> list[T]:
    """This rank's share of the items: every size-th one, so that shares differ by at most one.

    Example:
        >>> shard("abcde", OneRank())
        ['a', 'b', 'c', 'd', 'e']
    """
    return list(items[ranks.rank :: ranks.size])


class OneRank:
    """A run on one process."""

    rank = 0
    size = 1

    def gather(self, mine: Sequence[T]) -> list[T]:
        return list(mine)

    def once(self, act: Callable[[], T]) -> T:
        return act()


class TorchRanks:
    """A run on the processes of torch.distributed's default group; they first meet here all at once."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        assert dist.group.WORLD is not None
        self._group = patient_group(dist.group.WORLD)

    def gather(self, mine: Sequence[T]) -> list[T]:
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, list(mine), group=self._group)
        return [item for share in shares for item in share]

    def once(self, act: Callable[[], T]) -> T:
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = act()
            except Exception as error:  # it must reach the ranks that wait, whatever it is
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self._group)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result


@cache
def patient_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The processes of `world` in a group that waits for as long as a round takes, labels by hand included."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


class FakeRanks:
    """One of `size` ranks that are threads of this process: collectives without torch.distributed, for tests.

    Example:
        >>> FakeRanks.play(3, lambda ranks: ranks.gather([ranks.rank]))
        [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.size = size
        self._board = board
        self._barrier = barrier

    @staticmethod
    def play(size: int, program: Callable[[FakeRanks], T]) -> list[T]:
        """Run the program on every rank and return the results in order of rank."""
        board: list[Any] = [None] * size
        barrier = threading.Barrier(size)
        results: list[Any] = [None] * size
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            try:
                results[rank] = program(FakeRanks(rank, size, board, barrier))
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results

    def _exchange(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        everybody = list(self._board)
        self._barrier.wait()
        return everybody

    def gather(self, mine: Sequence[T]) -> list[T]:
        return [item for share in self._exchange(list(mine)) for item in share]

    def once(self, act: Callable[[], T]) -> T:
        result: T = self._exchange(act() if self.rank == 0 else None)[0]
        return result


def current_ranks() -> Ranks:
    """The ranks of the process group this process is in, or the one rank it is alone."""
    return TorchRanks() if dist.is_available() and dist.is_initialized() else OneRank()


# -- weights that are sharded over the ranks (FSDP2) -----------------------------------------------------------


def shard_weights(
    root: nn.Module, blocks: Sequence[nn.Module], *, device: torch.device, compute: torch.dtype | None
) -> None:
    """Leave each rank its share of every weight; a block is gathered when its forward or backward runs.

    Args:
        root: What holds the blocks and the weights outside of them; its forward must contain every trained one.
        blocks: Decoder layers. One may hold frozen weights of one precision and trained ones of another.
        device: Of this rank.
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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may hold a share; of a sharded one every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor; all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, on the device of another, and sharded if that is; every rank must ask."""
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements) if isinstance(model, DTensor) else tensor


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Whole weights on every rank within the block, where forwards need no other rank; all ranks must enter."""
    parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not root, recurse=False)


@contextmanager
def in_step(root: nn.Module, inner: nn.Module, filler: Callable[[], object], ranks: Ranks) -> Iterator[None]:
    """Every rank runs as many forwards of `inner` as the busiest one; all ranks must enter.

    For weights that do not fit whole: each forward gathers them block by block, and that takes all ranks.

    Args:
        root: The sharded module; its own weights, outside its blocks, are gathered for the whole block.
        inner: The part of it whose forwards are counted.
        filler: Runs `inner` once, for a rank that has nothing left to do.
        ranks: Who must keep step.
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


# -- before the ranks meet, and when one is gone ---------------------------------------------------------------


def agreed(name: str, mine: str) -> str:
    """The first word of any process that torchrun has started, so that all take the same; alone, the own word.

    Lightning and SLURM leave no such place: the former passes the folder on, the latter needs a name.
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return mine
    store = TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=5))
    word: bytes = store.compare_set(f"choosy/{name}/{told.get('TORCHELASTIC_RESTART_COUNT', '0')}", "", mine)
    return word.decode()


def end_with_launcher(every: float = 1.0) -> None:
    """End this process soon after the one that started it as a rank, lest it wait for ever for the others."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"
    launcher = os.getppid()
    if not launched or launcher == 1:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        print(f"\nRank {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}: {LOST}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may hang in a collective, which no exception would reach

    threading.Thread(target=watch, daemon=True, name="end-with-launcher").start()


LOST = (
    "another process of this run has ended, so this one ends too. The error of the first to fail stands above; "
    "if there is none, it was killed from outside, perhaps for its memory. Go on with ckpt_path=last."
)


def another_ended(error: BaseException) -> bool:
    """Whether a collective failed because a process at its other end is gone."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in broken)
