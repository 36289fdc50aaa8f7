"""Store every click in an SQLite file before anything else happens to it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from choosy.labeling.human.assignment import Click

CLICKS_SCHEMA = """CREATE TABLE IF NOT EXISTS clicks (
    id INTEGER PRIMARY KEY, labeler TEXT NOT NULL, question TEXT NOT NULL, annotator TEXT NOT NULL,
    verdict TEXT NOT NULL, time REAL NOT NULL, undone REAL);
CREATE UNIQUE INDEX IF NOT EXISTS once ON clicks (labeler, question, annotator) WHERE undone IS NULL"""


class Clicks:
    """Every click of a run, undone ones included, in an SQLite file in the run's folder.

    The file is opened for each transaction, so that no connection crosses a fork or a thread. Each click is stored
    with the labeler's name.
    """

    def __init__(self, path: Path, labeler: str) -> None:
        self.path = path
        self.labeler = labeler
        with self._transaction() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(CLICKS_SCHEMA)

    def standing(self) -> list[Click]:
        """Return all clicks that were not undone, oldest first."""
        query = "SELECT question, annotator, verdict FROM clicks WHERE labeler = ? AND undone IS NULL ORDER BY id"
        with self._transaction() as db:
            return [Click(*row) for row in db.execute(query, (self.labeler,))]

    def write(self, click: Click) -> None:
        """Add a click."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO clicks (labeler, question, annotator, verdict, time) VALUES (?, ?, ?, ?, ?)",
                (self.labeler, *click, time.time()),
            )

    def undo(self, click: Click) -> None:
        """Mark a click as undone."""
        with self._transaction() as db:
            db.execute(
                "UPDATE clicks SET undone = ? WHERE labeler = ? AND question = ? AND annotator = ? AND undone IS NULL",
                (time.time(), self.labeler, click.question, click.annotator),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=60)) as db:
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db
