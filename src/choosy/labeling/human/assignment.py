"""Who of several annotators sees which pair, on which side each answer stands, and what their clicks come to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from choosy.types import MIRRORED, Prompt, Response, Verdict, content_id, seed_of


@dataclass(frozen=True)
class Question:
    """A pair to be judged by people.

    Attributes:
        id: Stable name of its contents.
        prompt: What was asked.
        first: One answer.
        second: The other.
    """

    id: str
    prompt: str
    first: str
    second: str

    @classmethod
    def of(cls, prompt: Prompt, first: Response, second: Response) -> Question:
        """The question whether the first or the second is the better answer."""
        turns = [part for message in prompt.messages for part in (message.role, message.content)]
        return cls(content_id(prompt.text, *turns, "", first.text, second.text), prompt.text, first.text, second.text)


class Click(NamedTuple):
    """What one annotator said of one question; the verdict is of its first and second, wherever they stood."""

    question: str
    annotator: str
    verdict: Verdict


def first_on_the_left(question: str, annotator: str) -> bool:
    """Whether an annotator sees the first answer on the left: drawn for each question and annotator, and kept.

    Example:
        >>> {first_on_the_left("q", f"annotator {n}") for n in range(20)} == {True, False}
        True
    """
    return seed_of("side", question, annotator) % 2 == 0


def as_seen(verdict: Verdict, click: Click) -> Verdict:
    """A verdict of first and second as one of left and right, `first` being the left; and the other way round."""
    return verdict if first_on_the_left(click.question, click.annotator) else MIRRORED[verdict]


def majority(clicks: Iterable[Click]) -> Verdict:
    """What most annotators said; a tie where no verdict has more votes than each other, invalid where all skipped.

    Example:
        >>> majority([Click("q", "ann", "first"), Click("q", "bob", "invalid")])
        'first'
        >>> majority([Click("q", "ann", "first"), Click("q", "bob", "second")])
        'tie'
    """
    votes = Counter(click.verdict for click in clicks if click.verdict != "invalid").most_common(2)
    if not votes:
        return "invalid"
    return "tie" if len(votes) == 2 and votes[0][1] == votes[1][1] else votes[0][0]


@dataclass
class Shown:
    """A question on somebody's screen, and since when."""

    question: str
    since: float


class Assignment:
    """Hands out questions, the most useful first, so that each is judged by `overlap` different annotators.

    Args:
        questions: In the order in which they should be judged.
        clicks: What was said before; of other questions it is no matter.
        overlap: How many annotators judge each question.
        hold: Seconds after which a question on a silent screen may be given to somebody else.
        clock: Gives the time in seconds.
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
        self.latest: dict[str, list[str]] = {}  # of each annotator, what may be undone
        self._clock = clock
        self._shown: dict[str, Shown] = {}
        for click in clicks:
            if click.question in self.questions and not self.complete(click.question):
                self.clicks[click.question].append(click)

    def complete(self, question: str) -> bool:
        """Whether enough annotators have judged it."""
        return len(self.clicks[question]) >= self.overlap

    @property
    def left(self) -> int:
        """How many questions are not complete."""
        return sum(not self.complete(name) for name in self.questions)

    def show(self, annotator: str) -> Question | None:
        """The question on the annotator's screen, else the next one for them; None if others hold what is left."""
        shown = self._shown.get(annotator)
        if shown is None or not self._wants(shown.question, annotator):
            self._shown.pop(annotator, None)
            name = self._next(annotator)
            if name is None:
                return None
            shown = self._shown[annotator] = Shown(name, self._clock())
        return self.questions[shown.question]

    def click(self, click: Click) -> bool:
        """Take a click; False if the question needs none (any more) of this annotator, who then sees another."""
        if not self._wants(click.question, click.annotator):
            return False
        self.clicks[click.question].append(click)
        self._shown.pop(click.annotator, None)
        self.latest.setdefault(click.annotator, []).append(click.question)
        return True

    def undo(self, annotator: str) -> Click | None:
        """Take back the annotator's latest click and show its question again; None if there is nothing to undo."""
        if not self.latest.get(annotator):
            return None
        name = self.latest[annotator].pop()
        click = next(click for click in self.clicks[name] if click.annotator == annotator)
        self.clicks[name].remove(click)
        self._shown[annotator] = Shown(name, self._clock())
        return click

    def _next(self, annotator: str) -> str | None:
        open_ = [name for name in self.questions if self._wants(name, annotator)]
        held: dict[str, list[float]] = {}
        for shown in self._shown.values():
            held.setdefault(shown.question, []).append(shown.since)
        for name in open_:
            if len(self.clicks[name]) + len(held.get(name, ())) < self.overlap:
                return name
        stale = [name for name in open_ if self._clock() - min(held[name]) > self.hold]
        for name in stale[:1]:  # whoever held it longest has gone; should they come back, the earlier click counts
            gone = min(
                (who for who, s in self._shown.items() if s.question == name), key=lambda w: self._shown[w].since
            )
            del self._shown[gone]
        return stale[0] if stale else None

    def _wants(self, question: str, annotator: str) -> bool:
        if question not in self.questions or self.complete(question):
            return False
        return all(click.annotator != annotator for click in self.clicks[question])
