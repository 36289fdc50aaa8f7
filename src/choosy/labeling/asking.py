"""How a labeler is asked: what the buyer and labelers that wrap another one share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from choosy.labeling.protocols import Answer, Labeler
from choosy.types import Verdict

T = TypeVar("T")

CHUNK = 64  # asked at once of a labeler that returns a list: at most so many are lost when the machine stops


def at_once(labeler: Labeler, method: Callable[..., Any], asked: int) -> int:
    """How many items, of those that are to be asked, the labeler's method is given at once."""
    said: int | None = getattr(labeler, "at_once", None if inspect.isgeneratorfunction(method) else CHUNK)
    return said or max(asked, 1)


def chunks(items: Sequence[T], size: int) -> Iterator[tuple[int, Sequence[T]]]:
    """The items in portions of this size, each with the place of its first.

    Example:
        >>> list(chunks("abcde", 2))
        [(0, 'ab'), (2, 'cd'), (4, 'e')]
    """
    for start in range(0, len(items), size):
        yield start, items[start : start + size]


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
    for start, chunk in chunks(items, at_once(labeler, method, len(items))):
        try:
            for place, told in enumerate(method(chunk)):
                answer = told if isinstance(told, Answer) else Answer(place, told)
                yield answer._replace(at=start + answer.at)
        except Exception as error:  # whatever it is, it goes on, with its place among all items
            if isinstance(at := getattr(error, "at", None), int):
                error.at = start + at  # type: ignore[attr-defined]
            raise
