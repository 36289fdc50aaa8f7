"""Responses of a round that is being sampled, kept on disk so that a crash does not lose them.

While a rank samples, it writes what is ready in *parts* of its own. A resumed run reads the parts of all ranks and
samples the rest, on any number of ranks. The parts are deleted when the round's own file is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from choosy.data.pool import read_candidates
from choosy.data.pool_rows import POOL_SCHEMA, to_row
from choosy.data.table_files import damage, read_about, write_table
from choosy.parallel.ranks import Ranks
from choosy.terminal import logger
from choosy.types import Candidates, Prompt

log = logger(__name__)

EVERY = 2.0  # seconds between two parts, and so what a crash costs,
SHARE = 0.01  # or this share of the time that the round has been sampled, if that is longer: parts stay few


class PartWriter:
    """Writes what a rank samples in a round while it samples the rest.

    A part holds everything that was reported before it: an engine that reports whole batches is interrupted between
    batches, so that a resumed run fills the same batches as one that was never interrupted.

    The rank of this process names its files; `seconds` returns the run's seconds so far, by phase.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        ranks: Ranks,
        *,
        seconds: Callable[[], Mapping[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._number = number
        self._name = f"sampling_{number:03d}.{ranks.rank}of{ranks.size}"
        self._seconds = seconds
        self._clock = clock
        self._began = self._wrote = clock()
        self._next = len(list(folder.glob(f"{self._name}.*.parquet")))
        self._waiting: list[Candidates] = []

    def add(self, done: Sequence[Candidates]) -> None:
        """Write these now, or together with those of the next seconds."""
        self._waiting += done
        now = self._clock()
        if now - self._wrote >= max(EVERY, SHARE * (now - self._began)):
            self.write()

    def write(self) -> None:
        """Write everything that waits, completely or not at all."""
        if not self._waiting:
            return
        table = pa.Table.from_pylist([to_row(c, origin="sampled") for c in self._waiting], schema=POOL_SCHEMA)
        path = self._folder / f"{self._name}.{self._next:05d}.parquet"
        write_table(table, path, {"round": self._number, "seconds": dict(self._seconds())})
        self._next += 1
        self._waiting = []
        self._wrote = self._clock()


def read_begun(
    folder: Path, number: int, prompts: Iterable[Prompt], *, responses: int
) -> tuple[dict[str, Candidates], dict[str, float]]:
    """Read what all ranks have written of an interrupted round.

    Damaged files are named and skipped, and so are candidates with another number of responses.

    Returns:
        The candidates by prompt id, and the run's seconds by then.
    """
    known = {p.id: p for p in prompts}
    found: dict[str, Candidates] = {}
    seconds: dict[str, float] = {}
    for path in files_of(folder, number):
        if why := damage(path):
            log.warning("%s is damaged (%s): its responses are sampled again.", path, why)
            continue
        candidates = read_candidates(path)
        if unknown := [c.prompt.id for c in candidates if c.prompt.id not in known]:
            raise ValueError(
                f"{path} holds responses to prompt {unknown[0]}, which this round does not sample any more: data.train "
                "or data.prompts_per_round is another. Type the old one to resume, or choose another name=... or "
                "run_dir=..."
            )
        found |= {
            c.prompt.id: replace(c, prompt=known[c.prompt.id]) for c in candidates if len(c.responses) == responses
        }
        seconds = max(seconds, read_about(path)["seconds"], key=lambda spent: sum(spent.values()))
    return found, seconds


def unlabeled(folder: Path, number: int, prompts: Iterable[Prompt], *, responses: int) -> Iterator[list[Candidates]]:
    """Yield, without end, what all ranks have written of a round since the last time; each prompt once."""
    left = {p.id: p for p in prompts}
    seen: set[Path] = set()
    while True:
        found: dict[str, Candidates] = {}
        for path in files_of(folder, number):
            if path not in seen:
                seen.add(path)
                with suppress(ValueError):  # a part of an interrupted run may be damaged
                    found |= {c.prompt.id: c for c in read_candidates(path) if len(c.responses) == responses}
        yield [replace(c, prompt=left.pop(name)) for name, c in found.items() if name in left]


def files_of(folder: Path, number: int) -> list[Path]:
    """Return all parts of a round."""
    return sorted(folder.glob(f"sampling_{number:03d}.*.parquet"))


def forget(folder: Path, number: int) -> None:
    """Delete the parts of a round whose own file is written."""
    for path in files_of(folder, number):
        path.unlink(missing_ok=True)
