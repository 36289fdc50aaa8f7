"""The ledger, an SQLite file where every label is written before it is used, and the desk that buys them."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from choosy.labeling.asking import CHUNK, at_once, chunks
from choosy.labeling.dataset import Dataset
from choosy.labeling.locks import Buyer, bury, lives
from choosy.labeling.protocols import (
    Answer,
    Compares,
    Informed,
    Labeler,
    NeedsPolicy,
    Postponed,
    Purpose,
    Recalls,
    Scores,
    TakenBack,
    that,
)
from choosy.redaction import scrub
from choosy.types import MIRRORED, Candidates, Prompt, Response, Verdict, content_id

if TYPE_CHECKING:
    from choosy.models.policy import Policy

log = logging.getLogger(__name__)

ENOUGH = 20  # verdicts, before their share of invalid ones says anything
VERSION = 2  # of the file, in its user_version
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS labels (
    key TEXT PRIMARY KEY, labeler TEXT NOT NULL, kind TEXT NOT NULL, prompt_id TEXT NOT NULL,
    prompt TEXT NOT NULL, response_first TEXT NOT NULL, response_second TEXT, score REAL, verdict TEXT,
    purpose TEXT NOT NULL, run TEXT NOT NULL, cost REAL NOT NULL, time REAL NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS labels_of_run ON labels (run, purpose)",
    "CREATE TABLE IF NOT EXISTS reuses (run TEXT, key TEXT, PRIMARY KEY (run, key)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, buyer TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS wanted (
    key TEXT PRIMARY KEY, labeler TEXT NOT NULL, fingerprint TEXT NOT NULL, stamp TEXT NOT NULL, kind TEXT NOT NULL,
    prompt_id TEXT NOT NULL, prompt TEXT NOT NULL, messages TEXT NOT NULL, response_first TEXT NOT NULL,
    response_second TEXT, purpose TEXT NOT NULL, run TEXT NOT NULL, judgements INTEGER NOT NULL,
    time REAL NOT NULL)""",
)
SINCE_2 = (
    "ALTER TABLE labels ADD COLUMN raw TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE labels ADD COLUMN annotator TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE labels ADD COLUMN fingerprint TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE labels ADD COLUMN stamp TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE labels ADD COLUMN messages TEXT",  # the conversation as JSON; NULL where nobody wrote it down
    "ALTER TABLE labels ADD COLUMN judgements INTEGER NOT NULL DEFAULT 1",
    "UPDATE labels SET cost = 0",  # version 1 counted a label here, not money
)


class Label(NamedTuple):
    """A bought judgement as it stands in the ledger: a score of one response, or a verdict on two."""

    first: str
    score: float | None
    verdict: Verdict | None
    purpose: Purpose
    run: str


class Told(NamedTuple):
    """A label with all that was said, as the labelers read it that learn from labels."""

    prompt: str
    first: str
    second: str | None
    score: float | None
    verdict: Verdict | None
    raw: str
    annotator: str
    judgements: int
    cost: float
    run: str


class Counts(NamedTuple):
    """How many labels a run has bought to train and to evaluate, what they cost, and those of others it trains on."""

    spent: int = 0
    evaluation: int = 0
    reused: int = 0
    money: float = 0.0
    money_evaluation: float = 0.0


@dataclass(frozen=True)
class Question:
    """What a labeler is asked: to score one response, or to compare two."""

    labeler: str
    place: str
    prompt: Prompt
    responses: tuple[Response, ...]
    stamp: str = ""  # what else tells it from others, where texts do not
    fingerprint: str = ""  # what else the labeler's judgement depends on

    @cached_property
    def key(self) -> str:
        """What makes two questions one. Not the order of responses: a verdict is mirrored when it is read."""
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
        return f"prompt {self.prompt.id!r}, {self.place}: {starts}"


class Ledger:
    """Every label ever bought, in a file that several runs may share and write to at once.

    It is opened for each transaction, so that no connection is carried into a fork, a thread or a pickle.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._buyer: Buyer | None = None

    def create(self) -> None:
        """Make the file if there is none, and bring one of an earlier version up to date.

        Raises:
            ValueError: It cannot be read and written, or a later version of Choosy wrote it.
        """
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lay_out()
            bury(self.path)
        except (TypeError, OSError, sqlite3.Error) as error:
            raise ValueError(
                f"labeler.path={self.path!r} cannot serve as the ledger of labels ({error}); "
                "type a file in a folder that you may write to, for instance labeler.path=runs/ledger.sqlite"
            ) from error

    def _lay_out(self) -> None:
        patience = time.monotonic() + 60
        while True:
            try:
                with self._connection() as db:
                    db.execute("PRAGMA journal_mode = WAL")
                with self._connection() as db:
                    self._bring_up_to_date(db)
                return
            except sqlite3.OperationalError as error:
                # two that switch a new file to write-ahead logging at once: SQLite does not wait here
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise
            time.sleep(0.05)

    def _bring_up_to_date(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            raise ValueError(
                f"labeler.path={self.path!r} was written by a later Choosy (format {found}, and this one knows "
                f"{VERSION}); update Choosy, or type another file, for instance labeler.path=runs/ledger.sqlite"
            )
        for statement in (*SCHEMA, *(SINCE_2 if found < 2 else ())):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")  # a write, so that a file that may only be read is found out now

    def find(self, keys: Iterable[str]) -> dict[str, Label]:
        """The labels that are there, by key."""
        query = "SELECT response_first, score, verdict, purpose, run FROM labels WHERE key = ?"
        with self._transaction() as db:
            rows = {key: db.execute(query, (key,)).fetchone() for key in keys}
        return {key: Label(*row) for key, row in rows.items() if row}

    @contextmanager
    def buying(self, keys: Sequence[str]) -> Iterator[Set[str]]:
        """Claim what is about to be bought: the keys that nobody has bought, or is buying now.

        Until the block is left nobody else is given one of them, unless this process dies.
        """
        buyer = Buyer(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(buyer.alive())
            except OSError as error:
                raise self._unusable(error) from error
            self._buyer = buyer
            try:
                yield self._claim(keys, buyer)
            finally:
                self._buyer = None
                with suppress(sqlite3.Error), self._connection() as db:  # the claims of one who left are void
                    db.execute("DELETE FROM claims WHERE buyer = ?", (buyer.name,))

    def _claim(self, keys: Iterable[str], buyer: Buyer) -> Set[str]:
        alive: dict[str, bool] = {}
        mine = set()
        query = "SELECT key, '' FROM labels WHERE key = ?1 UNION ALL SELECT key, buyer FROM claims WHERE key = ?1"
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            for key in keys:
                _, other = db.execute(query, (key,)).fetchone() or (key, None)
                if other and other not in alive:
                    alive[other] = lives(self.path, other)
                if other is None or not alive.get(other, True):
                    db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, buyer.name))
                    mine.add(key)
        return mine

    def write(
        self, bought: Iterable[tuple[Question, Answer]], *, purpose: Purpose, run: str, judgements: int = 1
    ) -> None:
        """Add labels; one that is there already stands.

        Raises:
            ValueError: The disk is full. The labels are kept all the same, in room that was set aside, if there is
                any left; the message says so.
        """
        about = {"purpose": purpose, "run": run, "judgements": judgements, "time": time.time()}
        rows = []
        for q, answer in bought:
            value = (
                {"score": float(answer.value), "verdict": None} if len(q.responses) == 1 else {"verdict": answer.value}
            )
            said = {"raw": scrub(answer.raw), "cost": answer.cost, "annotator": scrub(answer.annotator)}
            takes = {} if answer.judgements is None else {"judgements": answer.judgements}
            rows.append({"score": None, **q.columns, **value, **said, **about, **takes})
        try:
            self.insert(rows)
        except ValueError as error:
            if not (is_full(error.__cause__) and self._buyer and self._buyer.make_room() and self._inserted(rows)):
                raise ValueError(f"{error}. The last {len(rows)} labels that were bought could not be kept") from error
            raise

    def _inserted(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        try:
            self.insert(rows)
        except ValueError:
            return False
        return True

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add rows to the labels, all or none; how many were not there yet."""
        if not rows:
            return 0
        columns, values = ", ".join(rows[0]), ", ".join(f":{name}" for name in rows[0])
        with self._transaction() as db:
            added = db.executemany(f"INSERT OR IGNORE INTO labels ({columns}) VALUES ({values})", rows).rowcount
            db.executemany("DELETE FROM wanted WHERE key = :key", [{"key": row["key"]} for row in rows])
        return added

    def want(self, questions: Iterable[Question], *, purpose: Purpose, run: str, judgements: int = 1) -> None:
        """Note what a run waits for, for `choosy labels export --wanted`; what is labeled is wanted no more."""
        about = {"purpose": purpose, "run": run, "judgements": judgements, "time": time.time()}
        rows = [{**q.columns, **about} for q in questions]
        if not rows:
            return
        columns, values = ", ".join(rows[0]), ", ".join(f":{name}" for name in rows[0])
        missing = "WHERE NOT EXISTS (SELECT 1 FROM labels WHERE key = :key)"
        with self._transaction() as db:
            db.executemany(f"INSERT OR IGNORE INTO wanted ({columns}) SELECT {values} {missing}", rows)

    def rows(self, table: Literal["labels", "wanted"]) -> list[dict[str, Any]]:
        """All rows of a table in the order of their time."""
        with self._transaction() as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY time, rowid")]

    def strike(self, key: str, *, run: str) -> None:
        """Take back a label that this run has written."""
        with self._transaction() as db:
            db.execute("DELETE FROM labels WHERE key = ? AND run = ?", (key, run))

    def train_on(self, keys: Iterable[str], *, run: str) -> None:
        """Note that the run trains on these: its own for evaluation count now, those of others are reused."""
        rows = [(key, run) for key in keys]
        with self._transaction() as db:
            db.executemany(
                "UPDATE labels SET purpose = 'train' WHERE key = ? AND run = ? AND purpose = 'evaluate'", rows
            )
            db.executemany("INSERT OR IGNORE INTO reuses SELECT ?2, key FROM labels WHERE key = ?1 AND run <> ?2", rows)

    def counts(self, run: str) -> Counts:
        """What the run has bought and reused so far, also before an interruption."""
        bought = "SELECT purpose, sum(judgements), sum(cost) FROM labels WHERE run = ? GROUP BY purpose"
        with self._transaction() as db:
            of = {purpose: (labels, money) for purpose, labels, money in db.execute(bought, (run,))}
            (reused,) = db.execute("SELECT count(*) FROM reuses WHERE run = ?", (run,)).fetchone()
        (spent, money), (evaluation, money_evaluation) = of.get("train", (0, 0.0)), of.get("evaluate", (0, 0.0))
        return Counts(spent, evaluation, reused, money, money_evaluation)

    def prices(self, run: str, labeler: str) -> tuple[int, float | None]:
        """How many answers the run has bought of this labeler, and what the dearest cost; None before the first."""
        with self._transaction() as db:
            row = db.execute("SELECT count(*), max(cost) FROM labels WHERE run = ? AND labeler = ?", (run, labeler))
            count, dearest = row.fetchone()
        return count, dearest

    def told(self, labeler: str, *, fingerprint: str | None = None, run: str | None = None) -> list[Told]:
        """What a labeler has said, the earliest first: to all runs or to one, and under one fingerprint or any."""
        query = """SELECT prompt, response_first, response_second, score, verdict, raw, annotator, judgements, cost, run
            FROM labels WHERE labeler = ?1 AND run = coalesce(?2, run) AND fingerprint = coalesce(?3, fingerprint)
            ORDER BY rowid"""
        with self._transaction() as db:
            return [Told(*row) for row in db.execute(query, (labeler, run, fingerprint))]

    def copy(self, to: Path) -> None:
        """Copy the labels as they stand; whoever reads `to` sees the old copy or the new one."""
        unfinished = to.with_name(f".{to.name}.{os.getpid()}")
        unfinished.unlink(missing_ok=True)
        with self._transaction() as db, closing(sqlite3.connect(unfinished)) as copied:
            db.backup(copied)
        os.replace(unfinished, to)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection() as db:
                yield db
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(os.path.abspath(self.path), timeout=60)) as db:
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db

    def _unusable(self, error: Exception) -> ValueError:
        return ValueError(
            f"the ledger of labels {self.path} cannot be used any more ({error}). What is written in it is kept; "
            "see to it that its disk has room and its folder may be written to, and resume the run"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether SQLite found no room to write, in the file or on the disk."""
    known = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in known


class Desk:
    """The counter where a round buys its labels: within the budgets, and never the same label twice.

    Args:
        labeler: Who judges.
        path: The ledger's file.
        budget: The most labels the run may buy to train on; None sets no limit. Labels bought to evaluate, or
            by another run, do not count.
        budget_money: The most money that these labels may cost, in the labeler's currency; None sets no limit.
            Each answer is reckoned at the labeler's `price` or at the dearest that the run has bought, whichever is
            more. So it is never exceeded where no answer costs more than the price. A labeler without a price is
            asked for one prompt or pair first, then for as many answers at once as it has given before; what it
            costs above the budget is at most what the answers of the last purchase cost above the dearest before it.
        max_invalid: The largest share of invalid verdicts among those bought since the run was started or resumed;
            above it, once there are 20, the run stops with what was said. None sets no limit.

    Attributes:
        scores: Whether the labeler can score a response.
        compares: Whether the labeler itself can compare two; if not, `compare` compares two of its scores.
        interrupted: Set by another thread: a purchase under way ends with the answer that comes next.
    """

    def __init__(
        self,
        labeler: Labeler,
        *,
        path: str,
        budget: int | None = None,
        budget_money: float | None = None,
        max_invalid: float | None = 0.2,
        heldout: bool = True,
    ) -> None:
        if budget is not None and budget < (least := int(getattr(labeler, "judgements", 1))):
            raise ValueError(f"labeler.budget={budget} buys nothing; type {least} or more, or null for no limit")
        if budget_money is not None and not 0 < budget_money < math.inf:
            raise ValueError(f"labeler.budget_money={budget_money} buys nothing; type an amount, or null for no limit")
        self.labeler = labeler
        self.budget = budget
        if max_invalid is not None and not 0 <= max_invalid <= 1:
            raise ValueError(f"labeler.max_invalid={max_invalid} is no share; choose 0 to 1, or null for no limit")
        self.budget_money = budget_money
        self.max_invalid = max_invalid
        self.interrupted = False
        self._judged: Counter[str] = Counter()
        self._invalid: list[str] = []
        self.heldout = heldout
        self.scores = isinstance(labeler, Scores)
        self.compares = isinstance(labeler, Compares)
        if not (self.scores or self.compares):
            raise ValueError(
                f"a labeler has a name, and a method score or compare; {type(labeler).__name__} has not: "
                f"choose one, such as {that('score')}"
            )
        self._ledger = Ledger(path)
        self._run = ""

    def open(self, run: str) -> None:
        """Buy for this run from now on; a run that is resumed under its name goes on counting."""
        self._ledger.create()
        self._run = run
        if isinstance(self.labeler, Recalls):
            self.labeler.recall(self._ledger, run)

    def use_policy(self, policy: Policy) -> None:
        """Hand the policy to a labeler that judges with it."""
        if isinstance(self.labeler, NeedsPolicy):
            self.labeler.use_policy(policy)

    def told(self) -> list[Told]:
        """Every label that the labeler has given so far, to this run and others, the earliest first."""
        return self._ledger.told(self.labeler.name, fingerprint=str(getattr(self.labeler, "fingerprint", "")))

    @property
    def per_comparison(self) -> int:
        """How many labels of a budget one comparison takes."""
        return self._judgements * (1 if self.compares else 2)

    @property
    def price_of_comparison(self) -> float | None:
        """What one comparison costs at most; None if the labeler does not say."""
        price = getattr(self.labeler, "price", None)
        return None if price is None else float(price) * (1 if self.compares else 2)

    @property
    def path(self) -> str:
        """The ledger's file."""
        return self._ledger.path

    def copy(self, to: Path) -> None:
        """Leave a copy of the ledger."""
        self._ledger.copy(to)

    @property
    def _counts(self) -> Counts:
        assert self._run, "the desk is not open"
        return self._ledger.counts(self._run)

    @property
    def spent(self) -> int:
        """Labels that this run has bought to train on."""
        return self._counts.spent

    @property
    def evaluation(self) -> int:
        """Labels that this run has bought to evaluate."""
        return self._counts.evaluation

    @property
    def reused(self) -> int:
        """Labels that this run trains on and another run has bought."""
        return self._counts.reused

    @property
    def money(self) -> float:
        """What the labels cost that this run has bought to train on."""
        return self._counts.money

    @property
    def money_evaluation(self) -> float:
        """What the labels cost that this run has bought to evaluate."""
        return self._counts.money_evaluation

    @property
    def exhausted(self) -> bool:
        """Whether a budget has no label left."""
        return self._left() < 1

    @property
    def elsewhere(self) -> bool:
        """Whether the labeler may be asked while this process samples."""
        return bool(getattr(self.labeler, "elsewhere", False))

    def covers(self, answers: int) -> bool:
        """Whether the budgets surely pay so many answers, so that it does not matter which are bought first."""
        priceless = self.budget_money is not None and getattr(self.labeler, "price", None) is None
        return not priceless and answers <= self._left()

    @property
    def _judgements(self) -> int:
        return int(getattr(self.labeler, "judgements", 1))

    def _left(self) -> float:
        """How many answers the budgets still pay; infinite where there is no limit."""
        counts = self._counts
        left = math.inf if self.budget is None else max(0, self.budget - counts.spent) // self._judgements
        if self.budget_money is not None and (price := self._reckoned_price()) is not None:
            affordable = (self.budget_money - counts.money) / price
            left = min(left, max(0, math.floor(affordable + 1e-9)))  # 0.3 / 0.1 is 2.9999999999999996 to a float
        return left

    def _reckoned_price(self) -> float | None:
        """What an answer is reckoned at before it is bought; None before anything is known.

        Raises:
            ValueError: The labels cost nothing, so that a budget of money limits nothing.
        """
        price = getattr(self.labeler, "price", None)
        _, dearest = self._ledger.prices(self._run, self.labeler.name)
        known = [float(cost) for cost in (price, dearest) if cost is not None]
        if known and max(known) <= 0:
            raise ValueError(
                f"labeler.budget_money={self.budget_money} limits nothing: the labels of {self.labeler.name} cost "
                "nothing. Type labeler.budget_money=null, or tell what a label costs, where the labeler has a price"
            )
        return max(known, default=None)

    def score(self, candidates: Sequence[Candidates], *, purpose: Purpose = "train") -> list[Candidates]:
        """The candidates with their rewards, bought in the order given (most useful first).

        A prompt is bought whole or not at all; one that the rest of the budget cannot pay stays as it was.

        Raises:
            ValueError: The labeler cannot score, or failed on a response; labels bought before it are kept.
        """
        if not self.scores:
            raise ValueError(
                f"labeler {self.labeler.name} only compares, and here every response needs a score; "
                f"select pairs to compare, or choose a labeler that scores: {that('score')}"
            )
        question = self._asker()
        groups = [
            [question(f"response {i}", c.prompt, response) for i, response in enumerate(c.responses)]
            for c in candidates
        ]
        served = zip(candidates, self._serve(groups, purpose), strict=True)
        return [c if labels is None else _rewarded(c, labels) for c, labels in served]

    def compare(
        self, questions: Sequence[tuple[Prompt, Response, Response]], *, purpose: Purpose = "train"
    ) -> list[Verdict | None]:
        """The verdict on each question, bought in the order given, or None where the budget cannot pay it.

        A labeler that only scores is asked for both scores, which are two labels, and the higher one wins.

        Raises:
            ValueError: The labeler failed on a question; labels bought before it are kept.
        """
        question = self._asker()
        groups = [
            [question(f"question {i}", prompt, first, second)]
            if self.compares
            else [question(f"question {i}", prompt, response) for response in (first, second)]
            for i, (prompt, first, second) in enumerate(questions)
        ]
        served = zip(questions, self._serve(groups, purpose), strict=True)
        return [None if labels is None else _verdict(labels, first) for (_, first, _), labels in served]

    def _asker(self) -> Callable[..., Question]:
        """Makes questions to the labeler as it is now; a fingerprint of weights is too dear to take for each."""
        name, fingerprint = self.labeler.name, str(getattr(self.labeler, "fingerprint", ""))

        def question(place: str, prompt: Prompt, *responses: Response) -> Question:
            stamp = self.labeler.stamp(prompt, responses) if isinstance(self.labeler, Dataset) else ""
            return Question(name, place, prompt, responses, stamp, fingerprint)

        return question

    def _serve(self, groups: Sequence[Sequence[Question]], purpose: Purpose) -> list[list[Label] | None]:
        """All labels of each group of questions, or None where the rest of the budget cannot pay it."""
        assert self._run, "the desk is not open"
        train = purpose == "train"
        pause = 0.05
        while True:  # several times, where only a label that is bought tells what the next one costs
            known = self._ledger.find(q.key for group in groups for q in group)
            owed = {key for key, label in known.items() if label.run == self._run and label.purpose == "evaluate"}
            free = known.keys() - owed if train else known.keys()
            limits = (self._left(), self._wave()) if train else (math.inf, math.inf)
            served = _affordable(groups, free, *limits)
            wanted: dict[str, Question] = {}
            for question in (q for group in served for q in group or ()):
                wanted.setdefault(question.key, question)  # of two that ask the same, the first is put to the labeler
            missing = [q for key, q in wanted.items() if key not in known]
            bought = self._buy(missing, purpose)
            if train:
                self._ledger.train_on(wanted, run=self._run)
            if wanted.keys() <= free:
                break
            if missing and not bought:
                pause = self._wait(pause, len(missing))
        labels = self._ledger.find(wanted)
        return [None if group is None else [labels[q.key] for q in group] for group in served]

    def _wait(self, pause: float, labels: int) -> float:
        """Give others, who are buying what is wanted here, some time; returns how long to wait next."""
        if 1 <= pause < 2:
            log.warning("Waiting for %d labels that another process is buying into %s.", labels, self._ledger.path)
        time.sleep(min(pause, 1.0))
        return 2 * pause

    def _wave(self) -> float:
        """How many answers may be bought before it is looked again what they cost."""
        if self.budget_money is None or getattr(self.labeler, "price", None) is not None:
            return math.inf
        return max(1, self._ledger.prices(self._run, self.labeler.name)[0])

    def _buy(self, questions: Sequence[Question], purpose: Purpose) -> int:
        """Buy what nobody else is buying; how many that were."""
        if not questions:
            return 0
        size, bought = at_once(self.labeler, self._method(questions[0]), len(questions)), 0
        try:
            for _, some in chunks(questions, max(size, CHUNK)):
                with self._ledger.buying([q.key for q in some]) as mine:
                    for _, chunk in chunks([q for q in some if q.key in mine], size):
                        self._ask(chunk, purpose)
                    bought += len(mine)
        except Postponed:
            self._ledger.want(questions, purpose=purpose, run=self._run, judgements=self._judgements)
            raise
        return bought

    def _method(self, question: Question) -> Any:
        if len(question.responses) == 1:
            assert isinstance(self.labeler, Scores)
            return self.labeler.score
        assert isinstance(self.labeler, Compares)
        return self.labeler.compare

    def _ask(self, questions: Sequence[Question], purpose: Purpose) -> None:
        """Put these to the labeler at once, and write each answer before the next one is asked for."""
        if isinstance(self.labeler, Informed):
            self.labeler.inform(purpose=purpose, budget=self.budget, spent=self.spent)
        left = dict(enumerate(questions))
        try:
            with closing(self._portions(questions)) as portions:
                for portion in portions:
                    if isinstance(portion[0], TakenBack):
                        self._take_back(portion[0], questions, left)
                    else:
                        self._keep(portion, left, purpose)
                    if self.interrupted and left:
                        raise Interrupted
        except _Failed as failed:
            error = failed.error
            at = getattr(error, "at", None)
            if failed.at_the_call and len(questions) > 1 and at is None:
                for question in questions:  # keeps what precedes the culprit, and names it
                    self._ask([question], purpose)
                return
            culprit = questions[at] if isinstance(at, int) and at in range(len(questions)) else left[min(left)]
            raise self._failure(culprit, f"{type(error).__name__}: {error}") from error
        if left:
            raise ValueError(
                f"labeler {self.labeler.name} gave {len(questions) - len(left)} labels for {len(questions)} questions; "
                f"its method must give one for each, and gave none for {left[min(left)]}"
            )

    def _portions(self, questions: Sequence[Question]) -> Generator[list[Answer]]:
        """The labeler's answers in portions as they are there: those of a list at once, what is yielded one by one."""
        told: Any = None
        called = False
        try:
            told = self._method(questions[0])([(q.prompt, *q.responses) for q in questions])
            called = True
            if not isinstance(told, Sized):
                for at, one in enumerate(told):
                    yield [_answer(at, one)]
        except Postponed:
            raise
        except Exception as error:  # a labeler is anybody's code and may raise anything
            raise _Failed(error, at_the_call=not called) from error
        finally:
            if hasattr(told, "close"):
                told.close()
        if isinstance(told, Sized):
            answers: list[Any] = list(told)  # type: ignore[call-overload]
            if len(answers) != len(questions):
                raise ValueError(
                    f"labeler {self.labeler.name} gave {len(answers)} labels for {len(questions)} questions; "
                    "its method must give one for each, in their order"
                )
            yield [_answer(at, one) for at, one in enumerate(answers)]

    def _keep(self, portion: Sequence[Answer], left: dict[int, Question], purpose: Purpose) -> None:
        """Write what the labeler has said, up to the first answer that is none."""
        kept: list[tuple[Question, Answer]] = []
        why = None
        for answer in portion:
            if why := self._misfit(answer, left):
                break
            if not answer.cost and answer.judgements is None:
                answer = answer._replace(cost=float(getattr(self.labeler, "price", None) or 0.0))
            kept.append((left.pop(answer.at), answer))
        self._ledger.write(kept, purpose=purpose, run=self._run, judgements=self._judgements)
        self._refuse_nonsense(kept)
        if why:
            question = left.get(answer.at)
            raise self._failure(question, why) if question else ValueError(f"labeler {self.labeler.name} {why}")

    def _refuse_nonsense(self, bought: Sequence[tuple[Question, Answer]]) -> None:
        """Stop where too many verdicts are invalid: each costs as much as one that teaches something."""
        self._judged.update(str(answer.value) for q, answer in bought if len(q.responses) == 2)
        said = [answer.raw or "nothing" for _, answer in bought if answer.value == "invalid"]
        self._invalid = [*self._invalid, *said][-3:]
        invalid, judged = self._judged["invalid"], self._judged.total()
        if self.max_invalid is None or judged < ENOUGH or invalid <= self.max_invalid * judged:
            return
        quoted = "\n  ".join(repr(scrub(said)[:200]) for said in self._invalid)
        raise ValueError(
            f"{invalid} of the {judged} verdicts of labeler {self.labeler.name} are invalid, and "
            f"labeler.max_invalid={self.max_invalid} allows a share of no more. It said, for instance:\n  {quoted}\n"
            "All labels are in the ledger. Mend the labeler, or type a larger labeler.max_invalid, and resume the run"
        )

    def _take_back(self, answer: TakenBack, questions: Sequence[Question], left: dict[int, Question]) -> None:
        """Strike out what the labeler has said of an item and now takes back."""
        at, value = answer.at, answer.value
        assert at in range(len(questions)), "a labeler takes back an answer to an item that it was not asked"
        assert at not in left, "a labeler takes back an answer that it has not given"
        self._ledger.strike(questions[at].key, run=self._run)
        self._judged[str(value)] -= 1
        left[at] = questions[at]

    def _misfit(self, answer: Answer, left: dict[int, Question]) -> str | None:
        """Why an answer cannot be kept; None if it can."""
        if answer.at not in left:
            return f"gave an answer to item {answer.at!r}, which it was not asked or has answered before"
        value = answer.value
        if len(left[answer.at].responses) == 2:
            if not (isinstance(value, str) and value in MIRRORED):
                return f"wanted one of {', '.join(MIRRORED)}, found {value!r}"
        elif not (isinstance(value, Real) and math.isfinite(value)):
            return f"wanted a finite number, found {value!r}"
        if not (isinstance(answer.cost, Real) and 0 <= answer.cost < math.inf):
            return f"wanted a cost that is 0 or more, found {answer.cost!r}"
        return None

    def _failure(self, question: Question, why: str) -> ValueError:
        return ValueError(
            f"labeler {self.labeler.name} gave no label for {question}: {scrub(why)}. "
            "The labels bought before it are in the ledger; mend the labeler and resume the run"
        )


def _answer(at: int, told: float | Verdict | Answer) -> Answer:
    return told if isinstance(told, Answer) else Answer(at, told)


class Interrupted(Exception):
    """A purchase that another thread has ended; what was answered is in the ledger."""


class _Failed(Exception):
    """A labeler raised an error: at the call, or while it gave its answers."""

    def __init__(self, error: Exception, *, at_the_call: bool) -> None:
        self.error = error
        self.at_the_call = at_the_call


def _affordable(
    groups: Iterable[Sequence[Question]], free: Set[str], left: float, wave: float = math.inf
) -> list[Sequence[Question] | None]:
    """Each group, the first first, if what is left pays all of its labels that are not free; else None.

    Once a wave of labels is paid for, only groups that are free are served.
    """
    paid: set[str] = set()
    served = []
    for group in groups:
        new = {question.key for question in group} - free - paid
        fits = len(new) <= left - len(paid) and (not new or len(paid) < wave)
        served.append(group if fits else None)
        paid |= new if fits else set()
    return served


def _rewarded(candidates: Candidates, labels: Sequence[Label]) -> Candidates:
    answered = zip(candidates.responses, labels, strict=True)
    return replace(candidates, responses=tuple(replace(r, reward=label.score) for r, label in answered))


def _verdict(labels: Sequence[Label], first: Response) -> Verdict:
    """The bought comparison as seen by who asks for `first` first, or that of two scores."""
    if len(labels) == 1:
        verdict = labels[0].verdict
        assert verdict
        return verdict if labels[0].first == first.text else MIRRORED[verdict]
    one, two = (label.score for label in labels)
    assert one is not None
    assert two is not None
    return "tie" if one == two else "first" if one > two else "second"


def fault(path: str | Path) -> str | None:
    """What is wrong with a ledger's file: it is missing or damaged; None if nothing is."""
    if not Path(path).is_file():
        return "is not there"
    try:
        with closing(sqlite3.connect(f"file:{Path(path).resolve()}?mode=rw", uri=True)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
            db.execute("SELECT count(*) FROM labels")
    except sqlite3.Error as error:
        return f"is damaged ({error})"
    return None if found == ["ok"] else f"is damaged ({found[0]})"
