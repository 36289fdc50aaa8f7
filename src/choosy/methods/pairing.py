"""Which responses of a prompt make an item, from their rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Literal

from choosy.types import Verdict

PairingRule = Literal["all", "best_worst", "sweet_spot"]
Threshold = float | Literal["mean", "median"]
Positions = list[tuple[int, int]]  # of the chosen and the rejected response of each pair


def best_and_worst(rewards: Sequence[float]) -> Positions:
    """Pair the highest with the lowest reward, the first of equals; no pair if all are equal.

    OPTune's two responses are the case of two rewards (arXiv 2406.07657).

    Example:
        >>> best_and_worst([0.5, 2.0, -1.0, 2.0]), best_and_worst([1.0, 1.0])
        ([(1, 2)], [])
    """
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    return [] if rewards[best] == rewards[worst] else [(best, worst)]


def all_unequal(rewards: Sequence[float]) -> Positions:
    """Pair each reward with every lower one: N scores tell N (N - 1) / 2 preferences.

    Example:
        >>> all_unequal([0.5, 2.0, 0.5])
        [(1, 0), (1, 2)]
    """
    return [(i, j) for i, better in enumerate(rewards) for j, worse in enumerate(rewards) if better > worse]


def sweet_spot(rewards: Sequence[float]) -> Positions:
    """Pair the highest reward with the one nearest to two standard deviations below the mean.

    The more responses there are, the stranger the worst of them, and the less it teaches (arXiv 2502.16825). Among five
    responses or fewer none lies further down, so that the nearest is the worst, as in `best_and_worst`.

    Args:
        rewards: Of the responses to one prompt. Of two that are equally near, the lower counts; of equals the first.

    Returns:
        One pair; none if all rewards are equal.

    Example:
        >>> sweet_spot([1.0] * 14 + [-4.0, -10.0])  # mean 0, deviation sqrt(130 / 16) = 2.85: -4 is nearest to -5.7
        [(0, 14)]
        >>> best_and_worst([1.0] * 14 + [-4.0, -10.0]), sweet_spot([2.0, 2.0])
        ([(0, 15)], [])
    """
    best = max(rewards)
    mean = sum(rewards) / len(rewards)
    target = mean - 2 * math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    below = [(abs(reward - target), reward, i) for i, reward in enumerate(rewards) if reward < best]
    return [(rewards.index(best), min(below)[-1])] if below else []


PAIRINGS: Mapping[PairingRule, Callable[[Sequence[float]], Positions]] = {
    "best_worst": best_and_worst,
    "sweet_spot": sweet_spot,
    "all": all_unequal,
}


def verdict_of_scores(first: float, second: float, neutral: float | None = None) -> Verdict:
    """Which of two scores is the larger; where one of them is `neutral`, which says nothing, the verdict is invalid.

    Example:
        >>> verdict_of_scores(2.0, 1.0), verdict_of_scores(1.0, 1.0), verdict_of_scores(0.0, -1.0, neutral=0.0)
        ('first', 'tie', 'invalid')
    """
    if neutral is not None and neutral in (first, second):
        return "invalid"
    return "tie" if first == second else "first" if first > second else "second"


def good_above(rewards: Sequence[float], threshold: Threshold) -> float:
    """The reward above which a single response is good, and below which it is bad.

    Args:
        rewards: Of the round's single responses, which set the mean or the median.
        threshold: A reward, or which statistic of the rewards it is.

    Example:
        >>> good_above([0.0, 1.0, 5.0], "mean"), good_above([0.0, 1.0, 5.0], "median"), good_above([], 3.5)
        (2.0, 1.0, 3.5)
    """
    if not isinstance(threshold, str):
        return float(threshold)
    if not rewards:
        return 0.0
    return fmean(rewards) if threshold == "mean" else float(median(rewards))


def ranked(rewards: Sequence[float | None], neutral: float | None = None) -> list[int]:
    """Positions of the responses that have a reward, the highest first, equals in their order (PRO's ranking).

    A `neutral` reward, which says nothing, counts as none.

    Example:
        >>> ranked([0.5, None, 2.0, 0.5])
        [2, 0, 3]
    """
    known = [(-reward, i) for i, reward in enumerate(rewards) if reward is not None and reward != neutral]
    return [i for _, i in sorted(known)]
