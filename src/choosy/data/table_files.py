"""Parquet files that are replaced atomically, with a checksum of all their bytes.

A crash leaves the old file or the new one, and one that has changed on the disk is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.files import replacing
from choosy.sealed import BLANK, is_whole, seal

ROWS = 2**14  # of a part of a file, which is read at once
REPEATED = ["split", "origin"]  # columns of few values; a dictionary of others takes half of the time of writing
HOW: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": REPEATED,
    "write_statistics": ["split", "prompt_id", "sampled_in"],  # which rows are looked for by; of texts they take time
    "row_group_size": ROWS,
    "write_page_checksum": True,
}
FACTS = 2**20  # bytes at the end of a file that hold the facts
NO_CHECKSUM = (
    "it has no checksum: its end is lost, or an earlier version of Choosy wrote it. That version can finish the run; "
    "a new one, under another name=... or run_dir=..., has its labels for free with labels.ledger=... of its ledger"
)


def write_table(table: pa.Table, path: Path, about: Mapping[str, Any]) -> Path:
    """Write a table with facts about it; a reader sees the old file or the new one, never a part."""
    facts = {"choosy": json.dumps(about), "choosy-checksum": BLANK}
    with replacing(path, private=True) as unfinished, unfinished.open("w+b") as file:
        pq.write_table(table.replace_schema_metadata(facts), file, **HOW)
        seal(file, tail=FACTS)  # the facts come after all data
    return path


def read_about(path: Path) -> dict[str, Any]:
    """Read the facts that were written with a table; a ValueError if its file is damaged."""
    refuse_damaged(path)
    return facts_of(path)


def facts_of(path: Path) -> dict[str, Any]:
    """Read the facts that were written with a table that is known to be whole."""
    about: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(b"choosy", b"{}"))
    return about


def read_table(path: Path, **what: Any) -> pa.Table:
    """Read a table, or what is named of it as of `pyarrow.parquet.read_table`; a ValueError if its file is damaged."""
    refuse_damaged(path)
    return pq.read_table(path, **what)


def refuse_damaged(path: Path) -> None:
    """Refuse a file that is not there or damaged."""
    if why := damage(path):
        raise ValueError(f"{path} is damaged ({why}); put back a copy of it.")


def damage(path: Path) -> str | None:
    """Say what is wrong with a file, read to its last byte; None if nothing is."""
    try:
        with path.open("rb") as file:
            whole = is_whole(file, tail=FACTS)
        return {True: None, False: "its bytes are not those that were written", None: NO_CHECKSUM}[whole]
    except OSError as error:
        return str(error).splitlines()[0]


def is_there(path: Path, say: Callable[[str], None]) -> bool:
    """Whether a file of a run is there and whole; one that is damaged is named, and is written again."""
    if not path.exists():
        return False
    if why := damage(path):
        say(f"{path} is damaged ({why}); what it held is made again, with the same labels.")
    return why is None


def files_of_rounds(folder: Path, ending: str) -> list[Path]:
    """The files `round_NUMBER.ENDING` of a folder, in the order of their numbers, also beyond three digits."""
    return sorted(folder.glob(f"round_*.{ending}"), key=lambda path: (len(path.name), path.name))
