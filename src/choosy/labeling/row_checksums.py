"""Checksums of the rows of SQLite files, by which one that has changed on the disk is noticed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

ERRORS = (sqlite3.Error, UnicodeDecodeError)  # of a damaged file; the second where SQLite quotes it in its message
COLUMN = "checksum TEXT NOT NULL DEFAULT ''"


def checksum(texts: Iterable[str], numbers: Iterable[str] = ()) -> str:
    """The checksum of a row with these columns, or values, as an expression of SQL."""
    as_bytes = (f"typeof({text}), CAST({text} AS BLOB)" for text in texts)  # damaged ones may be no UTF-8
    return f"row_checksum({', '.join([*as_bytes, *numbers])})"


def use_checksums(db: sqlite3.Connection) -> None:
    """Let a connection compute checksums."""
    db.create_function("row_checksum", -1, row_checksum, deterministic=True)


def row_checksum(*values: Any) -> str:
    """A hash of the values of a row, with their types.

    Example:
        >>> row_checksum("a", 1.0) == row_checksum("a", 1.0) != row_checksum("a", 1)
        True
    """
    digest = blake2b(digest_size=8)
    for value in values:
        raw = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()
