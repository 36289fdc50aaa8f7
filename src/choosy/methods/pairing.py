"""Which responses of a prompt make an item, from their rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

PairingRule = Literal["best_worst", "sweet_spot"]


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest and the lowest reward, the first of equals; None if all are equal.

    OPTune's two responses are the case of two rewards (arXiv 2406.07657).

    Example:
        >>> best_and_worst([0.5, 2.0, -1.0, 2.0]), best_and_worst([1.0, 1.0])
        ((1, 2), None)
    """
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    return None if rewards[best] == rewards[worst] else (best, worst)


def sweet_spot(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest reward and of the one nearest to two standard deviations below the mean.

    The more responses there are, the stranger the worst of them, and the less it teaches (arXiv 2502.16825). Among five
    responses or fewer none lies further down, so that the nearest is the worst, as in `best_and_worst`.

    Args:
        rewards: Of the responses to one prompt. Of two that are equally near, the lower counts; of equals the first.

    Returns:
        The chosen and the rejected; None if all rewards are equal.

    Example:
        >>> sweet_spot([1.0] * 14 + [-4.0, -10.0])  # mean 0, deviation sqrt(130 / 16) = 2.85: -4 is nearest to -5.7
        (0, 14)
        >>> best_and_worst([1.0] * 14 + [-4.0, -10.0]), sweet_spot([2.0, 2.0])
        ((0, 15), None)
    """
    best = max(rewards)
    mean = sum(rewards) / len(rewards)
    target = mean - 2 * math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    below = [(abs(reward - target), reward, i) for i, reward in enumerate(rewards) if reward < best]
    return (rewards.index(best), min(below)[-1]) if below else None


PAIRINGS: Mapping[PairingRule, Callable[[Sequence[float]], tuple[int, int] | None]] = {
    "best_worst": best_and_worst,
    "sweet_spot": sweet_spot,
}


def ranked(rewards: Sequence[float | None]) -> list[int]:
    """Positions of the responses that have a reward, the highest first, equals in their order (PRO's ranking).

    Example:
        >>> ranked([0.5, None, 2.0, 0.5])
        [2, 0, 3]
    """
    known = [(-reward, i) for i, reward in enumerate(rewards) if reward is not None]
    return [i for _, i in sorted(known)]
