"""Finished runs, one a line of a JSON file that is committed: what was typed, the seed, the course."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from choosy.reporting.courses import Course
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import course

PLACES = 4  # decimals that are kept


@dataclass(frozen=True)
class Job:
    """A run that is wanted: an arm with its settings, and a seed.

    Attributes:
        arm: Name of the arm.
        lines: What is typed for it, with `{made}` for the folder of the task's files.
        seed: Of the run.
    """

    arm: str
    lines: Sequence[str]
    seed: int

    @property
    def key(self) -> str:
        """Tells runs apart by everything that is typed for them."""
        return hashlib.sha256(json.dumps([*sorted(self.lines), self.seed]).encode()).hexdigest()[:12]

    def folder(self, runs: Path) -> Path:
        """Where it is played."""
        return runs / self.arm / str(self.seed) / self.key


@dataclass
class Store:
    """The finished runs of a task."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self.rows[Job(row["arm"], row["lines"], row["seed"]).key] = row

    def __contains__(self, job: Job) -> bool:
        return job.key in self.rows

    def add(self, job: Job, folder: Path, commit: str, busy: float) -> None:
        """Keep what a finished run in a folder has spent and reached.

        Its seconds are multiplied by the share of them in which the processor worked for it, so that what else the
        machine does counts for little.
        """
        found = course(read_run(folder))
        row = {"arm": job.arm, "seed": job.seed, "commit": commit, "lines": list(job.lines)}
        row |= {cost: rounded(amounts) for cost, amounts in found.spent.items()}
        row |= {"busy": round(busy, PLACES), "seconds": rounded([busy * seconds for seconds in found.spent["seconds"]])}
        row |= {"measure": found.measure, "quality": rounded(found.quality), "kl": rounded(found.kl)}
        row["answers"] = [[round(100 * x) for x in each] for _, each in sorted(found.answers.items())]
        with self._lock:
            self.rows[job.key] = row
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def course(self, job: Job) -> Course:
        """What a finished run has spent and reached."""
        row = self.rows[job.key]
        spent = {cost: tuple(row[cost]) for cost in ("labels", "tokens", "seconds")}
        answers = {str(n): tuple(x / 100 for x in each) for n, each in enumerate(row["answers"])}
        return Course(spent, tuple(row["quality"]), tuple(row["kl"]), answers, row["measure"])


def rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(number), PLACES) for number in numbers]
