"""The judgement of a labeler that is asked about a pair in both orders, so that positions decide nothing."""

from __future__ import annotations

import json

from choosy.labeling.protocols import Answer
from choosy.types import MIRRORED


def combine_orders(one: Answer, turned: Answer) -> Answer:
    """Combine the verdicts on a pair in both orders: a contradiction is a tie, and one invalid makes the whole invalid.

    Args:
        one: The verdict on (first, second).
        turned: The verdict on (second, first).

    Returns:
        The verdict on (first, second), with the words and the cost of both.

    Example:
        >>> combine_orders(Answer(0, "first"), Answer(0, "second")).value
        'first'
        >>> combine_orders(Answer(0, "first"), Answer(0, "first")).value
        'tie'
    """
    verdicts = {one.value, MIRRORED[turned.value]}  # type: ignore[index]
    value = "invalid" if "invalid" in verdicts else one.value if len(verdicts) == 1 else "tie"
    raw = json.dumps([one.raw or one.value, turned.raw or turned.value], ensure_ascii=False)
    return one._replace(value=value, raw=raw, cost=one.cost + turned.cost)
