"""Parquet files that are replaced atomically, with facts about their table and a checksum of all their bytes.

A crash leaves the old file or the new one, and one that has changed on the disk is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.files import replacing

CHECKSUM = "choosy-checksum"  # its name in the footer
DIGITS = 64


def write_table(table: pa.Table, path: Path, about: Mapping[str, Any]) -> Path:
    """Write a table with facts about it; a reader sees the old file or the new one, never a part."""
    table = table.replace_schema_metadata({"choosy": json.dumps(about), CHECKSUM: f"sha256:{'0' * DIGITS}"})
    with replacing(path) as unfinished, unfinished.open("w+b") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        at = _checksum_at(file)
        assert at is not None, "Parquet keeps a schema's metadata in the footer as it is"
        found = _checksum(file, at)
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
            at = _checksum_at(file)
            if at is None:
                return "its checksum is damaged" if CHECKSUM.encode() in _end_of(file) else "it has no checksum"
            file.seek(at)
            return None if file.read(DIGITS) == _checksum(file, at) else "its bytes are not those that were written"
    except OSError as error:
        return str(error).splitlines()[0]


def is_readable(path: Path) -> bool:
    """Whether a file is there and undamaged to its last byte."""
    return damage(path) is None


def _end_of(file: BinaryIO) -> bytes:
    """The end of a file, with the metadata of its writer."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**20))
    return file.read()


def _checksum_at(file: BinaryIO) -> int | None:
    """The place of the digits of a file's checksum; None if it has none, or not any more."""
    end = _end_of(file)
    places = [found.end() - DIGITS for found in re.finditer(rb"sha256:[0-9a-f]{%d}" % DIGITS, end)]
    return file.tell() - len(end) + places[-1] if places else None  # the metadata comes after all data


def _checksum(file: BinaryIO, at: int) -> bytes:
    """The checksum of a file, with zeros for its own digits."""
    sha = hashlib.sha256()
    file.seek(0)
    while part := file.read(min(2**20, at - file.tell())):
        sha.update(part)
    sha.update(b"0" * DIGITS)
    file.seek(at + DIGITS)
    while part := file.read(2**20):
        sha.update(part)
    return sha.hexdigest().encode()
