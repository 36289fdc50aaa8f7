"""The format of the ledger's file: its tables, and how a file of an earlier format gets them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from choosy.errors import Damaged
from choosy.labeling.row_checksums import COLUMN, checksum

VERSION = 4  # of the file's format, in its user_version; in 3 only labels had checksums, in 2 nothing had
QUESTION = """key TEXT PRIMARY KEY, labeler TEXT NOT NULL, fingerprint TEXT NOT NULL, stamp TEXT NOT NULL,
    kind TEXT NOT NULL, prompt_id TEXT NOT NULL, prompt TEXT NOT NULL, messages TEXT NOT NULL,
    response_first TEXT NOT NULL, response_second TEXT, judgements INTEGER NOT NULL, purpose TEXT NOT NULL,
    run TEXT NOT NULL, time REAL NOT NULL"""
ANSWER = "score REAL, verdict TEXT, raw TEXT NOT NULL, annotator TEXT NOT NULL, cost REAL NOT NULL"
TABLES = (
    f"CREATE TABLE IF NOT EXISTS labels ({QUESTION}, {ANSWER}, {COLUMN})",
    f"CREATE TABLE IF NOT EXISTS wanted ({QUESTION}, {COLUMN})",
    "CREATE INDEX IF NOT EXISTS labels_of_run ON labels (run, purpose)",
    f"CREATE TABLE IF NOT EXISTS reuses (run TEXT, key TEXT, {COLUMN}, PRIMARY KEY (run, key)) WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, buyer TEXT NOT NULL, {COLUMN}) WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS lost (key TEXT, {COLUMN})",  # damaged labels, left out when others were saved here
)
TEXTS = (  # columns of a question
    *("key", "labeler", "fingerprint", "stamp", "kind", "prompt_id", "prompt", "messages"),
    *("response_first", "response_second", "purpose", "run"),
)
COLUMNS = {  # of each table: texts, numbers
    "labels": ((*TEXTS, "verdict", "raw", "annotator"), ("judgements", "time", "score", "cost")),
    "wanted": (TEXTS, ("judgements", "time")),
    "reuses": (("run", "key"), ()),
    "claims": (("key", "buyer"), ()),
    "lost": (("key",), ()),
}
CHECKSUM = {table: checksum(*columns) for table, columns in COLUMNS.items()}  # of a table's row
WHOLE = {table: f"(checksum IS {found})" for table, found in CHECKSUM.items()}  # whether it is as it was written


def create_tables(db: sqlite3.Connection, path: str) -> None:
    """Make the tables that are not there, in a file that is new or of an earlier format; a ValueError for another."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and found not in (2, 3, VERSION):
        raise ValueError(
            f"labels.ledger={path!r} has format {found}, and this version of Choosy reads format "
            f"{VERSION}; use the version that wrote it, or type another file, such as "
            "labels.ledger=runs/ledger.sqlite"
        )
    if tables and (missing := sorted(COLUMNS.keys() - tables - ({"lost"} if found == 2 else set()))):
        raise Damaged(f"{path} is damaged: its table {missing[0]} is missing. Put back a copy of it")
    for table in sorted(COLUMNS.keys() & tables):
        if found == 2 or (found == 3 and table != "labels"):
            db.execute(f"ALTER TABLE {table} ADD COLUMN {COLUMN}")
            db.execute(f"UPDATE {table} SET checksum = {CHECKSUM[table]}")
    for statement in TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")  # writes, so that a read-only file is found here


def insert_new(db: sqlite3.Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert the rows whose keys the table has not, with their checksums, and return their number."""
    texts, numbers = COLUMNS[table]
    kinds = {"judgements": "INTEGER"}
    # as the column keeps it, which has no -0.0
    stored = [f"(CAST(:{name} AS {kinds.get(name, 'REAL')}) + 0)" for name in numbers]
    given = [f":{name}" for name in texts]
    values = ", ".join([*given, *stored, checksum(given, stored)])
    names = ", ".join([*texts, *numbers])
    line = f"INSERT INTO {table} ({names}, checksum) VALUES ({values}) ON CONFLICT DO NOTHING"
    return db.executemany(line, rows).rowcount if (rows := list(rows)) else 0
