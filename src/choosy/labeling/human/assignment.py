"""Assign questions to annotators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from choosy.labeling.human.questions import Click, Question


class Assignment:
    """Gives each question to `overlap` different annotators, in the order of the questions.

    Args:
        clicks: Earlier clicks; those on other questions are ignored.
        hold: Seconds after which a question on an idle screen may go to another annotator.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        clicks: Iterable[Click] = (),
        *,
        overlap: int = 1,
        hold: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.questions = {question.id: question for question in questions}
        self.overlap = overlap
        self.hold = hold
        self.clicks: dict[str, list[Click]] = {name: [] for name in self.questions}
        self.undoable: dict[str, list[str]] = {}  # by annotator, the questions that undo may take back, latest last
        self._clock = clock
        self._screens: dict[str, tuple[str, float]] = {}  # by annotator, the question there and since when
        for click in clicks:
            if click.question in self.questions and not self.complete(click.question):
                self.clicks[click.question].append(click)

    def complete(self, question: str) -> bool:
        """Whether enough annotators have judged the question."""
        return len(self.clicks[question]) >= self.overlap

    @property
    def left(self) -> int:
        """Number of questions that are not complete."""
        return sum(not self.complete(name) for name in self.questions)

    def show(self, annotator: str) -> Question | None:
        """Return the annotator's current or next question; None if others are judging all that is left."""
        shown = self._screens.get(annotator)
        if shown is None or not self.wants(shown[0], annotator):
            self._screens.pop(annotator, None)
            name = self._next(annotator)
            if name is None:
                return None
            shown = self._screens[annotator] = name, self._clock()
        return self.questions[shown[0]]

    def click(self, click: Click) -> bool:
        """Count a click; returns False if the question needs no click from this annotator."""
        if not self.wants(click.question, click.annotator):
            return False
        self.clicks[click.question].append(click)
        self._screens.pop(click.annotator, None)
        self.undoable.setdefault(click.annotator, []).append(click.question)
        return True

    def undo(self, annotator: str) -> Click | None:
        """Remove the annotator's latest click and show its question again; returns None if there is none."""
        if not self.undoable.get(annotator):
            return None
        name = self.undoable[annotator].pop()
        click = next(click for click in self.clicks[name] if click.annotator == annotator)
        self.clicks[name].remove(click)
        self._screens.pop(annotator, None)  # so that the screens stand in the order in which they were filled
        self._screens[annotator] = name, self._clock()
        return click

    def _next(self, annotator: str) -> str | None:
        candidates = [name for name in self.questions if self.wants(name, annotator)]
        for name in candidates:
            if len(self.clicks[name]) + len(self._holders(name)) < self.overlap:
                return name
        for name in candidates:
            longest = self._holders(name)[0]
            if self._clock() - self._screens[longest][1] > self.hold:
                del self._screens[longest]  # if that annotator returns, the earlier click counts
                return name
        return None

    def _holders(self, question: str) -> list[str]:
        """Return the annotators who have the question on their screens, the longest first."""
        return [who for who, (shown, _) in self._screens.items() if shown == question]

    def wants(self, question: str, annotator: str) -> bool:
        """Whether the question needs a click from this annotator."""
        if question not in self.questions or self.complete(question):
            return False
        return all(click.annotator != annotator for click in self.clicks[question])
