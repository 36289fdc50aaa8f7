"""The ledger, an SQLite file where every label is written before it is used, and the desk that buys them."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from numbers import Real
from pathlib import Path
from typing import Literal, NamedTuple

from choosy.labeling import Compares, Labeler, Scores
from choosy.labeling.dataset import Dataset
from choosy.types import Candidates, Prompt, Response, Verdict, content_id

Purpose = Literal["train", "evaluate"]

CHUNK = 64  # labels asked for and committed at once: at most so many are lost when the machine stops
MIRRORED: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie", "invalid": "invalid"}
SCHEMA = """
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
PRAGMA user_version = 1; -- a write, so that a file that may only be read is found out now
CREATE TABLE IF NOT EXISTS labels (
    key TEXT PRIMARY KEY, labeler TEXT NOT NULL, kind TEXT NOT NULL, prompt_id TEXT NOT NULL,
    prompt TEXT NOT NULL, response_first TEXT NOT NULL, response_second TEXT, score REAL, verdict TEXT,
    purpose TEXT NOT NULL, run TEXT NOT NULL, cost REAL NOT NULL, time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS labels_of_run ON labels (run, purpose);
CREATE TABLE IF NOT EXISTS reuses (run TEXT, key TEXT, PRIMARY KEY (run, key)) WITHOUT ROWID;
COMMIT;
"""


class Label(NamedTuple):
    """A bought judgement as it stands in the ledger: a score of one response, or a verdict on two."""

    first: str
    score: float | None
    verdict: Verdict | None
    purpose: Purpose
    run: str


class Counts(NamedTuple):
    """How many labels a run has bought to train and to evaluate, and how many of other runs it trains on."""

    spent: int
    evaluation: int
    reused: int


@dataclass(frozen=True)
class Question:
    """What a labeler is asked: to score one response, or to compare two."""

    labeler: str
    place: str
    prompt: Prompt
    responses: tuple[Response, ...]
    stamp: str = ""  # what else tells it from others, where texts do not

    @cached_property
    def key(self) -> str:
        """What makes two questions one. Not the order of responses: a verdict is mirrored when it is read."""
        turns = [part for message in self.prompt.messages for part in (message.role, message.content)]
        texts = sorted(response.text for response in self.responses)
        return content_id(self.labeler, self.stamp, self.prompt.text, str(len(turns)), *turns, *texts)

    def __str__(self) -> str:
        starts = " and ".join(repr(response.text[:40]) for response in self.responses)
        return f"prompt {self.prompt.id!r}, {self.place}: {starts}"


class Ledger:
    """Every label ever bought, in a file that several runs may share and write to at once.

    It is opened for each transaction, so that no connection is carried into a fork, a thread or a pickle.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def create(self) -> None:
        """Make the file if there is none; a ValueError says why it cannot be read and written."""
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._lay_out()
        except (TypeError, OSError, sqlite3.Error) as error:
            raise ValueError(
                f"labeler.path={self.path!r} cannot serve as the ledger of labels ({error}); "
                "type a file in a folder that you may write to, for instance labeler.path=runs/ledger.sqlite"
            ) from error

    def _lay_out(self) -> None:
        patience = time.monotonic() + 60
        while True:
            try:
                with self._transaction() as db:
                    db.executescript(SCHEMA)
                return
            except sqlite3.OperationalError as error:
                # two that switch a new file to write-ahead logging at once: SQLite does not wait here
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise
            time.sleep(0.05)

    def find(self, keys: Iterable[str]) -> dict[str, Label]:
        """The labels that are there, by key."""
        query = "SELECT response_first, score, verdict, purpose, run FROM labels WHERE key = ?"
        with self._transaction() as db:
            rows = {key: db.execute(query, (key,)).fetchone() for key in keys}
        return {key: Label(*row) for key, row in rows.items() if row}

    def write(self, bought: Iterable[tuple[Question, float | Verdict]], *, purpose: Purpose, run: str) -> None:
        """Add labels; where another process was faster, its label stands."""
        rows = []
        for q, answer in bought:
            first, second = (*(response.text for response in q.responses), None)[:2]
            kind, score, verdict = ("score", float(answer), None) if second is None else ("compare", None, answer)
            about = (q.key, q.labeler, kind, q.prompt.id, q.prompt.text, first, second)
            rows.append((*about, score, verdict, purpose, run, 1.0, time.time()))
        with self._transaction() as db:
            db.executemany(f"INSERT OR IGNORE INTO labels VALUES (?{', ?' * 12})", rows)

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
        bought = "SELECT count(*) FROM labels WHERE run = ?1 AND purpose = "
        reused = "SELECT count(*) FROM reuses WHERE run = ?1"
        with self._transaction() as db:
            row = db.execute(f"SELECT ({bought} 'train'), ({bought} 'evaluate'), ({reused})", (run,)).fetchone()
        return Counts(*row)

    def copy(self, to: Path) -> None:
        """Copy the labels as they stand; whoever reads `to` sees the old copy or the new one."""
        unfinished = to.with_name(f".{to.name}.{os.getpid()}")
        unfinished.unlink(missing_ok=True)
        with self._transaction() as db, closing(sqlite3.connect(unfinished)) as copied:
            db.backup(copied)
        os.replace(unfinished, to)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(os.path.abspath(self.path), timeout=60)
        try:
            db.execute("PRAGMA synchronous = FULL")
            with db:
                yield db
        finally:
            db.close()


class Desk:
    """The counter where a round buys its labels: within the budget, and never the same label twice.

    Args:
        labeler: Who judges.
        path: The ledger's file.
        budget: The most labels the run may buy to train on; None sets no limit. Labels bought to evaluate, or
            by another run, do not count.

    Attributes:
        scores: Whether the labeler can score a response.
        compares: Whether the labeler itself can compare two; if not, `compare` compares two of its scores.
    """

    def __init__(self, labeler: Labeler, *, path: str, budget: int | None = None) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f"labeler.budget={budget} buys nothing; type 1 or more, or null for no limit")
        self.labeler = labeler
        self.budget = budget
        self.scores = isinstance(labeler, Scores)
        self.compares = isinstance(labeler, Compares)
        if not (self.scores or self.compares):
            raise ValueError(
                f"a labeler has a name, and a method score or compare; {type(labeler).__name__} has not: "
                "choose one, for instance labeler=vader"
            )
        self._ledger = Ledger(path)
        self._run = ""

    def open(self, run: str) -> None:
        """Buy for this run from now on; a run that is resumed under its name goes on counting."""
        self._ledger.create()
        self._run = run

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
    def exhausted(self) -> bool:
        """Whether the budget has nothing left."""
        return self.budget is not None and self.spent >= self.budget

    def score(self, candidates: Sequence[Candidates], *, purpose: Purpose = "train") -> list[Candidates]:
        """The candidates with their rewards, bought in the order given (most useful first).

        A prompt is bought whole or not at all; one that the rest of the budget cannot pay stays as it was.

        Raises:
            ValueError: The labeler cannot score, or failed on a response; labels bought before it are kept.
        """
        if not self.scores:
            raise ValueError(
                f"labeler {self.labeler.name} only compares, and here every response needs a score; "
                "select pairs to compare, or choose a labeler that scores, for instance labeler=vader"
            )
        groups = [
            [self._question(f"response {i}", c.prompt, response) for i, response in enumerate(c.responses)]
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
        groups = [
            [self._question(f"question {i}", prompt, first, second)]
            if self.compares
            else [self._question(f"question {i}", prompt, response) for response in (first, second)]
            for i, (prompt, first, second) in enumerate(questions)
        ]
        served = zip(questions, self._serve(groups, purpose), strict=True)
        return [None if labels is None else _verdict(labels, first) for (_, first, _), labels in served]

    def _question(self, place: str, prompt: Prompt, *responses: Response) -> Question:
        stamp = self.labeler.stamp(prompt, responses) if isinstance(self.labeler, Dataset) else ""
        return Question(self.labeler.name, place, prompt, responses, stamp)

    def _serve(self, groups: Sequence[Sequence[Question]], purpose: Purpose) -> list[list[Label] | None]:
        """All labels of each group of questions, or None where the rest of the budget cannot pay it."""
        assert self._run, "the desk is not open"
        known = self._ledger.find(q.key for group in groups for q in group)
        train = purpose == "train"
        owed = {key for key, label in known.items() if label.run == self._run and label.purpose == "evaluate"}
        left = max(0, self.budget - self.spent) if self.budget and train else math.inf
        served = _affordable(groups, known.keys() - owed if train else known.keys(), left)
        wanted: dict[str, Question] = {}
        for question in (q for group in served for q in group or ()):
            wanted.setdefault(question.key, question)  # of two that ask the same, the first is put to the labeler
        self._buy([q for key, q in wanted.items() if key not in known], purpose)
        if train:
            self._ledger.train_on(wanted, run=self._run)
        labels = self._ledger.find(wanted)
        return [None if group is None else [labels[q.key] for q in group] for group in served]

    def _buy(self, questions: Sequence[Question], purpose: Purpose, at_once: int | None = None) -> None:
        at_once = at_once or int(getattr(self.labeler, "at_once", CHUNK))
        for start in range(0, len(questions), at_once):
            chunk = questions[start : start + at_once]
            try:
                answers = self._answers(chunk)
            except Exception as error:  # a labeler is anybody's code and may raise anything
                if len(chunk) == 1:
                    raise self._failure(chunk[0], f"{type(error).__name__}: {error}") from error
                self._buy(chunk, purpose, at_once=1)  # keeps what precedes the culprit, and names it
                continue
            if len(answers) != len(chunk):
                raise ValueError(
                    f"labeler {self.labeler.name} gave {len(answers)} labels for {len(chunk)} questions; "
                    "its method must give one for each, in their order"
                )
            good = list(takewhile(_is_label, zip(chunk, answers, strict=False)))
            self._ledger.write(good, purpose=purpose, run=self._run)
            if len(good) < len(chunk):
                wanted = "a finite number" if len(chunk[0].responses) == 1 else f"one of {', '.join(MIRRORED)}"
                raise self._failure(chunk[len(good)], f"wanted {wanted}, found {answers[len(good)]!r}")

    def _answers(self, questions: Sequence[Question]) -> Sequence[float | Verdict]:
        if len(questions[0].responses) == 1:
            assert isinstance(self.labeler, Scores)
            return self.labeler.score([(q.prompt, q.responses[0]) for q in questions])
        assert isinstance(self.labeler, Compares)
        return self.labeler.compare([(q.prompt, q.responses[0], q.responses[1]) for q in questions])

    def _failure(self, question: Question, why: str) -> ValueError:
        return ValueError(
            f"labeler {self.labeler.name} gave no label for {question}: {why}. "
            "The labels bought before it are in the ledger; mend the labeler and resume the run"
        )


def _affordable(groups: Iterable[Sequence[Question]], free: Set[str], left: float) -> list[Sequence[Question] | None]:
    """Each group, the first first, if what is left pays all of its labels that are not free; else None."""
    paid: set[str] = set()
    served = []
    for group in groups:
        new = {question.key for question in group} - free - paid
        fits = len(new) <= left - len(paid)
        served.append(group if fits else None)
        paid |= new if fits else set()
    return served


def _is_label(answered: tuple[Question, float | Verdict]) -> bool:
    question, answer = answered
    if len(question.responses) == 2:
        return isinstance(answer, str) and answer in MIRRORED
    return isinstance(answer, Real) and math.isfinite(answer)


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
