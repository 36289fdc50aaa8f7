"""Collectives between threads of one process, without torch.distributed, for tests and benchmarks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class FakeRanks:
    """One of `size` ranks that are threads of this process."""

    group = None

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
        everyones = list(self._board)
        self._barrier.wait()
        return everyones

    def gather(self, mine: Sequence[T]) -> list[T]:
        return [item for share in self._exchange(list(mine)) for item in share]

    def collect(self, mine: Sequence[T]) -> list[T]:
        every = self.gather(mine)
        return every if self.rank == 0 else []

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        result: T = self._exchange(act() if self.rank == 0 else None)[0]
        return result
