"""Finds what is damaged in a ledger, and saves what is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from choosy.labeling.ledger import Ledger
from choosy.labeling.ledger_format import VERSION
from choosy.labeling.row_checksums import WHOLE, use_checksums


class Checked(NamedTuple):
    """What was read of a ledger: the rows of its labels that are whole, and a name for each that is not."""

    whole: list[dict[str, Any]]
    damaged: list[str]


def fault(path: str | Path) -> str | None:
    """What is wrong with a ledger's file, as the end of a sentence about it; None if nothing is."""
    if not Path(path).is_file():
        return "is not there"
    try:
        with closing(_opened(path)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(1)")]
            db.execute("SELECT count(*) FROM labels")
            if found == ["ok"] and _version(db) >= VERSION:
                damaged = db.execute(f"SELECT CAST(key AS BLOB) FROM labels WHERE NOT {WHOLE} LIMIT 1").fetchone()
                found = found if damaged is None else [f"{_named(*damaged)} is not as it was written"]
    except sqlite3.Error as error:
        return f"is damaged ({error})"
    return None if found == ["ok"] else f"is damaged ({found[0]})"


def check(path: str | Path) -> Checked:
    """Read every label of a ledger, also where others cannot be read.

    Raises:
        ValueError: None can be read.
    """
    found = Checked([], [])
    try:
        with closing(_opened(path)) as db:
            old = _version(db) < VERSION
        if old:
            Ledger(str(path)).create()  # which gives it checksums
        with closing(_opened(path)) as db:
            db.row_factory = sqlite3.Row
            (last,) = db.execute("SELECT coalesce(max(rowid), 0) FROM labels").fetchone()
            for number in range(1, last + 1):
                _read(db, number, found)
    except sqlite3.Error as error:
        raise ValueError(
            f"No label of {path} can be read ({error}); where the ledger is of one run alone, that run's folder has a "
            "copy, ledger.copy.sqlite"
        ) from error
    return found


def save(found: Checked, path: str | Path, source: str | Path) -> None:
    """Write the whole labels of a ledger into a new one, with the rest that can be read."""
    if Path(path).exists():
        raise ValueError(f"{path} exists already; name another file")
    ledger = Ledger(str(path))
    ledger.create()
    ledger.insert(found.whole)
    rest: dict[str, list[dict[str, Any]]] = {"lost": [{"key": name} for name in found.damaged]}
    with closing(_opened(source)) as db:
        db.row_factory = sqlite3.Row
        for table in ("wanted", "reuses"):
            with suppress(sqlite3.Error):
                rest[table] = [dict(row) for row in db.execute(f"SELECT * FROM {table}")]
    ledger.restore(rest)


def _read(db: sqlite3.Connection, number: int, found: Checked) -> None:
    """Read the label with this number, if there is one."""
    name = f"number {number}"
    try:
        row = db.execute(f"SELECT CAST(key AS BLOB), {WHOLE} FROM labels WHERE rowid = ?", (number,)).fetchone()
        if row is None:
            return
        name = _named(row[0])
        if row[1]:
            whole = dict(db.execute("SELECT * FROM labels WHERE rowid = ?", (number,)).fetchone())
            del whole["checksum"]
            found.whole.append(whole)
            return
    except sqlite3.Error as error:
        name += f" ({error})"
    found.damaged.append(name)


def _named(key: bytes | None) -> str:
    return f"label {(key or b'').decode(errors='replace')!r}"


def _opened(path: str | Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=rw", uri=True)
    use_checksums(db)
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
