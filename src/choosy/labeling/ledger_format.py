"""The format of the ledger's file: its tables, and how a file of an earlier format gets them."""

from __future__ import annotations

import sqlite3

from choosy.labeling.row_checksums import COLUMN, checksum

VERSION = 3  # of the file's format, in its user_version; the one before had no checksums
QUESTION = """key TEXT PRIMARY KEY, labeler TEXT NOT NULL, fingerprint TEXT NOT NULL, stamp TEXT NOT NULL,
    kind TEXT NOT NULL, prompt_id TEXT NOT NULL, prompt TEXT NOT NULL, messages TEXT NOT NULL,
    response_first TEXT NOT NULL, response_second TEXT, judgements INTEGER NOT NULL, purpose TEXT NOT NULL,
    run TEXT NOT NULL, time REAL NOT NULL"""
ANSWER = "score REAL, verdict TEXT, raw TEXT NOT NULL, annotator TEXT NOT NULL, cost REAL NOT NULL"
TABLES = (
    f"CREATE TABLE IF NOT EXISTS labels ({QUESTION}, {ANSWER}, {COLUMN})",
    f"CREATE TABLE IF NOT EXISTS wanted ({QUESTION})",
    "CREATE INDEX IF NOT EXISTS labels_of_run ON labels (run, purpose)",
    "CREATE TABLE IF NOT EXISTS reuses (run TEXT, key TEXT, PRIMARY KEY (run, key)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, buyer TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS lost (key TEXT)",  # labels that were damaged, and left out when the others were saved
)


def create_tables(db: sqlite3.Connection, path: str) -> None:
    """Make the tables that are not there, in a file that is new or of an earlier format; a ValueError for another."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == 2:
        db.execute(f"ALTER TABLE labels ADD COLUMN {COLUMN}")
        db.execute(f"UPDATE labels SET checksum = {checksum()}")
    elif tables and found != VERSION:
        raise ValueError(
            f"labels.ledger={path!r} has format {found}, and this version of Choosy reads format "
            f"{VERSION}; use the version that wrote it, or type another file, such as "
            "labels.ledger=runs/ledger.sqlite"
        )
    for statement in TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")  # writes, so that a read-only file is found here
