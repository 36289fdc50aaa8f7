"""The pool of a run in Arrow files, which all ranks map into their memory, so that a machine holds it once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.data.pool import Keep, Pool, about_round, round_file, rows_to_train_on
from choosy.data.pool_rows import POOL_SCHEMA, as_rows
from choosy.files import create_private, make_folder
from choosy.parallel.neighbours import share_of
from choosy.types import Candidates

if TYPE_CHECKING:  # which imports torch
    from choosy.parallel.ranks import Ranks

PIECE = 4096  # rows that are in memory at once while a pool is written


def put_together(pool: Pool, mine: Sequence[Candidates], folder: Path, ranks: Ranks, *, round: int, keep: Keep) -> Pool:
    """The pool after a round, of which each rank has its share of the candidates; every rank must call this.

    Each rank writes its rows to a file, and then its part of the pool; no candidates cross between the ranks.
    """
    files = [folder / f"fresh_{round:03d}.{rank}of{ranks.size}.arrow" for rank in range(ranks.size)]
    write_pieces(fresh_pieces(pool, mine), files[ranks.rank])
    ranks.gather([])  # all are written
    cut = [*aligned([pool.table, *map(read_pieces, files)])]
    rows = [0, *accumulate(sum(map(len, tables)) for tables in cut)]  # before each piece, and of all
    here = [
        tables
        for tables, before in zip(cut, rows, strict=False)
        if before * ranks.size // max(rows[-1], 1) == ranks.rank
    ]
    result = mapped((merged(*tables, round=round, keep=keep) for tables in here), folder, ranks, round)
    files[ranks.rank].unlink()
    return result


def read_round(folder: Path, number: int, ranks: Ranks) -> tuple[Pool, dict[str, Any]]:
    """The pool as it stood after a round, and what was written about it; every rank must call this.

    Raises:
        ValueError: The file is missing or damaged; the message names it and the last good one.
    """
    about = ranks.on_rank_zero(lambda: about_round(folder, number))
    return mapped(round_pieces(round_file(folder, number), ranks), folder, ranks, number), about


def mapped(part: Iterable[pa.Table], folder: Path, ranks: Ranks, number: int) -> Pool:
    """Write this rank's part of a round's pool, and map those of all ranks; what was mapped before is deleted.

    The parts follow each other in the order of their prompts' ids. Those of this round may be mapped already, and they
    are replaced when no rank reads them any more: over NFS another machine could not go on to read them.
    """
    files = [folder / f"pool_{number:03d}.{rank}of{ranks.size}.arrow" for rank in range(ranks.size)]
    unfinished = [file.with_name(f"{file.name}.unfinished") for file in files]
    write_pieces(part, unfinished[ranks.rank])
    ranks.gather([])  # all are written
    unfinished[ranks.rank].replace(files[ranks.rank])
    ranks.gather([])  # all are in their places
    pool = Pool(pa.concat_tables(map(read_pieces, files)), round=number)
    ranks.gather([])  # all have mapped them
    if ranks.rank == 0:
        forget_mapped(folder, but=[*files, *unfinished])  # another rank may write its part of the next pool already
    return pool


def forget_mapped(folder: Path, but: Collection[Path] = ()) -> None:
    """Delete the files of a pool; a rank of this machine that has mapped them can still read them."""
    for path in folder.glob("pool_*.arrow*") if but else folder.glob("*.arrow*"):
        if path not in but:
            path.unlink(missing_ok=True)


def write_pieces(pieces: Iterable[pa.Table], path: Path) -> None:
    """Write rows of pools to one file, which its owner alone can read."""
    make_folder(path.parent)
    create_private(path)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, POOL_SCHEMA) as rows:
        for piece in pieces:
            rows.write_table(piece)


def read_pieces(path: Path) -> pa.Table:
    """Map a file; its rows are read when they are used."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def round_pieces(path: Path, ranks: Ranks) -> Iterator[pa.Table]:
    """This rank's part of the rows to train on of a round's file, some at a time."""
    with pq.ParquetFile(path) as file:
        groups = range(file.num_row_groups)[share_of(file.num_row_groups, ranks.rank, ranks.size)]
        for batch in file.iter_batches(PIECE, row_groups=groups) if groups else ():
            yield rows_to_train_on(pa.Table.from_batches([batch])).select(POOL_SCHEMA.names).cast(POOL_SCHEMA)


def fresh_pieces(pool: Pool, mine: Sequence[Candidates]) -> Iterator[pa.Table]:
    """The rows of candidates in the order of their prompts' ids, some at a time."""
    fresh = pool.with_earlier(sorted(mine, key=lambda c: c.prompt.id))
    yield from (as_rows(fresh[start : start + PIECE]) for start in range(0, len(fresh), PIECE))


def merged(old: pa.Table, *fresh: pa.Table, round: int, keep: Keep) -> pa.Table:
    """The rows of a pool after a round, of some of its prompts: those that were there and those of each rank."""
    return Pool(old).put_rows(pa.concat_tables(fresh), round=round, keep=keep).table


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
