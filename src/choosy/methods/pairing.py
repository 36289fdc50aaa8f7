"""Which responses of a prompt make an item, from their rewards."""

from __future__ import annotations

from collections.abc import Sequence


def best_and_worst(rewards: Sequence[float]) -> tuple[int, int] | None:
    """Positions of the highest and the lowest reward, the first of equals; None if all are equal.

    OPTune's two responses are the case of two rewards (arXiv 2406.07657).

    Example:
        >>> best_and_worst([0.5, 2.0, -1.0, 2.0]), best_and_worst([1.0, 1.0])
        ((1, 2), None)
    """
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    return None if rewards[best] == rewards[worst] else (best, worst)


def ranked(rewards: Sequence[float | None]) -> list[int]:
    """Positions of the responses that have a reward, the highest first, equals in their order (PRO's ranking).

    Example:
        >>> ranked([0.5, None, 2.0, 0.5])
        [2, 0, 3]
    """
    known = [(-reward, i) for i, reward in enumerate(rewards) if reward is not None]
    return [i for _, i in sorted(known)]
