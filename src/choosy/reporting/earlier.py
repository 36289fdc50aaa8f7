"""Writes the runs of a sweep into compare.csv, and reads them there."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choosy.foreign import csv_text, from_cell
from choosy.reporting.courses import Arm, Course

WANTED = ("typed", "seed", "labels", "seconds", "quality", "finished")  # columns


@dataclass(frozen=True)
class EarlierRun:
    """A run of an earlier sweep, as far as it came.

    Attributes:
        words: What was typed for it, without its seed.
        course: Its costs and its quality at the start and at each evaluation.
    """

    words: tuple[str, ...]
    course: Course


def write_compared(arms: Mapping[str, Arm], costs: Sequence[str], path: Path) -> None:
    """Write a row for each evaluation of each run."""
    columns = ("arm", "seed", "evaluation", *costs, "kl", "quality", "typed", "finished")
    rows = (dict(zip(columns, row, strict=True)) for row in _evaluations(arms, costs))
    path.write_text(csv_text(columns, rows), encoding="utf-8", newline="")


def _evaluations(arms: Mapping[str, Arm], costs: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for name, arm in arms.items():
        for seed, run in sorted(arm.items()):
            kl = run.kl or [None] * len(run.quality)
            rows = zip(*(run.spent[cost] for cost in costs), kl, run.quality, strict=True)
            of_run = (shlex.join(run.typed), run.finished)
            yield from ((name, seed, number, *row, *of_run) for number, row in enumerate(rows))


def read_compared(path: str | Path) -> list[EarlierRun]:
    """Read the runs of a table that `choosy compare` has written.

    Raises:
        ValueError: There is no such file, or it is no such table.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"Wanted the compare.csv of a sweep; there is no file {path}. Type choosy compare DIR")
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        if missing := [name for name in WANTED if name not in (table.fieldnames or ())]:
            raise ValueError(f"{path} has no column {', '.join(missing)}: type choosy compare on its sweep again")
        rows = [row for row in table if row["typed"]]  # else it is not known what was typed
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        runs.setdefault((row["typed"], row["seed"]), []).append(row)
    return [EarlierRun(tuple(shlex.split(from_cell(typed))), course_of(own)) for (typed, _), own in runs.items()]


def course_of(rows: list[dict[str, str]]) -> Course:
    """The course of a run, of which each evaluation has a row."""
    spent = {cost: tuple(float(row[cost]) for row in rows) for cost in ("labels", "seconds")}
    finished = rows[-1]["finished"] == "True"
    return Course(spent, tuple(float(row["quality"]) for row in rows), finished=finished)
