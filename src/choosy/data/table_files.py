"""Parquet files that are replaced atomically, with a checksum of all their bytes.

A crash leaves the old file or the new one, and one that has changed on the disk is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.files import replacing

MARK = b"sha256:"
DIGITS = 64


def write_table(table: pa.Table, path: Path, about: Mapping[str, Any]) -> Path:
    """Write a table with facts about it; a reader sees the old file or the new one, never a part."""
    facts = {"choosy": json.dumps(about), "choosy-checksum": MARK + b"0" * DIGITS}
    with replacing(path) as unfinished, unfinished.open("w+b") as file:
        pq.write_table(table.replace_schema_metadata(facts), file, compression="zstd", write_page_checksum=True)
        at, _, found = _checksum(file)
        file.seek(at)
        file.write(found)
    return path


def read_about(path: Path) -> dict[str, Any]:
    """Read the facts that were written with a table."""
    about: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(b"choosy", b"{}"))
    return about


def damage(path: Path) -> str | None:
    """Say what is wrong with a file, read to its last byte; None if nothing is."""
    try:
        with path.open("rb") as file:
            _, written, found = _checksum(file)
    except OSError as error:
        return str(error).splitlines()[0]
    return None if written == found else "its bytes are not those that were written"


def _checksum(file: BinaryIO) -> tuple[int, bytes, bytes]:
    """Where a file's checksum stands, what stands there, and the checksum of all other bytes."""
    size = file.seek(0, os.SEEK_END)
    end = file.seek(max(0, size - 2**20))  # which holds the facts: they come after all data
    at = end + file.read().rfind(MARK) + len(MARK)
    file.seek(at)
    written = file.read(DIGITS)
    sha = hashlib.sha256()
    for start, stop in ((0, at), (at + DIGITS, size)):
        file.seek(start)
        while part := file.read(max(0, min(2**20, stop - file.tell()))):
            sha.update(part)
    return at, written, sha.hexdigest().encode()
