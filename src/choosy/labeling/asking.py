"""How a labeler is asked: what the desk and labelers that wrap another one share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from choosy.labeling import Answer, Labeler
from choosy.types import Verdict

T = TypeVar("T")

CHUNK = 64  # asked at once of a labeler that returns a list: at most so many are lost when the machine stops


def chunks(items: Sequence[T], labeler: Labeler, method: Callable[..., Any]) -> Iterator[tuple[int, Sequence[T]]]:
    """The items as they may be asked of the labeler's method at once, with the place of the first of each chunk."""
    yields = inspect.isgeneratorfunction(method)
    step = getattr(labeler, "at_once", None if yields else CHUNK) or len(items)
    for start in range(0, len(items), max(step, 1)):
        yield start, items[start : start + step]


def in_places(
    labeler: Labeler, method: Callable[[Sequence[T]], Iterable[float | Verdict | Answer]], items: Sequence[T]
) -> Iterator[Answer]:
    """The labeler's answers with their places in `items`, however it gives them; so has an error that names its item.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> from choosy.types import Prompt, Response
        >>> asked = [(Prompt("p", "?"), Response(text)) for text in ("Fine.", "")]
        >>> [(answer.at, answer.value) for answer in in_places(Vader(), Vader().score, asked)]
        [(0, 0.2023), (1, 0.0)]
    """
    for start, chunk in chunks(items, labeler, method):
        try:
            for place, told in enumerate(method(chunk)):
                answer = told if isinstance(told, Answer) else Answer(place, told)
                yield answer._replace(at=start + answer.at)
        except Exception as error:  # whatever it is, it goes on, with its place among all items
            if isinstance(at := getattr(error, "at", None), int):
                error.at = start + at  # type: ignore[attr-defined]
            raise
