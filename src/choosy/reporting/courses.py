"""Statistics that compare arms of a sweep: the cost at which one reaches another's final quality.

An arm is one configuration, run with several seeds. Runs with the same seed are paired: they see the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Course:
    """What one run had spent, and what it had reached, at the start and at each evaluation.

    Attributes:
        spent: Amounts of each cost (labels, tokens, seconds, money), one an evaluation.
        quality: Held-out reward at each of them; the win rate against the start where the labeler gives no rewards.
    """

    spent: Mapping[str, tuple[float, ...]]
    quality: tuple[float, ...]


Arm = Mapping[int, Course]  # by seed


def mean_course(courses: Sequence[Course], cost: str) -> tuple[np.ndarray, np.ndarray]:
    """Amounts of a cost, and the mean quality of the runs there.

    Each run is interpolated between its evaluations, and keeps its last quality beyond the last of them.

    Example:
        >>> one, other = Course({"labels": (0, 10)}, (0.0, 1.0)), Course({"labels": (0, 20)}, (0.0, 4.0))
        >>> [part.tolist() for part in mean_course([one, other], "labels")]
        [[0.0, 10.0, 20.0], [0.0, 1.5, 2.5]]
    """
    amounts = np.array(sorted({float(x) for course in courses for x in course.spent[cost]}))
    return amounts, np.mean([np.interp(amounts, course.spent[cost], course.quality) for course in courses], axis=0)


def cost_to(courses: Sequence[Course], cost: str, target: float) -> float:
    """The amount of a cost at which the mean course reaches a reward; infinity if it never does.

    A course that falls again counts as what it had reached, and between two evaluations it rises in a straight line.

    Example:
        >>> cost_to([Course({"labels": (0, 10, 20)}, (0.0, 1.0, 3.0))], "labels", 2.0)
        15.0
    """
    amounts, rewards = mean_course(courses, cost)
    reached = np.maximum.accumulate(rewards)
    if reached[-1] < target:
        return math.inf
    at = int(np.argmax(reached >= target))
    if at == 0 or reached[at] == reached[at - 1]:
        return float(amounts[at])
    share = (target - reached[at - 1]) / (reached[at] - reached[at - 1])
    return float(amounts[at - 1] + share * (amounts[at] - amounts[at - 1]))


@dataclass(frozen=True)
class Versus:
    """An arm beside the baseline.

    Attributes:
        seeds: Seeds that both have.
        ratio: The arm's cost of the baseline's final reward, over the baseline's cost of it; below 1 is a saving.
        low: Lower end of the ratio's 95 % interval (bootstrap over seeds); nan where it is not known, as with one seed.
        high: Its upper end.
        gain: Mean difference of the final rewards.
        p: How often a difference as large comes about by chance (sign-flip test).
        more_seeds: Seeds that would show this difference four times out of five, less those there are; infinity if
            there is none, nan with one seed.
    """

    seeds: int
    ratio: float
    low: float
    high: float
    gain: float
    p: float
    more_seeds: float


def versus(arm: Arm, baseline: Arm, cost: str, *, seed: int = 0) -> Versus:
    """Compare an arm with the baseline: its cost at equal quality, its final quality.

    Raises:
        ValueError: They have no seed in common.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if not seeds:
        raise ValueError("The two arms have no seed in common; run both with the same seed=0,1,2.")
    reached = {s: min(len(arm[s].quality), len(baseline[s].quality)) for s in seeds}  # evaluations that both have
    arm, baseline = ({s: as_far_as(one[s], reached[s]) for s in seeds} for one in (arm, baseline))
    generator = np.random.default_rng(seed)
    drawn = [
        ratio_of([arm[s] for s in some], [baseline[s] for s in some], cost) for some in resampled(seeds, generator)
    ]
    known = len(seeds) > 1 and not any(map(math.isnan, drawn))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest") if known else (math.nan, math.nan)
    gains = np.array([arm[s].quality[-1] - baseline[s].quality[-1] for s in seeds])
    return Versus(
        len(seeds),
        ratio_of([arm[s] for s in seeds], [baseline[s] for s in seeds], cost),
        float(low),
        float(high),
        float(gains.mean()),
        sign_flip(gains, generator),
        seeds_needed(gains) - len(seeds),
    )


def ratio_of(arm: Sequence[Course], baseline: Sequence[Course], cost: str) -> float:
    """What the arm pays for the baseline's final quality, over what the baseline pays; infinity if never reached.

    It is nan where the baseline ends no better than it began, so that its final quality costs nothing.
    """
    target = float(np.mean([course.quality[-1] for course in baseline]))
    paid = cost_to(baseline, cost, target)
    return cost_to(arm, cost, target) / paid if paid else math.nan


def as_far_as(course: Course, evaluations: int) -> Course:
    """A course up to so many evaluations."""
    spent = {cost: amounts[:evaluations] for cost, amounts in course.spent.items()}
    return Course(spent, course.quality[:evaluations])


def resampled(seeds: Sequence[int], generator: np.random.Generator, draws: int = DRAWS) -> list[list[int]]:
    """Bootstrap samples of the seeds."""
    samples: list[list[int]] = generator.choice(np.array(seeds), (draws, len(seeds))).tolist()
    return samples


def sign_flip(differences: np.ndarray, generator: np.random.Generator) -> float:
    """The share of sign patterns under which the mean difference is at least as far from 0 as it is.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 3.0]), np.random.default_rng(0))
        0.25
    """
    n = len(differences)
    signs = np.array(list(product((-1, 1), repeat=n))) if n <= 12 else generator.choice((-1, 1), (20_000, n))
    means = np.abs(signs @ differences) / n
    return float(np.mean(means >= abs(differences.mean()) - 1e-12))


def seeds_needed(differences: np.ndarray) -> float:
    """Seeds that show a mean difference of this size at 5 % with a power of 80 %.

    Example:
        >>> round(seeds_needed(np.array([1.0, 3.0])), 1)
        3.9
    """
    if len(differences) < 2:
        return math.nan
    mean = abs(differences.mean())
    return math.inf if mean == 0 else float((2.8 * differences.std(ddof=1) / mean) ** 2)
