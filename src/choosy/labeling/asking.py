"""Calls of a labeler: its answers as they come, each checked."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

from choosy.errors import Damaged, Stopped, in_a_line, raised_at
from choosy.labeling.ledger import Question
from choosy.labeling.protocols import Answer, ItemFailed, Labeler, Postponed, TakenBack, is_number
from choosy.redaction import scrub
from choosy.types import MIRRORED, Verdict


class LabelerCall:
    """One call of a labeler's method with some questions, all to score or all to compare."""

    def __init__(self, labeler: Labeler, questions: Sequence[Question]) -> None:
        self.labeler = labeler
        self.questions = questions
        self.left = dict(enumerate(questions))  # without an answer, by their position in the call

    def answers(self) -> Generator[list[Answer]]:
        """Call the labeler and yield its answers: all of a list at once, each that it yields by itself.

        Raises:
            ValueError: The labeler raised an error (`Stopped`), or has left questions without an answer.
        """
        method = getattr(self.labeler, "score" if len(self.questions[0].responses) == 1 else "compare")
        gave, each = f"labeler {self.labeler.name} gave", f"{len(self.questions)} questions; it must give one for each"
        returned: Any = None
        try:
            returned = method([(q.prompt, *q.responses) for q in self.questions])
            if not isinstance(returned, Collection):
                for place, value in enumerate(returned):
                    yield [as_answer(place, value)]
        except (Postponed, Damaged):
            raise
        except Exception as error:  # a user's labeler may raise anything
            raise Stopped(self._failed(error)) from error
        finally:
            if isinstance(returned, Generator):
                returned.close()
        if isinstance(returned, Collection):
            if isinstance(returned, Mapping | Set | str | bytes) or getattr(returned, "shape", None) == ():
                raise ValueError(f"{gave} a {type(returned).__name__} for {each}, in a list and in their order")
            if len(returned) != len(self.questions):
                raise ValueError(f"{gave} {len(returned)} labels for {each}, in their order")
            yield [as_answer(place, value) for place, value in enumerate(returned)]
        if self.left:
            answered = len(self.questions) - len(self.left)
            raise ValueError(f"{gave} {answered} labels for {each}, and gave none for {self.left[min(self.left)]}")

    def accept(self, answer: Answer) -> Question:
        """Return the question that an answer belongs to, which is answered from now on."""
        if not isinstance(answer.at, Integral) or answer.at not in self.left:
            raise ValueError(
                f"labeler {self.labeler.name} gave an answer to item {answer.at!r}, which it was not asked or has "
                "answered before"
            )
        if why := unusable(answer, compared=len(self.left[answer.at].responses) == 2):
            raise Stopped(self._no_label(self.left[answer.at], why))
        return self.left.pop(answer.at)

    def take_back(self, answer: TakenBack) -> Question:
        """Return the question whose answer the labeler takes back; it has no answer from now on."""
        assert answer.at in range(len(self.questions)), "a labeler takes back an answer to an item of another call"
        assert answer.at not in self.left, "a labeler takes back an answer that it has not given"
        self.left[answer.at] = self.questions[answer.at]
        return self.questions[answer.at]

    def _failed(self, error: Exception) -> str:
        if isinstance(error, ItemFailed) and error.at in range(len(self.questions)):
            return self._no_label(self.questions[error.at], str(error), raised_at(error))
        first = min(self.left, default=-1)
        others = f" and {len(self.left) - 1} more" if len(self.left) > 1 else ""
        why = str(error) if isinstance(error, ItemFailed) else in_a_line(error)
        return self._no_label(f"{self.questions[first]}{others}", why, raised_at(error))

    def _no_label(self, question: Question | str, why: str, place: str = "") -> str:
        """Say why there is no label, and at which place in code of the user's."""
        ends = f"{place}\n" if place else ". "
        return (
            f"labeler {self.labeler.name} gave no label for {question}: {scrub(why)}{ends}"
            "The labels bought before it are in the ledger; mend the labeler and resume the run"
        )


def as_answer(at: int, value: float | Verdict | Answer) -> Answer:
    """What a labeler gives for the item at a position, as an answer; numbers of NumPy and torch as Python's."""
    if isinstance(value, Answer):
        return value
    return Answer(at, value.item() if getattr(value, "shape", None) == () else value)  # type: ignore[union-attr]  # it has a shape


def unusable(answer: Answer, *, compared: bool) -> str | None:
    """Why an answer cannot be used; None if it can."""
    value = answer.value
    if compared:
        if not (isinstance(value, str) and value in MIRRORED):
            return f"wanted one of {', '.join(MIRRORED)}, found {value!r}"
    elif not is_number(value):
        return f"wanted a finite number, 1e15 at most, found {value!r}"
    if not (is_number(answer.cost) and answer.cost >= 0):
        return f"wanted a cost from 0 to 1e15, found {answer.cost!r}"
    if not (
        answer.judgements is None or (isinstance(answer.judgements, Integral) and 0 <= answer.judgements < 1 << 31)
    ):
        return f"wanted its labels of the budget as a whole number, 0 or more, found {answer.judgements!r}"
    for text in (answer.raw, answer.annotator):
        if not isinstance(text, str):
            return f"wanted texts as raw and annotator, found {text!r}"
    return None


def chunks(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """The questions in portions of this size, the last one smaller."""
    return (questions[start : start + size] for start in range(0, len(questions), size))
