"""How sure is sure enough: the sureness from which mistakes stay below a share that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mistakes_at_most(mistakes: int, answers: int, *, confidence: float) -> float:
    """The largest share of mistakes that so few among so many answers still allow (Clopper and Pearson 1934).

    Args:
        mistakes: Seen.
        answers: Seen.
        confidence: The chance that the true share is not above what is returned, at least.

    Example:
        >>> round(mistakes_at_most(0, 22, confidence=0.9), 4), round(mistakes_at_most(2, 40, confidence=0.95), 4)
        (0.0994, 0.1492)
    """
    if mistakes >= answers:
        return 1.0
    ways = [math.log(math.comb(answers, k)) for k in range(mistakes + 1)]
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        right, wrong = math.log1p(-share), math.log(share)
        so_few = math.fsum(math.exp(way + k * wrong + (answers - k) * right) for k, way in enumerate(ways))
        low, high = (share, high) if so_few > 1 - confidence else (low, share)
    return high


def sure_from(
    sureness: Sequence[float], right: Sequence[bool], *, max_error: float, confidence: float = 0.9, steps: int = 4
) -> float:
    """The lowest sureness from which answers may be given, or infinity where that cannot be vouched for.

    The surest 1/steps, 2/steps, ... of the answers are tried, each at a confidence that allows for all of the tries;
    with that confidence the answers that are at least so sure are wrong no more often than `max_error`.

    Args:
        sureness: Of held-out answers; larger is surer.
        right: Whether each was right.
        max_error: Share of mistakes that is borne.
        confidence: Of the statement.
        steps: How many shares are tried.

    Example:
        >>> sure_from([3, 2, 1, 0] * 30, [True, True, True, False] * 30, max_error=0.1)
        1
        >>> sure_from([3, 2, 1, 0], [True] * 4, max_error=0.1)
        inf
    """
    order = sorted(range(len(sureness)), key=lambda i: -sureness[i])
    best = math.inf
    for step in range(1, steps + 1):
        edge = sureness[order[math.ceil(step * len(order) / steps) - 1]] if order else math.inf
        among = [i for i in order if sureness[i] >= edge]  # equally sure answers are answered alike
        wrong = sum(not right[i] for i in among)
        if among and mistakes_at_most(wrong, len(among), confidence=1 - (1 - confidence) / steps) <= max_error:
            best = edge
    return best
