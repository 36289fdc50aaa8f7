"""A labeler that is asked each comparison twice, in both orders, so that the place of an answer decides nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from choosy.labeling.asking import in_places
from choosy.labeling.protocols import Answer, Compares, that
from choosy.types import MIRRORED, Prompt, Response


class BothOrders:
    """Asks another labeler for every pair and for the pair in reverse: a contradiction is a tie.

    One answer is two judgements: it takes two labels of the budget, and the money of both.

    Args:
        labeler: Who is asked.

    Attributes:
        name: The other labeler's, and that it was asked in both orders.

    Example:
        >>> class Biased:
        ...     name = "likes-the-first"
        ...
        ...     def compare(self, items):
        ...         return ["first"] * len(items)
        >>> asked = [(Prompt("p", "?"), Response("a"), Response("b"))]
        >>> [answer.value for answer in BothOrders(Biased()).compare(asked)]
        ['tie']
    """

    judgements = 2
    at_once = None  # the other labeler is asked as many at once as it wants

    def __init__(self, labeler: Compares) -> None:
        if not isinstance(labeler, Compares):
            raise ValueError(
                f"labeler {getattr(labeler, 'name', type(labeler).__name__)} gives no verdicts, and only a labeler "
                f"that compares can be asked in both orders: {that('compare')}"
            )
        self.labeler = labeler
        self.name = f"{labeler.name} in both orders"
        self.fingerprint = str(getattr(labeler, "fingerprint", ""))
        self.elsewhere = bool(getattr(labeler, "elsewhere", False))
        if (price := getattr(labeler, "price", None)) is not None:
            self.price = 2 * float(price)

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        """A verdict on each item as soon as both orders of it are judged."""
        both = [way for prompt, one, other in items for way in ((prompt, one, other), (prompt, other, one))]
        halves: dict[int, Answer] = {}
        try:
            for answer in in_places(self.labeler, self.labeler.compare, both):
                twin = halves.pop(answer.at ^ 1, None)
                if twin is None:
                    halves[answer.at] = answer
                else:
                    yield joined(*sorted((twin, answer), key=lambda half: half.at))
        except Exception as error:  # whatever it is, it goes on, with its place among the items
            if isinstance(at := getattr(error, "at", None), int):
                error.at = at // 2  # type: ignore[attr-defined]
            raise


def joined(one: Answer, turned: Answer) -> Answer:
    """What the judgements in both orders say together, as an answer to the first.

    Example:
        >>> joined(Answer(0, "first"), Answer(1, "second")).value, joined(Answer(0, "first"), Answer(1, "tie")).value
        ('first', 'tie')
    """
    raw = json.dumps([one.raw or one.value, turned.raw or turned.value], ensure_ascii=False)
    answer = Answer(one.at // 2, "tie", raw, one.cost + turned.cost, one.annotator)
    if unknown := [half.value for half in (one, turned) if half.value not in MIRRORED]:
        return answer._replace(value=unknown[0])  # the buyer refuses it
    mirrored = MIRRORED[turned.value]  # type: ignore[index]
    if one.value == mirrored or one.value == "invalid":
        return answer._replace(value=one.value)
    return answer._replace(value="invalid") if mirrored == "invalid" else answer
