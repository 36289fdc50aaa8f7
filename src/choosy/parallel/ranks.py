"""The processes of a run, its ranks, from their launch to their end."""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is there, but not in __all__

from choosy.terminal import say

T = TypeVar("T")

TIMEOUT = timedelta(days=365)  # people may label for days; a rank that dies is noticed by its closed socket

PORTION = 1024  # items of a rank that cross at once

LOST = (
    "another process of this run has ended, so this one ends too. The error of the first to fail stands above; "
    "if there is none, it was killed from outside, perhaps for its memory. Go on with ckpt_path=last."
)


class Ranks(Protocol):
    """The processes that play a round together, as one of them sees them.

    Attributes:
        group: Synchronises the metrics of torchmetrics on the CPU; None on one process.
    """

    rank: int
    size: int
    group: Any

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Give every rank the items of all ranks, in order of rank."""
        ...

    def collect(self, mine: Sequence[T]) -> list[T]:
        """Give rank 0 the items of all ranks, in order of rank, and the others none."""
        ...

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        """Call a function on rank 0 only and give every rank its result; an error is raised on every rank."""
        ...


def shard(items: Sequence[T], ranks: Ranks) -> list[T]:
    """Take this rank's share of the items: every size-th one, so that shares differ by at most one.

    Example:
        >>> shard("abcde", OneRank())
        ['a', 'b', 'c', 'd', 'e']
    """
    return list(items[ranks.rank :: ranks.size])


def fair_share(items: Sequence[T], costs: Sequence[float], ranks: Ranks) -> list[T]:
    """Take this rank's share of items that cost so much each: the dearest first, each to the rank with least so far.

    Every rank must call this with the same items and costs.

    Example:
        >>> fair_share("abcde", [1, 3, 2, 3, 1], OneRank())
        ['b', 'd', 'c', 'a', 'e']
    """
    mine: list[T] = []
    loads = [(0.0, rank) for rank in range(ranks.size)]
    for n in sorted(range(len(items)), key=lambda n: -costs[n]):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + costs[n], rank))
        if rank == ranks.rank:
            mine.append(items[n])
    return mine


def gather_rows(mine_XD: Tensor, ranks: Ranks) -> Tensor:
    """Give every rank the rows of all ranks' tensors, in order of rank; one without rows may have any width.

    Example:
        >>> gather_rows(torch.ones(2, 3), OneRank()).shape
        torch.Size([2, 3])
    """
    every = [share_XD for share_XD in ranks.gather([mine_XD]) if len(share_XD)]
    return torch.cat(every) if every else mine_XD


def largest(mine: int, device: torch.device) -> int:
    """Return the largest of all ranks' numbers, by their common device."""
    every = torch.tensor(mine, device=device)
    dist.all_reduce(every, dist.ReduceOp.MAX)
    return int(every)


class OneRank:
    """A run on one process."""

    rank = 0
    size = 1
    group = None

    def gather(self, mine: Sequence[T]) -> list[T]:
        return list(mine)

    collect = gather

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        return act()


class TorchRanks:
    """A run on the processes of torch.distributed's default group; all of them must build this at the same time."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        assert dist.group.WORLD is not None
        self.group = group_that_waits(dist.group.WORLD)

    def gather(self, mine: Sequence[T]) -> list[T]:
        return [item for share in shares_of(self.group, mine) for item in share]

    def collect(self, mine: Sequence[T]) -> list[T]:
        shares: list[list[T]] = [[] for _ in range(self.size)] if self.rank == 0 else []
        for start in range(0, max(self.gather([len(mine)])), PORTION):
            some: list[Any] | None = [None] * self.size if self.rank == 0 else None
            dist.gather_object(list(mine[start : start + PORTION]), some, group=self.group)
            for share, more in zip(shares, some or (), strict=True):
                share += more
        return [item for share in shares for item in share]

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = act()
            except Exception as error:  # any error must reach the ranks that wait
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result


def shares_of(group: Any, mine: Sequence[T]) -> list[list[T]]:
    """Give every process of a group of torch.distributed the items of each, in their order there."""
    shares: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(shares, list(mine), group=group)
    return shares


@cache
def group_that_waits(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Make a group of all processes that waits as long as a round takes, even one labeled by hand."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return group


def current_ranks() -> Ranks:
    """The ranks of this process's group; of a single process, `OneRank`."""
    return TorchRanks() if dist.is_available() and dist.is_initialized() else OneRank()


def first_writer(name: str, mine: str) -> str:
    """Return the value that the first of torchrun's processes published, or `mine` where torchrun is not used.

    Other launchers offer no store for this: Lightning passes the folder on, and on SLURM the run needs a name.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return mine
    store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=5))
    first: bytes = store.compare_set(f"choosy/{name}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", "", mine)
    return first.decode()


def end_with_launcher(every: float = 1.0) -> None:
    """End this process soon after its launcher, if it is a rank; else it would wait for the other ranks without end."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"
    launcher = os.getppid()
    if not launched or launcher == 1:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        say(f"\nRank {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}: {LOST}", file=sys.stderr)
        os._exit(1)  # the main thread may hang in a collective, which no exception would reach

    threading.Thread(target=watch, daemon=True, name="end-with-launcher").start()


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another process of the run is gone."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in broken)
