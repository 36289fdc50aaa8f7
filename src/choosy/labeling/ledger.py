"""The ledger: an SQLite file in which every label is written before it is used."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tenacity import retry, retry_if_exception_message, retry_if_exception_type, stop_after_delay, wait_fixed

from choosy.errors import Damaged, Stopped
from choosy.files import make_folder, new_database
from choosy.labeling.ledger_format import COLUMNS, WHOLE, create_tables, insert_new
from choosy.labeling.locks import PurchaseLock, is_alive, remove_stale, turn_of
from choosy.labeling.protocols import Answer, Purpose
from choosy.labeling.row_checksums import ERRORS, checksum, use_checksums
from choosy.redaction import scrub
from choosy.types import Prompt, Response, Verdict, content_id

LABEL = f"""SELECT {WHOLE["labels"]}, key, prompt, response_first, response_second, score, verdict, raw, annotator,
    judgements, cost, purpose, run FROM labels"""
TEXTS, NUMBERS = COLUMNS["labels"]
TRAINED = checksum(["'train'" if name == "purpose" else name for name in TEXTS], NUMBERS)  # of one that is trained on
REUSED, CLAIMED = checksum(["?2", "key"]), checksum(["?1", "?2"])
BUSY = retry_if_exception_type(sqlite3.OperationalError) & retry_if_exception_message(match=".*locked")


class Label(NamedTuple):
    """A score of one response, or a verdict on two, as it is in the ledger."""

    prompt: str
    first: str
    second: str | None
    score: float | None
    verdict: Verdict | None
    raw: str
    annotator: str
    judgements: int
    cost: float
    purpose: Purpose
    run: str


class Counts(NamedTuple):
    """What a run has bought: labels and money, to train and to evaluate, and the labels of other runs it trains on."""

    spent: int = 0
    evaluation: int = 0
    reused: int = 0
    money: float = 0.0
    money_evaluation: float = 0.0


@dataclass(frozen=True)
class Question:
    """A question to a labeler: to score one response, or to compare two."""

    labeler: str  # its name
    place: str  # of the question among those of a purchase, for error messages
    prompt: Prompt
    responses: tuple[Response, ...]
    stamp: str = ""  # what else identifies the question (see `Stamps`)
    fingerprint: str = ""  # what else the labeler's judgement depends on (see `Terms`)
    answers: int = 1  # of the budget that it takes

    @cached_property
    def key(self) -> str:
        """The same for equal questions, whatever the order of the responses: a verdict is mirrored when it is read."""
        who = content_id(self.labeler, self.fingerprint) if self.fingerprint else self.labeler
        turns = [part for message in self.prompt.messages for part in (message.role, message.content)]
        texts = sorted(response.text for response in self.responses)
        return content_id(who, self.stamp, self.prompt.text, str(len(turns)), *turns, *texts)

    @property
    def columns(self) -> dict[str, str | None]:
        """The question as columns of the ledger's tables."""
        first, second = (*(response.text for response in self.responses), None)[:2]
        return {
            "key": self.key,
            "labeler": self.labeler,
            "fingerprint": self.fingerprint,
            "stamp": self.stamp,
            "kind": "score" if second is None else "compare",
            "prompt_id": self.prompt.id,
            "prompt": self.prompt.text,
            "messages": json.dumps([[m.role, m.content] for m in self.prompt.messages], ensure_ascii=False),
            "response_first": first,
            "response_second": second,
        }

    def __str__(self) -> str:
        starts = " and ".join(repr(response.text[:40]) for response in self.responses)
        return f"prompt {self.prompt.id!r} ({self.prompt.text[:40]!r}), {self.place}: {starts}"


class Ledger:
    """All labels ever bought, in an SQLite file that several runs may share and write to at the same time.

    The file is opened for each transaction, so that no connection is carried into a fork, a thread or a pickle.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock: PurchaseLock | None = None

    def create(self) -> None:
        """Make the file if there is none, and delete the lock files of dead buyers."""
        try:
            make_folder(Path(self.path).parent)
            self._make_file()
            self._refuse_names()
            self._create_tables()
            remove_stale(self.path)
        except (TypeError, OSError, *ERRORS) as error:
            raise ValueError(
                f"labels.ledger={self.path!r} cannot serve as the ledger of labels ({error}); "
                "type a file in a folder that you may write to, for instance labels.ledger=runs/ledger.sqlite"
            ) from error

    def _make_file(self) -> None:
        """Make the file, if there is none, at once with its tables, so that one without a byte is no new one."""
        file = Path(os.path.realpath(self.path))
        if not file.exists():
            with turn_of(self.path, ""):  # of all processes that make it
                if not file.exists():
                    with new_database(file) as unfinished:
                        Ledger(str(unfinished))._create_tables()
        if file.is_file() and not file.stat().st_size:
            raise ValueError(
                f"labels.ledger={self.path!r} is empty: put back a copy of it, such as its run's ledger.copy.sqlite, "
                "or delete it if no label was ever bought into it"
            )

    # SQLite does not wait where two processes switch a new file to write-ahead logging at once
    @retry(retry=BUSY, stop=stop_after_delay(60), wait=wait_fixed(0.05), reraise=True)
    def _create_tables(self) -> None:
        with self._connection() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            create_tables(db, self.path)

    def _refuse_names(self) -> None:
        """Refuse a file of several names: beside each of them SQLite keeps a log of its own, and we our locks."""
        if Path(self.path).is_file() and (names := os.stat(self.path).st_nlink) > 1:
            raise ValueError(
                f"labels.ledger={self.path!r} has {names} names (hard links), each taken for a ledger of its own; "
                "delete the others, or type a copy. A symbolic link does no harm"
            )

    def find(self, keys: Iterable[str]) -> dict[str, Label]:
        """The labels with these keys, by key; those that are not in the ledger are left out."""
        with self._transaction() as db:
            rows = {key: db.execute(f"{LABEL} WHERE key = ?", (key,)).fetchone() for key in keys}
        return {key: self._label(row) for key, row in rows.items() if row}

    def _label(self, row: Sequence[Any]) -> Label:
        whole, key, *label = row
        if not whole:
            raise self.damaged(key)
        return Label(*label)

    def damaged(self, key: str, table: str = "labels") -> Damaged:
        """Return the error of a row that is not as it was written."""
        what = "label" if table == "labels" else f"row of {table}"
        return Damaged(
            f"the {what} {key!r} in {self.path} is damaged, and is not used. `choosy labels check {self.path} --save "
            "NEW.sqlite` names all such rows and saves the others; go on with labels.ledger=NEW.sqlite"
        )

    @contextmanager
    def turn(self, run: str) -> Iterator[None]:
        """Let one process at a time buy labels of a run: two would each spend what its budget has left."""
        with ExitStack() as stack:
            try:
                stack.enter_context(turn_of(self.path, run))
            except OSError as error:
                raise self._unusable(error) from error
            yield

    @contextmanager
    def buying(self, keys: Sequence[str]) -> Iterator[Set[str]]:
        """Claim labels for a purchase: those of the keys that no process has bought or is buying.

        Until the block ends no other process can claim them, unless this process dies.

        Yields:
            The keys that are claimed.
        """
        lock = PurchaseLock(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock.held())
            except OSError as error:
                raise self._unusable(error) from error
            self._lock = lock
            try:
                mine = self._claim(keys, lock)
                with self._kept_open():
                    yield mine
            finally:
                self._lock = None
                with suppress(sqlite3.Error), self._connection() as db:  # they are void anyway
                    db.execute("DELETE FROM claims WHERE buyer = ?", (lock.name,))

    @contextmanager
    def _kept_open(self) -> Iterator[None]:
        """Keep the file open: whenever its last connection closes, SQLite empties the journal, as slow as a label."""
        with closing(sqlite3.connect(os.path.realpath(self.path))) as db:
            with suppress(sqlite3.Error):  # the next writing says what is wrong
                db.execute("SELECT 1 FROM labels LIMIT 1").fetchall()
            yield

    def _claim(self, keys: Iterable[str], lock: PurchaseLock) -> Set[str]:
        alive: dict[str, bool] = {}
        mine = set()
        query = "SELECT key, '' FROM labels WHERE key = ?1 UNION ALL SELECT key, buyer FROM claims WHERE key = ?1"
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            if changed := db.execute(f"SELECT key FROM claims WHERE NOT {WHOLE['claims']} LIMIT 1").fetchone():
                raise self.damaged(changed[0], "claims")  # which label another process is buying is not known
            for key in keys:
                _, other = db.execute(query, (key,)).fetchone() or (key, None)
                if other and other not in alive:
                    alive[other] = is_alive(self.path, other)
                if other is None or not alive.get(other, True):
                    db.execute(f"INSERT OR REPLACE INTO claims VALUES (?1, ?2, {CLAIMED})", (key, lock.name))
                    mine.add(key)
        return mine

    def write(self, bought: Iterable[tuple[Question, Answer]], *, purpose: Purpose, run: str) -> None:
        """Add labels that a run has bought; one that is there already stays as it is.

        Raises:
            ValueError: The disk is full. The labels are written to the reserved room if that is large enough; if it is
                not, the message says that they are lost.
        """
        about = {"purpose": purpose, "run": run, "time": time.time()}
        rows = []
        for q, answer in bought:
            scored = len(q.responses) == 1
            value = {"score": float(answer.value) if scored else None, "verdict": None if scored else answer.value}
            said = {"raw": storable(answer.raw), "annotator": storable(answer.annotator)}
            paid = {"cost": float(answer.cost), "judgements": answer.judgements and int(answer.judgements)}
            rows.append({**q.columns, **value, **said, **paid, **about})
        try:
            self.insert(rows)
        except ValueError as error:
            if is_full(error.__cause__) and self._lock and self._lock.make_room():
                with suppress(ValueError):
                    self.insert(rows)
                    rows = []
            if rows:
                raise ValueError(f"{error}. The last {len(rows)} labels that were bought could not be kept") from error
            raise

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add rows to the table of labels, all or none, and return how many were not there yet."""
        with self._transaction() as db:
            added = insert_new(db, "labels", rows)
            db.executemany("DELETE FROM wanted WHERE key = :key", [{"key": row["key"]} for row in rows])
        return added

    def want(self, questions: Iterable[Question], *, purpose: Purpose, run: str, judgements: int) -> None:
        """Record the labels that a run waits for, for `choosy labels export --wanted`, until they are in the ledger."""
        about = {"purpose": purpose, "run": run, "judgements": judgements, "time": time.time()}
        with self._transaction() as db:
            insert_new(db, "wanted", [{**q.columns, **about} for q in questions])
            db.execute("DELETE FROM wanted WHERE key IN (SELECT key FROM labels)")

    def rows(self, table: Literal["labels", "wanted"]) -> list[dict[str, Any]]:
        """All rows of a table, ordered by time."""
        with self._transaction() as db:
            db.row_factory = sqlite3.Row
            query = f"SELECT {WHOLE[table]} AS whole, * FROM {table} ORDER BY time, rowid"
            found = [dict(row) for row in db.execute(query)]
        for row in found:
            del row["checksum"]
            if not row.pop("whole"):
                raise self.damaged(row["key"], table)
        return found

    def delete(self, key: str, *, run: str) -> None:
        """Delete a label that this run has written."""
        with self._transaction() as db:
            db.execute("DELETE FROM labels WHERE key = ? AND run = ?", (key, run))

    def train_on(self, keys: Iterable[str], *, run: str) -> None:
        """Record the labels that a run trains on.

        Its own that were bought to evaluate count as bought to train from now on; those of other runs as reused.
        """
        rows = [(key, run) for key in keys]
        with self._transaction() as db:
            these = f"key = ? AND run = ? AND purpose = 'evaluate' AND {WHOLE['labels']}"
            db.executemany(f"UPDATE labels SET purpose = 'train', checksum = {TRAINED} WHERE {these}", rows)
            reused = f"INSERT OR IGNORE INTO reuses SELECT ?2, key, {REUSED} FROM labels WHERE key = ?1 AND run <> ?2"
            db.executemany(reused, rows)

    def counts(self, run: str) -> Counts:
        """What a run has bought and reused so far, also before an interruption."""
        bought = "SELECT purpose, sum(judgements), sum(cost) FROM labels WHERE run = ? GROUP BY purpose"
        with self._transaction() as db:
            of = {purpose: (labels, money) for purpose, labels, money in db.execute(bought, (run,))}
            (reused,) = db.execute("SELECT count(*) FROM reuses WHERE run = ?", (run,)).fetchone()
        (spent, money), (evaluation, money_evaluation) = of.get("train", (0, 0.0)), of.get("evaluate", (0, 0.0))
        return Counts(spent, evaluation, reused, money, money_evaluation)

    def reused_labels(self, run: str) -> int:
        """What the labels cost that other runs had bought for a run, and for the labelers inside its own, in labels."""
        inside = "run = ?1 OR substr(run, 1, length(?1) + 1) = ?1 || '#'"
        query = f"SELECT sum(judgements) FROM labels WHERE key IN (SELECT key FROM reuses WHERE {inside})"
        with self._transaction() as db:
            return int(db.execute(query, (run,)).fetchone()[0] or 0)

    def prices(self, run: str, labeler: str) -> tuple[int, int, float | None]:
        """How many answers a run has from a labeler, how many cost something, and the highest cost; None before any."""
        query = "SELECT count(*), total(cost > 0), max(cost) FROM labels WHERE run = ? AND labeler = ?"
        with self._transaction() as db:
            answers, paid, highest = db.execute(query, (run, labeler)).fetchone()
        return answers, int(paid), highest

    def labels_of(self, labeler: str, *, fingerprint: str | None = None, run: str | None = None) -> list[Label]:
        """All labels of a labeler, the earliest first: of all runs or one, under any fingerprint or one."""
        these = "labeler = ?1 AND run = coalesce(?2, run) AND fingerprint = coalesce(?3, fingerprint)"
        with self._transaction() as db:
            rows = db.execute(f"{LABEL} WHERE {these} ORDER BY rowid", (labeler, run, fingerprint))
            return [self._label(row) for row in rows]

    def restore(self, tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """Add rows to tables other than that of the labels."""
        with self._transaction() as db:
            for table, rows in tables.items():
                insert_new(db, table, rows)

    def lost(self) -> int:
        """How many labels were damaged, and left out when the others were saved here."""
        with self._transaction() as db:
            (lost,) = db.execute("SELECT count(*) FROM lost").fetchone()
        return int(lost)

    def labels_before(self, labeler: str, fingerprint: str) -> tuple[int, float, str]:
        """Count a labeler's labels under other fingerprints, with the time and the fingerprint of the last.

        The count is 0 if the labeler has given any label under this fingerprint.
        """
        query = "SELECT count(*), max(time), fingerprint, total(fingerprint = ?2) FROM labels WHERE labeler = ?1"
        with self._transaction() as db:
            count, last, before, now = db.execute(query, (labeler, fingerprint)).fetchone()
        return (0, 0.0, "") if now or not count else (count, last, before)

    def copy(self, to: Path) -> None:
        """Replace `to` by a copy of the ledger."""
        with (
            new_database(to) as unfinished,
            self._transaction() as db,
            closing(sqlite3.connect(unfinished)) as copied,
        ):
            db.backup(copied)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection() as db:
                yield db
        except ERRORS as error:
            raise self._unusable(error) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(os.path.realpath(self.path), timeout=60)) as db:
            use_checksums(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA wal_autocheckpoint = 100")  # pages: a journal that stays open takes little of the disk
            with db:
                yield db

    def _unusable(self, error: Exception) -> Stopped:
        return Stopped(
            f"the ledger of labels {self.path} cannot be used any more ({error}). What is written in it is kept; "
            "see to it that its disk has room and its folder may be written to, and resume the run"
        )


def storable(text: str) -> str:
    """Return a text without secrets, and with half characters, which no file can hold, as their escapes."""
    return scrub(text).encode("utf-8", "backslashreplace").decode()


def is_full(error: BaseException | None) -> bool:
    """Whether SQLite could not write because the file or the disk is full."""
    known = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in known
