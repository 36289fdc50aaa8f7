"""The pool of a run in one Arrow file, which all ranks map into their memory, so that a machine holds it once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.data.pool import Keep, Pool, refuse_unreadable, round_file, rows_to_train_on
from choosy.data.pool_rows import POOL_SCHEMA, as_rows
from choosy.data.table_files import read_about
from choosy.files import create_private, make_folder
from choosy.types import Candidates

if TYPE_CHECKING:  # which imports torch
    from choosy.parallel.ranks import Ranks

PIECE = 4096  # rows that are in memory at once while a pool is written


def put_together(pool: Pool, mine: Sequence[Candidates], folder: Path, ranks: Ranks, *, round: int, keep: Keep) -> Pool:
    """The pool after a round, of which each rank has its share of the candidates; every rank must call this.

    Each rank writes its rows to a file, and rank 0 writes the pool; no candidates cross between the ranks.
    """
    files = [folder / f"fresh_{round:03d}.{rank}of{ranks.size}.arrow" for rank in range(ranks.size)]
    write_pieces(fresh_pieces(pool, mine), files[ranks.rank])
    ranks.gather([])  # all are written
    result = mapped(lambda: merged(pool, [*map(read_pieces, files)], round=round, keep=keep), folder, ranks, round)
    files[ranks.rank].unlink()
    return result


def read_round(folder: Path, number: int, ranks: Ranks) -> tuple[Pool, dict[str, Any]]:
    """The pool as it stood after a round, and what was written about it; every rank must call this.

    Raises:
        ValueError: The file is missing or damaged; the message names it and the last good one.
    """
    path = round_file(folder, number)

    def about() -> dict[str, Any]:
        refuse_unreadable(folder, number)
        return read_about(path)

    known = ranks.on_rank_zero(about)
    return mapped(lambda: round_pieces(path), folder, ranks, number), known


def mapped(pieces: Callable[[], Iterable[pa.Table]], folder: Path, ranks: Ranks, number: int) -> Pool:
    """Write the pool of a round on rank 0, and map it on every rank; the one that was mapped before is deleted."""
    path = folder / f"pool_{number:03d}.arrow"
    ranks.on_rank_zero(lambda: write_pieces(pieces(), path))
    pool = Pool(read_pieces(path), round=number)
    ranks.gather([])  # all have mapped it
    if ranks.rank == 0:
        forget_mapped(folder, but=path)
    return pool


def forget_mapped(folder: Path, but: Path | None = None) -> None:
    """Delete the files of a pool; a rank of this machine that has mapped one goes on to read it."""
    for path in folder.glob("pool_*.arrow*") if but else folder.glob("*.arrow*"):
        if path != but:
            path.unlink(missing_ok=True)


def write_pieces(pieces: Iterable[pa.Table], path: Path) -> None:
    """Write rows of pools to one file, which takes the place of an earlier one at once."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    make_folder(path.parent)
    create_private(unfinished)
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, POOL_SCHEMA) as rows:
        for piece in pieces:
            rows.write_table(piece)
    unfinished.replace(path)


def read_pieces(path: Path) -> pa.Table:
    """Map a file; its rows are read when they are used."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def round_pieces(path: Path) -> Iterator[pa.Table]:
    """The rows to train on of a round's file, some at a time."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            train = rows_to_train_on(file.read_row_group(number)).select(POOL_SCHEMA.names).cast(POOL_SCHEMA)
            yield from (train.slice(start, PIECE) for start in range(0, len(train), PIECE))


def fresh_pieces(pool: Pool, mine: Sequence[Candidates]) -> Iterator[pa.Table]:
    """The rows of candidates in the order of their prompts' ids, some at a time."""
    fresh = pool.with_earlier(sorted(mine, key=lambda c: c.prompt.id))
    yield from (as_rows(fresh[start : start + PIECE]) for start in range(0, len(fresh), PIECE))


def merged(pool: Pool, fresh: Sequence[pa.Table], *, round: int, keep: Keep) -> Iterator[pa.Table]:
    """The rows of a pool after a round, some at a time; the fresh ones of each rank are in the order of their ids."""
    for old, *new in aligned([pool.table, *fresh]):
        yield Pool(old).put_rows(pa.concat_tables(new), round=round, keep=keep).table


def aligned(tables: Sequence[pa.Table]) -> Iterator[list[pa.Table]]:
    """Cut tables in the order of their prompts' ids at the same ids, so that a prompt's rows stay together.

    Example:
        >>> one, other = (pa.table({"prompt_id": names}) for names in (["a", "a", "c"], ["b", "c"]))
        >>> [[len(piece) for piece in pieces] for pieces in aligned([one, other])]
        [[3, 2]]
    """
    ids = [table["prompt_id"] for table in tables]
    cuts = sorted({column[row].as_py() for column in ids for row in range(PIECE, len(column), PIECE)})
    starts = [0] * len(tables)
    for cut in [*cuts, None]:
        ends = [len(of) if cut is None else bisect_left(of, cut, key=lambda one: one.as_py()) for of in ids]
        yield [table.slice(start, end - start) for table, start, end in zip(tables, starts, ends, strict=True)]
        starts = ends
