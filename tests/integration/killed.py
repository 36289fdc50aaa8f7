"""train.py that is killed at a point, the COUNTth time it gets there: python killed.py POINT COUNT name=value ..."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import Forked

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import choosy.data.pool
import choosy.labeling.ledger
import choosy.models.tokens
import choosy.resume.checkpoints
import choosy.resume.partial_rounds
import choosy.sampling.elsewhere
from choosy.main import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_labeled() -> Callable[[], None]:
    """Die once a second label is in the ledger."""
    write, written = choosy.labeling.ledger.Ledger.write, threading.Semaphore(0)

    def counted(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        written.release()

    choosy.labeling.ledger.Ledger.write = counted

    def last() -> None:
        for _ in range(2):
            written.acquire(timeout=60)
        die()

    return last


def countdown(count: int, act: Callable[..., Any], *, last: Callable[..., Any]) -> Callable[..., Any]:
    """`act`, and `last` instead of it at the count."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return (last if calls == count else act)(*args, **kwargs)

    return counted


def half_a_checkpoint(checkpoint: Any, file: Any) -> None:
    whole = io.BytesIO()
    save(checkpoint, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


def half_a_table(table: Any, file: Any, **how: Any) -> None:
    whole = io.BytesIO()
    write_table(table, whole, **how)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


save, write_table = torch.save, choosy.data.pool.pq.write_table

if __name__ == "__main__":
    point, count, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    choosy.resume.partial_rounds.EVERY = math.inf  # or a slow machine would write parts at any point
    choosy.sampling.elsewhere.Popen = Forked
    match point:
        case "sampling":
            decode = choosy.models.tokens.Tokens.decode
            choosy.models.tokens.Tokens.decode = countdown(count, decode, last=lambda *args: die())
        case "sampling kept" | "sampling labeled":
            choosy.resume.partial_rounds.EVERY = choosy.resume.partial_rounds.SHARE = 0.0
            decode = choosy.models.tokens.Tokens.decode
            last = die if point == "sampling kept" else die_labeled()
            choosy.models.tokens.Tokens.decode = countdown(count, decode, last=lambda *args: last())
        case "sampling ahead":
            choosy.resume.partial_rounds.EVERY = choosy.resume.partial_rounds.SHARE = 0.0
            write = choosy.resume.partial_rounds.PartWriter.write
            choosy.resume.partial_rounds.PartWriter.write = countdown(count, write, last=lambda *args: die())
        case "nowhere":
            pass
        case "labeling":
            import toy

            toy.vowels = countdown(count, toy.vowels, last=lambda *args: die())
        case "training":
            step = torch.optim.AdamW.step
            torch.optim.AdamW.step = countdown(count, step, last=lambda *args, **kwargs: die())
        case "checkpoint":
            torch.save = countdown(count, save, last=half_a_checkpoint)
        case "table":
            of_round = countdown(count, write_table, last=half_a_table)
            choosy.data.pool.pq.write_table = lambda table, file, **how: (
                of_round if ".round_" in str(file.name) else write_table
            )(table, file, **how)
        case _:
            sys.exit(f"no point {point}")
    main()
