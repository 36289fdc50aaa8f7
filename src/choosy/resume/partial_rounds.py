"""What a round has sampled, kept before anything is bought for it, until the round's own file is written.

While a rank samples, it keeps what has ended in *parts*, so that a crash costs a few seconds of sampling. When it is
done it keeps its whole *share* instead. Each rank writes files of its own, so that nothing crosses the network. A run
that goes on takes the shares of all ranks; where some of them are missing it takes whatever shares and parts there are
and samples the rest. It may do so on as many ranks as it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.data.pool import SCHEMA, from_row, is_readable, read_about, to_row, write_table
from choosy.parallel.ranks import Ranks, shard
from choosy.types import Candidates, Prompt

EVERY = 2.0  # seconds between two parts, and so what a crash costs,
SHARE = 0.01  # or this share of the time that the round has been sampled, if that is longer: parts stay few


class Kept(NamedTuple):
    """A rank's share of what a round had sampled, and what that had cost."""

    candidates: list[Candidates]
    counts: dict[str, int]
    seconds: dict[str, float]


class Begun(NamedTuple):
    """What is kept of a round that was not sampled to its end: candidates by prompt, and the run's seconds by then."""

    candidates: dict[str, Candidates]
    seconds: dict[str, float]


class Parts:
    """Keeps what a rank samples of a round while it goes on sampling.

    A part holds all that was reported before it: an engine that reports whole batches is interrupted between batches,
    and one that goes on fills the same batches as one that was never interrupted.

    Args:
        folder: Of the rounds.
        number: Of the round.
        ranks: Whose rank samples.
        seconds: Gives the run's seconds so far.
        clock: Gives the time in seconds.
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
        self._who = f"{ranks.rank}of{ranks.size}"
        self._seconds = seconds
        self._clock = clock
        self._began = self._wrote = clock()
        self._next = len(self._files())
        self._waiting: list[Candidates] = []

    def add(self, done: Sequence[Candidates]) -> None:
        """Keep these, now or with those that follow in the next seconds."""
        self._waiting += done
        now = self._clock()
        if now - self._wrote >= max(EVERY, SHARE * (now - self._began)):
            self.write()

    def write(self) -> None:
        """Keep what waits to be kept, whole or not at all."""
        if not self._waiting:
            return
        path = self._folder / f"sampling_{self._number:03d}.{self._who}.{self._next:05d}.parquet"
        write_table(table_of(self._waiting), path, {"round": self._number, "seconds": dict(self._seconds())})
        self._next += 1
        self._waiting = []
        self._wrote = self._clock()

    def forget(self) -> None:
        """The rank's whole share is kept now."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self._folder.glob(f"sampling_{self._number:03d}.{self._who}.*.parquet"))


def begun(folder: Path, number: int, prompts: Iterable[Prompt]) -> Begun:
    """What all ranks have kept of a round that an interruption cut short; damaged files are passed over.

    Raises:
        ValueError: It answers prompts that the run does not have.
    """
    asked = {p.id: p for p in prompts}
    found: dict[str, Candidates] = {}
    seconds: dict[str, float] = {}
    for path in filter(is_readable, files_of(folder, number)):
        for c in read(path, asked):
            found.setdefault(c.prompt.id, c)  # of a share and a part the share: it comes first, and has scores
        seconds = max(seconds, read_about(path)["seconds"], key=lambda spent: sum(spent.values()))
    return Begun(found, seconds)


class News:
    """Gives what all ranks have kept of a round since it was last asked; each prompt once.

    Args:
        folder: Of the rounds.
        number: Of the round.
        prompts: All that may have been kept.
        chosen: Those that the round samples.
        responses: How many responses a prompt gets in the round.
    """

    def __init__(
        self, folder: Path, number: int, prompts: Iterable[Prompt], *, chosen: Iterable[Prompt], responses: int
    ) -> None:
        self._folder = folder
        self._number = number
        self._asked = {p.id: p for p in prompts}
        self._wanted = {p.id for p in chosen}
        self._responses = responses
        self._read: set[Path] = set()

    def __call__(self) -> list[Candidates]:
        found: list[Candidates] = []
        new = [path for path in files_of(self._folder, self._number) if path not in self._read]
        self._read.update(new)
        for path in new:
            with suppress(OSError, pa.ArrowException):  # a rank removes its parts when it has kept its share
                found += [c for c in read(path, self._asked) if len(c.responses) == self._responses]
        found = [c for c in {c.prompt.id: c for c in found}.values() if c.prompt.id in self._wanted]
        self._wanted -= {c.prompt.id for c in found}
        return found


def files_of(folder: Path, number: int) -> list[Path]:
    """All shares of a round, then all parts."""
    return [path for kind in ("sampled", "sampling") for path in sorted(folder.glob(f"{kind}_{number:03d}.*.parquet"))]


def read(path: Path, asked: Mapping[str, Prompt]) -> list[Candidates]:
    """The candidates of a file.

    Raises:
        ValueError: It answers prompts other than these.
    """
    candidates = [from_row(row) for row in pq.read_table(path, page_checksum_verification=True).to_pylist()]
    if strange := [c.prompt.id for c in candidates if c.prompt.id not in asked]:
        raise ValueError(
            f"{path} holds responses to prompt {strange[0]}, which data.train has not: the prompts of a run must "
            "stay the same. Go on with the old ones, or choose another name=..."
        )
    return [replace(c, prompt=asked[c.prompt.id]) for c in candidates]  # a row has no turns of a conversation


def table_of(candidates: Sequence[Candidates]) -> pa.Table:
    """The candidates as rows of a pool."""
    return pa.Table.from_pylist([to_row(c, origin="sampled") for c in candidates], schema=SCHEMA)


def share_file(folder: Path, number: int, rank: int, size: int) -> Path:
    """Where a rank of so many keeps its share of a round."""
    return folder / f"sampled_{number:03d}.{rank}of{size}.parquet"


def keep(
    folder: Path,
    number: int,
    mine: Sequence[Candidates],
    ranks: Ranks,
    *,
    counts: dict[str, int],
    seconds: dict[str, float],
) -> None:
    """Write this rank's share, whole or not at all."""
    about: dict[str, Any] = {"round": number, "counts": counts, "seconds": seconds}
    write_table(table_of(mine), share_file(folder, number, ranks.rank, ranks.size), about)


def kept(folder: Path, number: int, prompts: Sequence[Prompt], ranks: Ranks) -> Kept | None:
    """This rank's share of what the round had sampled before an interruption; None if some of it is not there.

    Raises:
        ValueError: It answers prompts that the run does not have.
    """
    files = ranks.on_rank_zero(lambda: whole_set(folder, number))
    if not files:
        return None
    asked = {p.id: p for p in prompts}
    own = [path for i, path in enumerate(files) if i % ranks.size == ranks.rank]  # whose costs this rank takes over
    about = [read_about(path) for path in own]
    counts: dict[str, int] = {}
    for told in about:
        counts = {k: counts.get(k, 0) + told["counts"].get(k, 0) for k in counts.keys() | told["counts"].keys()}
    candidates = [c for path in (own if len(files) == ranks.size else files) for c in read(path, asked)]
    candidates.sort(key=lambda c: c.prompt.id)
    mine = candidates if len(files) == ranks.size else shard(candidates, ranks)
    return Kept(mine, counts, about[0]["seconds"] if about else {})


def whole_set(folder: Path, number: int) -> list[Path]:
    """The shares of all ranks of a round, if they are all there and readable."""
    for path in sorted(folder.glob(f"sampled_{number:03d}.0of*.parquet")):
        size = int(path.name.split(".")[1].removeprefix("0of"))
        files = [share_file(folder, number, rank, size) for rank in range(size)]
        if all(map(is_readable, files)):
            return files
    return []


def forget(folder: Path, number: int) -> None:
    """The round's own file is there now."""
    for path in files_of(folder, number):
        path.unlink(missing_ok=True)
