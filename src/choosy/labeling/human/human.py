"""People as the labeler: a page in the browser shows two answers, and every click is in the ledger at once."""

from __future__ import annotations

import hmac
import json
import os
import queue
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from choosy.labeling.human.assignment import Assignment, Click, Question, as_seen, first_on_the_left, majority
from choosy.labeling.human.clicks import Clicks
from choosy.labeling.protocols import Answer, Purpose, TakenBack
from choosy.types import Prompt, Response, Verdict, content_id

TOKEN = "CHOOSY_LABELING_TOKEN"
SIDES: dict[str, Verdict] = {"left": "first", "right": "second", "tie": "tie", "skip": "invalid"}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Plan:
    """What the labels of a sitting are for, and what of the budget is left when it is over (None: no limit)."""

    purpose: Purpose = "train"
    budget_left: int | None = None


@dataclass(frozen=True)
class Screen:
    """What an annotator sees.

    Attributes:
        question: Id of the question; empty if there is none for them now.
        prompt: What was asked.
        left: The answer on the left.
        right: The answer on the right.
        done: Questions of this sitting that are judged.
        asked: Questions of this sitting.
        budget_left: Labels that the run may still buy; None if there is no limit.
        purpose: What the labels are for; None between two sittings.
        can_undo: Whether the annotator's last click can be taken back.
        closing_in: Seconds until training starts, once everything is judged.
    """

    question: str = ""
    prompt: str = ""
    left: str = ""
    right: str = ""
    done: int = 0
    asked: int = 0
    budget_left: int | None = None
    purpose: Purpose | None = None
    can_undo: bool = False
    closing_in: float | None = None


class Closed(Exception):
    """The sitting is over, so that nothing more is written."""


class Sitting:
    """One purchase of verdicts: questions go out to the annotators, and their answers come back to be written.

    Threads of the page call `screen`, `click` and `undo`; the run's own thread reads `answers`. A click returns when
    the ledger has it.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        clicks: Clicks,
        *,
        plan: Plan,
        overlap: int,
        hold: float,
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self._places = {question.id: at for at, question in enumerate(questions)}
        self._clicks = clicks
        self._assignment = Assignment(questions, clicks.standing(), overlap=overlap, hold=hold, clock=clock)
        self._errands: queue.SimpleQueue[tuple[Answer, Future[None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._grace = grace
        self._clock = clock
        self._ends: float | None = None
        self._closed = False
        for name in self._places:
            if self._assignment.complete(name):  # the run was stopped between the journal and the ledger
                self._errands.put((self._answer(name), Future()))
        self._look_at_the_clock()

    @property
    def left(self) -> int:
        """Questions that are still to be judged."""
        return self._assignment.left

    @property
    def over(self) -> bool:
        """Whether nothing can be said any more."""
        return self._closed

    def screen(self, annotator: str) -> Screen:
        """What this annotator sees now."""
        with self._lock:
            question = None if self._closed else self._assignment.show(annotator)
            asked, left = len(self._places), self._assignment.left
            budget = self.plan.budget_left
            about = Screen(
                done=asked - left,
                asked=asked,
                budget_left=None if budget is None else budget + left,
                purpose=self.plan.purpose,
                can_undo=not self._closed and bool(self._assignment.latest.get(annotator)),
                closing_in=None if self._ends is None else max(0.0, self._ends - self._clock()),
            )
        return shown(question, annotator, about) if question else about

    def click(self, annotator: str, question: str, side: str) -> bool:
        """Write what an annotator said; False if the question needed no click of theirs (any more).

        Raises:
            Closed: The run stopped before the label was in the ledger; the click is in the journal.
        """
        with self._lock:
            if self._closed:
                return False
            seen = SIDES[side]
            click = Click(question, annotator, seen)
            click = click._replace(verdict=as_seen(seen, click))
            if not self._assignment.click(click):
                return False
            try:
                self._clicks.write(click)
            except sqlite3.Error:
                self._assignment.undo(annotator)  # what is not on the disk was not said
                raise
            written = self._send(self._answer(question)) if self._assignment.complete(question) else None
            self._look_at_the_clock()
        wait_for(written)
        return True

    def undo(self, annotator: str) -> bool:
        """Take back an annotator's last click of this sitting; False if there is none.

        Raises:
            Closed: The run stopped before the label was out of the ledger; the click counts as undone.
        """
        with self._lock:
            if self._closed or not self._assignment.latest.get(annotator):
                return False
            name = self._assignment.latest[annotator][-1]
            was = TakenBack(*self._answer(name)) if self._assignment.complete(name) else None
            click = self._assignment.undo(annotator)
            assert click is not None
            self._clicks.undo(click)
            written = self._send(was) if was else None
            self._look_at_the_clock()
        wait_for(written)
        return True

    def answers(self) -> Generator[Answer]:
        """The answers as they come, until all questions are judged and nobody can take anything back any more."""
        try:
            while (errand := self._next()) is not None:
                answer, written = errand
                try:
                    yield answer
                    written.set_result(None)  # whoever asks on has written it
                finally:
                    written.cancel()  # nothing, once it has its result
        finally:
            self._close()

    def _next(self) -> tuple[Answer, Future[None]] | None:
        while True:
            try:
                return self._errands.get(timeout=0.1)
            except queue.Empty:
                with self._lock:
                    over = self._ends is not None and self._clock() >= self._ends
                    if over and self._errands.empty():
                        self._closed = True
                        return None

    def _send(self, answer: Answer) -> Future[None]:
        written: Future[None] = Future()
        self._errands.put((answer, written))
        return written

    def _look_at_the_clock(self) -> None:
        self._ends = None if self._assignment.left else self._clock() + self._grace

    def _answer(self, question: str) -> Answer:
        clicks = self._assignment.clicks[question]
        sides = {verdict: side for side, verdict in SIDES.items()}
        told = [
            {
                "annotator": click.annotator,
                "clicked": sides[as_seen(click.verdict, click)],
                "left": "first" if first_on_the_left(question, click.annotator) else "second",
            }
            for click in clicks
        ]
        raw = json.dumps(told, ensure_ascii=False)
        return Answer(self._places[question], majority(clicks), raw, annotator=", ".join(c.annotator for c in clicks))

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            while not self._errands.empty():
                self._errands.get()[1].cancel()


def shown(question: Question, annotator: str, about: Screen) -> Screen:
    """The screen with the question on it, the answers on the sides drawn for this annotator."""
    left, right = question.first, question.second
    if not first_on_the_left(question.id, annotator):
        left, right = right, left
    return replace(about, question=question.id, prompt=question.prompt, left=left, right=right)


def wait_for(written: Future[None] | None) -> None:
    """Wait until the run's thread has written what was sent to it."""
    try:
        if written is not None:
            written.result()
    except CancelledError:
        raise Closed from None


class Human:
    """Asks people on a page of its own, which one or several of them open in a browser; training waits for them.

    Args:
        folder: Of the run; the journal of all clicks, `clicks.sqlite`, is kept there.
        name: Whose labels these are in the ledger: change it when other people judge.
        instruction: The question above the answers; labels given under another one are not reused.
        overlap: How many annotators judge each pair; the label is what most of them said.
        hold: Seconds after which a pair on somebody's screen may go to another annotator, if no other is left.
        grace: Seconds that remain to undo the very last click before training starts.
        host: Address to listen on; only this machine by default.
        port: To listen on; 0 takes any that is free.

    Raises:
        ValueError: Gradio is not installed, or a value makes no sense.
    """

    elsewhere = True
    people = True

    def __init__(
        self,
        folder: str,
        *,
        name: str = "human",
        instruction: str = "Which answer is better?",
        overlap: int = 1,
        hold: float = 600.0,
        grace: float = 5.0,
        host: str = "127.0.0.1",
        port: int = 7860,
    ) -> None:
        for option, value, least in (("overlap", overlap, 1), ("hold", hold, 0), ("grace", grace, 0)):
            if value < least:
                raise ValueError(f"labeler.{option}={value} makes no sense; type {least} or more")
        if find_spec("gradio") is None:
            raise ValueError(
                "labeler=human shows its page with Gradio, which is not installed; type pip install 'choosy[human]'"
            )
        self.name = name
        self.fingerprint = content_id(instruction, str(overlap))
        self.folder = Path(folder)
        self.instruction = instruction
        self.overlap = overlap
        self.hold = hold
        self.grace = grace
        self.host = host
        self.port = port
        self.token = token_from(os.environ)
        self.sitting: Sitting | None = None
        self._plan = Plan()
        self._address: str | None = None

    def inform(self, *, purpose: Purpose, budget: int | None, spent: int) -> None:
        """Remember what the labels are for, to show it with the questions."""
        self._plan = Plan(purpose, None if budget is None or purpose == "evaluate" else budget - spent)

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Generator[Answer]:
        """Each verdict as soon as it is clicked; a pair that is skipped is an invalid one."""
        questions = [Question.of(*item) for item in items]
        left = self._plan.budget_left
        plan = self._plan if left is None else Plan(self._plan.purpose, left - len(items))
        clicks = Clicks(self.folder / "clicks.sqlite", self.name)
        self.sitting = Sitting(
            questions, clicks, plan=plan, overlap=self.overlap, hold=self.hold, grace=self.grace
        )  # fmt: skip
        address = self._listen()
        waits = "training waits" if plan.purpose == "train" else "held-out answers, not trained on"
        tell(f"{len(items)} pairs to label at {address} ({waits})")
        last_told = time.monotonic()
        with closing(self.sitting.answers()) as answers:
            for answer in answers:
                yield answer
                if self.sitting.left and time.monotonic() - last_told > 15:
                    tell(f"{self.sitting.left} of {len(items)} pairs left to label at {address}")
                    last_told = time.monotonic()
        tell(f"All {len(items)} pairs are labeled; thank you. The page stays open for the next ones")

    def screen(self, annotator: str) -> Screen:
        """What an annotator sees; an empty screen while nothing is asked."""
        return self.sitting.screen(annotator) if self.sitting and not self.sitting.over else Screen()

    def _listen(self) -> str:
        if self._address is None:
            from choosy.labeling.human import (
                page as human_page,
            )  # Gradio takes seconds to import, and only here it is needed

            self._address = human_page.serve(self)
        return self._address


def token_from(environ: Mapping[str, str]) -> str:
    """The secret in the page's address: a new one for each run, unless the environment names one.

    Raises:
        ValueError: The environment's is too short to be one.
    """
    told = environ.get(TOKEN)
    if told is not None and len(told) < 16:
        raise ValueError(f"{TOKEN} has {len(told)} characters, which can be guessed; wanted 16 or more, or none at all")
    return told or secrets.token_urlsafe(24)


def same(given: str, token: str) -> bool:
    """Whether somebody has given the token, in a time that tells nothing about it."""
    return hmac.compare_digest(given.encode(), token.encode())


def tell(text: str) -> None:
    """Tell the person at the terminal; not through logging, which would keep the token in a file."""
    print(text, file=sys.stderr, flush=True)
