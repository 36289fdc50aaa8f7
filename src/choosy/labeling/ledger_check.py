"""Finds what is damaged in a ledger, and saves what is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from choosy.files import new_database
from choosy.labeling.ledger import Ledger
from choosy.labeling.ledger_format import VERSION, WHOLE
from choosy.labeling.row_checksums import ERRORS, use_checksums


class Checked(NamedTuple):
    """What was read of a ledger: the rows of its labels that are whole, and a name for each that is not.

    The rows of the other tables that are whole are `rest`, and `damaged_rest` names the tables that have others.
    """

    whole: list[dict[str, Any]]
    damaged: list[str]
    rest: dict[str, list[dict[str, Any]]]
    damaged_rest: list[str]


def fault(path: str | Path) -> str | None:
    """What is wrong with a ledger's file, as the end of a sentence about it; None if nothing is."""
    if not Path(path).is_file():
        return "is not there"
    try:
        with closing(_opened(path)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(1)")]
            db.execute("SELECT count(*) FROM labels")
            checked = {2: (), 3: ("labels",)}.get(_version(db), tuple(WHOLE))
            for table in checked if found == ["ok"] else ():
                query = f"SELECT CAST(key AS BLOB) FROM {table} WHERE NOT {WHOLE[table]} LIMIT 1"
                if damaged := db.execute(query).fetchone():
                    found = [f"{_named(damaged[0], table)} is not as it was written"]
    except ERRORS as error:
        return f"is damaged ({error})"
    return None if found == ["ok"] else f"is damaged ({found[0]})"


def check(path: str | Path) -> Checked:
    """Read every label of a ledger, also where others cannot be read.

    Raises:
        ValueError: None can be read.
    """
    found = Checked([], [], {}, [])
    try:
        with closing(_opened(path)) as db:
            old = _version(db) < VERSION
        if old:
            Ledger(str(path)).create()  # which gives it checksums
        with closing(_opened(path)) as db:
            db.row_factory = sqlite3.Row
            (last,) = db.execute("SELECT coalesce(max(rowid), 0) FROM labels").fetchone()
            for number in range(1, min(last, Path(path).stat().st_size) + 1):  # the number itself may be damaged
                _read(db, number, found)
            for table in ("wanted", "reuses", "lost"):  # claims are void where no process buys
                _read_rest(db, table, found)
    except ERRORS as error:
        raise ValueError(
            f"No label of {path} can be read ({error}); where the ledger is of one run alone, that run's folder has a "
            "copy, ledger.copy.sqlite"
        ) from error
    return found


def save(found: Checked, path: str | Path) -> None:
    """Write what was read of a ledger into a new one, all or nothing."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; name another file")
    try:
        with new_database(path) as unfinished:
            unfinished.unlink()  # a ledger is made with its tables
            ledger = Ledger(str(unfinished))
            ledger.create()
            ledger.insert(found.whole)
            lost = [*found.rest["lost"], *({"key": name} for name in found.damaged)]
            ledger.restore({**found.rest, "lost": lost})
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path} cannot be written ({cause}); name a file in a folder that has room") from error


def _read_rest(db: sqlite3.Connection, table: str, found: Checked) -> None:
    """Read the rows of a table other than that of the labels, as far as they are whole."""
    rows = found.rest.setdefault(table, [])
    try:
        (number,) = db.execute(f"SELECT count(*) FROM {table} WHERE NOT {WHOLE[table]}").fetchone()
        rows += [dict(row) for row in db.execute(f"SELECT * FROM {table} WHERE {WHOLE[table]}")]
        if number:
            found.damaged_rest.append(f"{number} rows of the table {table}")
    except ERRORS as error:
        found.damaged_rest.append(f"the table {table} ({error})")


def _read(db: sqlite3.Connection, number: int, found: Checked) -> None:
    """Read the label with this number, if there is one."""
    name = f"number {number}"
    try:
        row = db.execute(
            f"SELECT CAST(key AS BLOB), {WHOLE['labels']} FROM labels WHERE rowid = ?", (number,)
        ).fetchone()
        if row is None:
            return
        name = _named(row[0])
        if row[1]:
            whole = dict(db.execute("SELECT * FROM labels WHERE rowid = ?", (number,)).fetchone())
            del whole["checksum"]
            found.whole.append(whole)
            return
    except ERRORS as error:
        name += f" ({error})"
    found.damaged.append(name)


def _named(key: bytes | None, table: str = "labels") -> str:
    what = "label" if table == "labels" else f"row of {table}"
    return f"{what} {(key or b'').decode(errors='replace')!r}"


def _opened(path: str | Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=rw", uri=True)
    use_checksums(db)
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
