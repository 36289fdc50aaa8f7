"""train.py that is killed at a point, the COUNTth time it gets there: python killed.py POINT COUNT name=value ..."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import choosy.checkpoints
import choosy.policy
import choosy.pool
from choosy.main import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


save, write_table = torch.save, choosy.pool.pq.write_table

if __name__ == "__main__":
    point, count, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    match point:
        case "sampling":
            decode = choosy.policy.Policy.decode
            choosy.policy.Policy.decode = countdown(count, decode, last=lambda *args: die())
        case "labeling":
            import toy

            toy.vowels = countdown(count, toy.vowels, last=lambda *args: die())
        case "training":
            step = torch.optim.AdamW.step
            torch.optim.AdamW.step = countdown(count, step, last=lambda *args, **kwargs: die())
        case "checkpoint":
            torch.save = countdown(count, save, last=half_a_checkpoint)
        case "table":
            choosy.pool.pq.write_table = countdown(count, write_table, last=half_a_table)
        case _:
            sys.exit(f"no point {point}")
    main()
