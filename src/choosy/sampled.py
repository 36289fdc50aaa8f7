"""What a round has sampled, kept from before its first label is bought until the round's own file is written.

Each rank keeps its share in a file of its own, so that nothing crosses the network; a run that goes on takes the
shares of all ranks or of none, on as many ranks as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.pool import SCHEMA, from_row, is_readable, read_about, to_row, write_table
from choosy.ranks import Ranks, shard
from choosy.types import Candidates, Prompt


class Kept(NamedTuple):
    """A rank's share of what a round had sampled, and what that had cost."""

    candidates: list[Candidates]
    counts: dict[str, int]
    seconds: dict[str, float]


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
    table = pa.Table.from_pylist([to_row(c, origin="sampled") for c in mine], schema=SCHEMA)
    about: dict[str, Any] = {"round": number, "counts": counts, "seconds": seconds}
    write_table(table, share_file(folder, number, ranks.rank, ranks.size), about)


def kept(folder: Path, number: int, prompts: Sequence[Prompt], ranks: Ranks) -> Kept | None:
    """This rank's share of what the round had sampled before an interruption; None if some of it is not there.

    Raises:
        ValueError: It answers prompts that the run does not have.
    """
    files = ranks.once(lambda: whole_set(folder, number))
    if not files:
        return None
    asked = {p.id: p for p in prompts}
    own = [path for i, path in enumerate(files) if i % ranks.size == ranks.rank]  # whose costs this rank takes over
    about = [read_about(path) for path in own]
    counts: dict[str, int] = {}
    for told in about:
        counts = {k: counts.get(k, 0) + told["counts"].get(k, 0) for k in counts.keys() | told["counts"].keys()}
    rows = [row for path in (own if len(files) == ranks.size else files) for row in pq.read_table(path).to_pylist()]
    candidates = sorted((from_row(row) for row in rows), key=lambda c: c.prompt.id)
    if strange := [c.prompt.id for c in candidates if c.prompt.id not in asked]:
        raise ValueError(
            f"{files[0]} holds responses to prompt {strange[0]}, which data.train has not: the prompts of a run must "
            "stay the same. Go on with the old ones, or choose another name=..."
        )
    candidates = [replace(c, prompt=asked[c.prompt.id]) for c in candidates]  # a row has no turns of a conversation
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
    for path in folder.glob(f"sampled_{number:03d}.*.parquet"):
        path.unlink()
