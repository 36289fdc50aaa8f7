"""Find the margin above which a model's answers are wrong rarely enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest


def error_rate_bound(wrong: int, answers: int, *, confidence: float) -> float:
    """Return the one-sided upper confidence bound on an error rate (Clopper and Pearson 1934).

    Example:
        >>> round(error_rate_bound(0, 22, confidence=0.9), 4), round(error_rate_bound(2, 40, confidence=0.95), 4)
        (0.0994, 0.1492)
    """
    if answers == 0:
        return 1.0
    return float(binomtest(wrong, answers, alternative="less").proportion_ci(confidence, method="exact").high)


def answer_threshold(
    margins: Sequence[float], correct: Sequence[bool], *, max_error: float, confidence: float = 0.9, steps: int = 4
) -> float:
    """Return the lowest margin from which the error rate is at most `max_error`, or infinity if none can be shown.

    The 1/steps, 2/steps, ... of the answers with the largest margins are tried (with Bonferroni's correction).

    Args:
        margins: Of held-out answers; larger is surer.
        correct: Whether each was right.
        max_error: Share of answers that may be wrong, at this confidence.

    Example:
        >>> answer_threshold([3, 2, 1, 0] * 30, [True, True, True, False] * 30, max_error=0.1)
        1
        >>> answer_threshold([3, 2, 1, 0], [True] * 4, max_error=0.1)
        inf
    """
    descending = sorted(margins, reverse=True)
    lowest = math.inf
    for step in range(1, steps + 1) if descending else ():
        threshold = descending[math.ceil(step * len(descending) / steps) - 1]
        above = [right for margin, right in zip(margins, correct, strict=True) if margin >= threshold]
        bound = error_rate_bound(above.count(False), len(above), confidence=1 - (1 - confidence) / steps)
        if bound <= max_error:
            lowest = threshold
    return lowest
