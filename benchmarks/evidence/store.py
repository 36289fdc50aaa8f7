"""Finished runs, one a line of a JSON file that is committed: what was typed, the seed, the start, the course."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from choosy.reporting.courses import Course
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import course

PLACES = 4  # decimals that are kept
Start = tuple[object, ...]  # the digest of the task's files, and the qualities of the held-out answers at the start


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
    """The finished runs of a task.

    Runs of one seed are compared with each other only if they begin from the same answers. Where a task trains its
    policy itself, another machine may train another one: so each run says which files it began from.

    Attributes:
        path: The file that they are kept in.
        made: Tells the task's files apart (see `digest`): a job is in the store if it was run with these files. None =
            with any files.
    """

    path: Path
    made: str | None = None
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        if self.path.exists():
            for row in map(json.loads, whole_lines(self.path).splitlines()):
                self.rows.setdefault(Job(row["arm"], row["lines"], row["seed"]).key, []).append(row)

    def __contains__(self, job: Job) -> bool:
        return any(self.made in (None, row.get("made")) for row in self.rows.get(job.key, []))

    @property
    def seeds(self) -> set[int]:
        """The seeds of the runs."""
        return {row["seed"] for rows in self.rows.values() for row in rows}

    def add(self, job: Job, folder: Path, commit: str, busy: float) -> None:
        """Keep what a finished run in a folder has spent and reached.

        Its seconds are multiplied by the share of them in which the processor worked for it, so that what else the
        machine does counts for little.
        """
        found = course(read_run(folder))
        row = {"arm": job.arm, "seed": job.seed, "commit": commit, "made": self.made, "lines": list(job.lines)}
        row |= {cost: rounded(amounts) for cost, amounts in found.spent.items()}
        row |= {"busy": round(busy, PLACES), "seconds": rounded([busy * seconds for seconds in found.spent["seconds"]])}
        row |= {"measure": found.measure, "quality": rounded(found.quality), "kl": rounded(found.kl)}
        row["answers"] = [[hundredths(x) for x in each] for _, each in sorted(found.answers.items())]
        with self._lock:
            self.rows.setdefault(job.key, []).append(row)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                os.truncate(self.path, len(whole_lines(self.path)))
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def courses(self, job: Job) -> dict[Start, Course]:
        """What finished runs have spent and reached, by what they began from, the newest first."""
        courses = {}
        for row in reversed(self.rows.get(job.key, [])):
            found = course_of(row)
            start = (row.get("made"), found.quality[0], *(each[0] for each in found.answers.values()))
            courses.setdefault(start, found)
        return courses


def course_of(row: dict[str, Any]) -> Course:
    """What a row says that its run has spent and reached."""
    spent = {cost: tuple(row[cost]) for cost in ("labels", "tokens", "seconds")}
    answers = {str(n): tuple(math.nan if x is None else x / 100 for x in each) for n, each in enumerate(row["answers"])}
    return Course(spent, tuple(row["quality"]), tuple(row["kl"]), answers, row["measure"])


def whole_lines(path: Path) -> bytes:
    """A file without what is behind its last line, which a kill may have cut."""
    raw = path.read_bytes()
    return raw[: raw.rfind(b"\n") + 1]


def digest(made: Path) -> str:
    """Tells the files of a task apart by its prompts and its policy's weights; "" for a task that makes none."""
    files = [made / "train.jsonl", *sorted(made.glob("policy/*.safetensors"))] if made != Path() else []
    return hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()[:12] if files else ""


def hundredths(number: float) -> int | None:
    """A number times 100, without decimals; None if it is not known."""
    return None if math.isnan(number) else round(100 * number)


def rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(number), PLACES) for number in numbers]
