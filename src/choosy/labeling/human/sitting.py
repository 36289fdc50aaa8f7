"""Run one purchase of verdicts from people, whose clicks are stored first."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from choosy.errors import Damaged
from choosy.files import new_database
from choosy.labeling.human.assignment import Assignment
from choosy.labeling.human.questions import Click, Question
from choosy.labeling.protocols import Answer, Purpose, TakenBack
from choosy.labeling.row_checksums import COLUMN, ERRORS, checksum, use_checksums

CLICKS_SCHEMA = f"""CREATE TABLE IF NOT EXISTS clicks (
    id INTEGER PRIMARY KEY, labeler TEXT NOT NULL, question TEXT NOT NULL, annotator TEXT NOT NULL,
    verdict TEXT NOT NULL, time REAL NOT NULL, undone REAL, {COLUMN});
CREATE UNIQUE INDEX IF NOT EXISTS once ON clicks (labeler, question, annotator) WHERE undone IS NULL"""
CHECKSUM = checksum(("labeler", "question", "annotator", "verdict"), ("id", "time", "undone"))


class Clicks:
    """Every click of a run, undone ones included, in an SQLite file in the run's folder.

    The file is opened for each transaction, so that no connection crosses a fork or a thread.

    Raises:
        Damaged: It is not as it was written; the message names it.
    """

    def __init__(self, path: Path, labeler: str) -> None:
        self.path = path
        self.labeler = labeler
        try:
            if not path.exists():  # at once with its table, so that one without a byte is no new one
                with new_database(path) as unfinished, closing(sqlite3.connect(unfinished)) as db:
                    db.executescript(CLICKS_SCHEMA)
            with self._transaction() as db:
                db.execute("PRAGMA journal_mode = WAL")
                tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                if "clicks" not in tables:
                    raise self._damaged("no such table: clicks")
                db.executescript(CLICKS_SCHEMA)
                self._check(db)
        except ERRORS as error:
            raise self._damaged(error) from error

    def _check(self, db: sqlite3.Connection) -> None:
        """Refuse a damaged file; one of an earlier version is given checksums."""
        if (structure := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise self._damaged(structure)
        if "checksum" not in {name for _, name, *_ in db.execute("PRAGMA table_info(clicks)")}:
            db.execute(f"ALTER TABLE clicks ADD COLUMN {COLUMN}")
            db.execute(f"UPDATE clicks SET checksum = {CHECKSUM}")
        if changed := db.execute(f"SELECT id FROM clicks WHERE checksum IS NOT {CHECKSUM}").fetchone():
            raise self._damaged(f"click {changed[0]} is not as it was written")

    def _damaged(self, why: object) -> Damaged:
        return Damaged(
            f"{self.path} is damaged or cannot be used ({why}). Put back a copy, or move it away: labels in the ledger "
            "stay, and people are asked again for the clicks that are not in it. Then resume the run"
        )

    def standing(self) -> list[Click]:
        """Return all clicks that were not undone, oldest first."""
        query = "SELECT question, annotator, verdict FROM clicks WHERE labeler = ? AND undone IS NULL ORDER BY id"
        with self._transaction() as db:
            return [Click(*row) for row in db.execute(query, (self.labeler,))]

    def write(self, click: Click) -> None:
        with self._transaction() as db:
            written = db.execute(
                "INSERT INTO clicks (labeler, question, annotator, verdict, time) VALUES (?, ?, ?, ?, ?)",
                (self.labeler, *click, time.time()),
            )
            db.execute(f"UPDATE clicks SET checksum = {CHECKSUM} WHERE id = ?", (written.lastrowid,))

    def undo(self, click: Click) -> None:
        whose = (self.labeler, click.question, click.annotator)
        with self._transaction() as db:
            found = db.execute(
                "SELECT id FROM clicks WHERE labeler = ? AND question = ? AND annotator = ? AND undone IS NULL", whose
            ).fetchone()
            if found is not None:
                db.execute("UPDATE clicks SET undone = ? WHERE id = ?", (time.time(), *found))
                db.execute(f"UPDATE clicks SET checksum = {CHECKSUM} WHERE id = ?", found)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=60)) as db:
            use_checksums(db)
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db


@dataclass(frozen=True)
class Screen:
    """What one annotator sees."""

    question: str = ""  # its id; empty if there is none for this annotator now
    texts: Mapping[str, str] = field(default_factory=dict)  # by their places on the page, such as `prompt` and `left`
    done: int = 0  # questions of this sitting that are judged
    asked: int = 0  # questions of this sitting
    budget_left: int | None = None  # labels that the run may still buy; None if there is no limit
    purpose: Purpose | None = None  # of the labels; None between two sittings
    can_undo: bool = False
    closing_in: float | None = None  # seconds until the sitting ends, once everything is judged


class Sitting:
    """One purchase of verdicts: questions go out to annotators, and their answers come back to be written.

    The page's threads call `screen`, `click` and `undo`; the run's thread iterates over `answers`. A click returns
    once its label is in the ledger.

    Args:
        questions: In the order in which they should be judged.
        budget_left: Labels that the run may still buy after this sitting; None if there is no limit.
        overlap, hold, grace: See `Human`.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        clicks: Clicks,
        *,
        purpose: Purpose = "train",
        budget_left: int | None = None,
        overlap: int,
        hold: float,
        grace: float,
    ) -> None:
        self.purpose = purpose
        self.budget_left = budget_left
        self._places = {question.id: at for at, question in enumerate(questions)}
        self._clicks = clicks
        self._assignment = Assignment(questions, clicks.standing(), overlap=overlap, hold=hold)
        self._outbox: queue.SimpleQueue[tuple[Answer, Future[None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._grace = grace
        self._ends: float | None = None
        self.over = False  # whether it takes no more clicks
        for name in self._places:
            if self._assignment.complete(name):  # the run was killed after the click, before the ledger had the label
                self._send(self._answer(name))
        self._set_end()

    @property
    def left(self) -> int:
        """Number of questions that are still to be judged."""
        return self._assignment.left

    def screen(self, annotator: str) -> Screen:
        """Return what this annotator sees now; nothing once the sitting is over."""
        with self._lock:
            if self.over:
                return Screen()
            question = self._assignment.show(annotator)
            asked, left = len(self._places), self._assignment.left
            screen = Screen(
                done=asked - left,
                asked=asked,
                budget_left=None if self.budget_left is None else self.budget_left + left,
                purpose=self.purpose,
                can_undo=bool(self._assignment.undoable.get(annotator)),
                closing_in=None if self._ends is None else max(0.0, self._ends - time.monotonic()),
            )
        if question is None:
            return screen
        return replace(screen, question=question.id, texts=question.shown(annotator))

    def click(self, annotator: str, question: str, action: str) -> bool:
        """Write an annotator's verdict; returns False if the question needs no click from this annotator.

        Raises:
            CancelledError: The run stopped when the verdict was in the file of clicks and not yet in the ledger.
        """
        with self._lock:
            if self.over or not self._assignment.wants(question, annotator):
                return False
            meaning = self._assignment.questions[question].meaning(action, annotator)
            click = Click(question, annotator, meaning)
            self._clicks.write(click)  # first, as a click that is not on the disk does not count
            self._assignment.click(click)
            written = self._send(self._answer(question)) if self._assignment.complete(question) else None
            self._set_end()
        if written is not None:
            written.result()
        return True

    def undo(self, annotator: str) -> bool:
        """Undo an annotator's last click of this sitting; returns False if there is none.

        Raises:
            CancelledError: The run stopped when the click was undone and its label still in the ledger.
        """
        with self._lock:
            if self.over or not self._assignment.undoable.get(annotator):
                return False
            name = self._assignment.undoable[annotator][-1]
            label = TakenBack(*self._answer(name)) if self._assignment.complete(name) else None
            click = self._assignment.undo(annotator)
            assert click is not None
            self._clicks.undo(click)
            written = self._send(label) if label else None
            self._set_end()
        if written is not None:
            written.result()
        return True

    def answers(self) -> Generator[Answer]:
        """Yield answers as they come, until every question is judged and the time to undo is over."""
        try:
            while (sent := self._next()) is not None:
                answer, written = sent
                try:
                    yield answer
                    written.set_result(None)  # the caller asks for the next answer only after it wrote this one
                finally:
                    written.cancel()  # does nothing once there is a result
        finally:
            with self._lock:
                self.over = True
                while not self._outbox.empty():
                    self._outbox.get()[1].cancel()

    def _next(self) -> tuple[Answer, Future[None]] | None:
        while True:
            try:
                return self._outbox.get(timeout=0.1)
            except queue.Empty:
                with self._lock:
                    over = self._ends is not None and time.monotonic() >= self._ends
                    if over and self._outbox.empty():
                        self.over = True
                        return None

    def _send(self, answer: Answer) -> Future[None]:
        written: Future[None] = Future()
        self._outbox.put((answer, written))
        return written

    def _set_end(self) -> None:
        self._ends = None if self._assignment.left else time.monotonic() + self._grace

    def _answer(self, name: str) -> Answer:
        question, clicks = self._assignment.questions[name], self._assignment.clicks[name]
        raw = json.dumps([question.detail(click) for click in clicks], ensure_ascii=False)
        return Answer(self._places[name], question.label(clicks), raw, annotator=", ".join(c.annotator for c in clicks))
