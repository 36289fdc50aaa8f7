"""Calls of a labeler: its answers as they come, each checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from numbers import Real
from typing import Any, TypeVar

from choosy.labeling.ledger import Question
from choosy.labeling.protocols import (
    Answer,
    Compares,
    ItemFailed,
    Labeler,
    Postponed,
    Scores,
    TakenBack,
    Terms,
    terms_of,
)
from choosy.redaction import scrub
from choosy.types import MIRRORED, Verdict

T = TypeVar("T")

CHUNK = 64  # items in one call of a labeler that returns a list: at most so many are lost when the machine stops


def items_per_call(terms: Terms, method: Callable[..., Any]) -> int | None:
    """How many items a labeler's method is asked at once; None = as many as there are."""
    return terms.at_once or (None if inspect.isgeneratorfunction(method) else CHUNK)


def chunks(items: Sequence[T], size: int | None) -> Iterator[tuple[int, Sequence[T]]]:
    """The items in portions of this size, each with the position of its first item; None = all of them at once.

    Example:
        >>> list(chunks("abcde", 2))
        [(0, 'ab'), (2, 'cd'), (4, 'e')]
    """
    for start in range(0, len(items), size or max(len(items), 1)):
        yield start, items[start : start + size] if size else items


def answers_in_place(
    labeler: Labeler, method: Callable[[Sequence[T]], Iterable[float | Verdict | Answer]], items: Sequence[T]
) -> Iterator[Answer]:
    """The answers of a labeler inside another one, with their positions among all items.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> from choosy.types import Prompt, Response
        >>> items = [(Prompt("p", "?"), Response(text)) for text in ("Fine.", "")]
        >>> [(answer.at, answer.value) for answer in answers_in_place(Vader(), Vader().score, items)]
        [(0, 0.2023), (1, 0.0)]
    """
    for start, chunk in chunks(items, items_per_call(terms_of(labeler), method)):
        try:
            for place, value in enumerate(method(chunk)):
                answer = as_answer(place, value)
                yield answer._replace(at=start + answer.at)
        except ItemFailed as error:
            raise ItemFailed(str(error), start + error.at) from error


def as_answer(at: int, value: float | Verdict | Answer) -> Answer:
    """What a labeler gives for the item at a position, as an answer."""
    return value if isinstance(value, Answer) else Answer(at, value)


class LabelerFailed(Exception):
    """A labeler raised an error."""

    def __init__(self, error: Exception, *, answered_nothing: bool) -> None:
        super().__init__(str(error) if isinstance(error, ItemFailed) else f"{type(error).__name__}: {error}")
        self.at = error.at if isinstance(error, ItemFailed) else None  # position of the item that it failed on
        self.answered_nothing = answered_nothing  # the call itself failed, before any item was answered


class LabelerCall:
    """One call of a labeler's method with some questions, all to score or all to compare."""

    def __init__(self, labeler: Labeler, questions: Sequence[Question]) -> None:
        self.labeler = labeler
        self.questions = questions
        self.left = dict(enumerate(questions))  # without an answer, by their position in the call

    def answers(self) -> Generator[list[Answer]]:
        """Call the labeler and yield its answers: all of a list at once, each that it yields by itself."""
        returned: Any = None
        called = False
        try:
            returned = method_for(self.labeler, self.questions)([(q.prompt, *q.responses) for q in self.questions])
            called = True
            if not isinstance(returned, Sized):
                for place, value in enumerate(returned):
                    yield [as_answer(place, value)]
        except Postponed:
            raise
        except Exception as error:  # a labeler is anybody's code and may raise anything
            raise LabelerFailed(error, answered_nothing=not called) from error
        finally:
            if isinstance(returned, Generator):
                returned.close()
        if isinstance(returned, Sized):
            values: list[Any] = list(returned)  # type: ignore[call-overload]
            if len(values) != len(self.questions):
                raise ValueError(
                    f"labeler {self.labeler.name} gave {len(values)} labels for {len(self.questions)} questions; "
                    "its method must give one for each, in their order"
                )
            yield [as_answer(place, value) for place, value in enumerate(values)]

    def accept(self, answer: Answer) -> Question:
        """Return the question that an answer belongs to, which is answered from now on."""
        if answer.at not in self.left:
            raise ValueError(
                f"labeler {self.labeler.name} gave an answer to item {answer.at!r}, which it was not asked or has "
                "answered before"
            )
        if why := unusable(answer, compared=len(self.left[answer.at].responses) == 2):
            raise self.failure(self.left[answer.at], why)
        return self.left.pop(answer.at)

    def take_back(self, answer: TakenBack) -> Question:
        """Return the question whose answer the labeler takes back; it has no answer from now on."""
        assert answer.at in range(len(self.questions)), "a labeler takes back an answer to an item of another call"
        assert answer.at not in self.left, "a labeler takes back an answer that it has not given"
        self.left[answer.at] = self.questions[answer.at]
        return self.questions[answer.at]

    def failed(self, error: LabelerFailed) -> ValueError:
        """The error that names the question which the labeler failed on: its first without an answer by default."""
        known = error.at is not None and error.at in range(len(self.questions))
        return self.failure(self.questions[error.at] if known else self.left[min(self.left)], str(error))  # type: ignore[index]

    def failure(self, question: Question, why: str) -> ValueError:
        """The error that says why a question has no label."""
        return ValueError(
            f"labeler {self.labeler.name} gave no label for {question}: {scrub(why)}. "
            "The labels bought before it are in the ledger; mend the labeler and resume the run"
        )

    def check_complete(self) -> None:
        """Refuse a call that has left questions without an answer."""
        if self.left:
            answered = len(self.questions) - len(self.left)
            raise ValueError(
                f"labeler {self.labeler.name} gave {answered} labels for {len(self.questions)} questions; "
                f"its method must give one for each, and gave none for {self.left[min(self.left)]}"
            )


def method_for(labeler: Labeler, questions: Sequence[Question]) -> Callable[..., Any]:
    """The labeler's method that answers such questions."""
    if len(questions[0].responses) == 1:
        assert isinstance(labeler, Scores)
        return labeler.score
    assert isinstance(labeler, Compares)
    return labeler.compare


def unusable(answer: Answer, *, compared: bool) -> str | None:
    """Why an answer cannot be used; None if it can."""
    value = answer.value
    if compared:
        if not (isinstance(value, str) and value in MIRRORED):
            return f"wanted one of {', '.join(MIRRORED)}, found {value!r}"
    elif not (isinstance(value, Real) and math.isfinite(value)):
        return f"wanted a finite number, found {value!r}"
    if not (isinstance(answer.cost, Real) and 0 <= answer.cost < math.inf):
        return f"wanted a cost that is 0 or more, found {answer.cost!r}"
    return None
