"""Statistics that compare arms of a sweep: the cost at which one reaches another's final quality.

An arm is one configuration, run with several seeds. Runs with the same seed are paired: they see the same prompts.
Intervals are 95 %, by a bootstrap over seeds and, where single answers are known, held-out prompts.

Shapes: D draws of the bootstrap, of which the first is the data as they are; S seeds; E evaluations of a run; P
held-out prompts; G amounts of a cost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

DRAWS = 2000
Z95 = 1.959964  # standard errors on either side of a mean, in an interval that covers 95 %


@dataclass(frozen=True)
class Course:
    """What one run had spent, and what it had reached, at the start and at each evaluation.

    Attributes:
        spent: Amounts of each cost (labels, tokens, seconds, money), one an evaluation.
        quality: The held-out reward at each of them, or another measure.
        kl: KL divergence from the start policy at each of them; empty if it was not measured.
        answers: For each held-out prompt the quality of its answer at each of them, nan where it has none; their mean
            is `quality`. Empty if they are not known: then no prompts are drawn.
        measure: What `quality` is: `reward`, `win_rate` against the start, or `accuracy` on held-out pairs.
        judge: Who has measured it, on which data.
        typed: What was typed for the run, without its seed; empty where that is not known.
        finished: Whether the run has come to its end.
    """

    spent: Mapping[str, tuple[float, ...]]
    quality: tuple[float, ...]
    kl: tuple[float, ...] = ()
    answers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    measure: str = "reward"
    judge: str = ""
    typed: tuple[str, ...] = ()
    finished: bool = True


Arm = Mapping[int, Course]  # by seed


class Interval(NamedTuple):
    """An estimate with its 95 % interval, whose ends are nan where they are not known, as with one seed."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def ends(self, form: str) -> str:
        """Write the ends; "" where they are not known.

        Example:
            >>> Interval(0.5, 0.25, 0.75).ends(".0%"), Interval(0.5).ends(".0%")
            ('25% to 75%', '')
        """
        return "" if math.isnan(self.low) or math.isnan(self.high) else f"{self.low:{form}} to {self.high:{form}}"


@dataclass(frozen=True)
class Versus:
    """An arm beside the baseline.

    Attributes:
        seeds: Seeds that both have.
        paid: The arm's cost of the baseline's final quality; infinity if it never reaches it.
        ratio: The same over the baseline's cost of it; below 1 is a saving. It is nan where the baseline ends no better
            than it began, so that its final quality costs nothing. Where that is so in some draws only, an arm that has
            this quality from the start counts in them as equal, 1, which is no saving; any other as infinity. So a
            saving is shown only where at most one draw in forty is of that kind.
        gain: Mean difference of the final qualities.
        area: Mean difference of the mean quality over the axis of the cost, as far as both came.
        at_kl: Mean difference of the quality at the baseline's final KL divergence; an arm that ends nearer to the
            start counts with its final quality. It is nan where KL was not measured.
        p: How often a difference of the final qualities as large comes about by chance (sign-flip test).
        more_seeds: Seeds that would show this difference four times out of five, less those there are; infinity if
            there is none, nan with one seed.
    """

    seeds: int
    paid: Interval
    ratio: Interval
    gain: Interval
    area: Interval
    at_kl: Interval
    p: float
    more_seeds: float


def versus(arm: Arm, baseline: Arm, cost: str, *, comparisons: int = 1, seed: int = 0) -> Versus:
    """Compare an arm with the baseline: its cost at equal quality, its quality at equal cost.

    Beside a run that has not come to its end, the other counts as far as that one came.

    Args:
        arm: The arm.
        baseline: The baseline.
        cost: The cost.
        comparisons: How many arms are compared with the baseline, which more seeds must tell apart from chance.
        seed: Of the draws.

    Raises:
        ValueError: They have no seed in common.
    """
    ours, theirs = in_common(arm, baseline)
    seeds = len(ours)
    generator = np.random.default_rng(seed)
    weight_DS = seed_weights(seeds, generator)
    quality = drawn_quality([*ours, *theirs], generator)
    our_quality, their_quality = quality[:seeds], quality[seeds:]

    def difference(our_weights: Sequence[np.ndarray], their_weights: Sequence[np.ndarray]) -> np.ndarray:
        """Mean difference, in each draw, of qualities that are summed over evaluations with these weights."""
        pairs = zip(our_quality, our_weights, their_quality, their_weights, strict=True)
        mean_D: np.ndarray = np.einsum(
            "ds,sd->d", weight_DS, [a_DE @ a_E - b_DE @ b_E for a_DE, a_E, b_DE, b_E in pairs]
        )
        return mean_D

    our_last, last = ([np.eye(len(course.quality))[-1] for course in side] for side in (ours, theirs))
    ends = [min(a.spent[cost][-1], b.spent[cost][-1]) for a, b in zip(ours, theirs, strict=True)]
    areas = [[area_weights(c.spent[cost], end) for c, end in zip(side, ends, strict=True)] for side in (ours, theirs)]
    target_D = np.einsum("ds,sd->d", weight_DS, [quality_DE[:, -1] for quality_DE in their_quality])
    paid_D = costs_to(ours, our_quality, weight_DS, cost, target_D)
    whole_D = costs_to(theirs, their_quality, weight_DS, cost, target_D)
    ratio_D = np.divide(paid_D, whole_D, out=np.where(paid_D > 0, math.inf, 1.0), where=whole_D > 0)
    gains = np.array([a.quality[-1] - b.quality[-1] for a, b in zip(ours, theirs, strict=True)])
    at_kl = Interval(math.nan)
    if all(course.kl for course in (*ours, *theirs)):
        there = [kl_weights(a.kl, b.kl[-1]) for a, b in zip(ours, theirs, strict=True)]
        at_kl = interval(difference(there, last), seeds)
    return Versus(
        seeds,
        interval(paid_D, seeds),
        interval(ratio_D, seeds) if whole_D[0] > 0 else Interval(math.nan),
        interval(difference(our_last, last), seeds),
        interval(difference(*areas), seeds),
        at_kl,
        sign_flip(gains, generator),
        seeds_needed(gains, comparisons) - seeds,
    )


def in_common(arm: Arm, baseline: Arm) -> tuple[list[Course], list[Course]]:
    """The runs of two arms on the seeds that both have, each pair as far as both came.

    Raises:
        ValueError: They have no seed in common.
    """
    pairs = [equally_far(arm[seed], baseline[seed]) for seed in sorted(arm.keys() & baseline.keys())]
    if not pairs:
        raise ValueError("The two arms have no seed in common; run both with the same seed=0,1,2.")
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def each_course(courses: Sequence[Course], cost: str) -> tuple[np.ndarray, np.ndarray]:
    """Amounts (G,) of a cost, and the quality (S, G) of each run there.

    Each run is interpolated between its evaluations, and keeps its last quality beyond the last of them.

    Example:
        >>> one, other = Course({"labels": (0, 10)}, (0.0, 1.0)), Course({"labels": (0, 20)}, (0.0, 4.0))
        >>> [part.tolist() for part in each_course([one, other], "labels")]
        [[0.0, 10.0, 20.0], [[0.0, 1.0, 1.0], [0.0, 2.0, 4.0]]]
    """
    amount_G, before_G = amounts([course.spent[cost] for course in courses])
    parts = [np.array(c.quality) @ interpolation(amount_G, c.spent[cost], before_G) for c in courses]
    return amount_G, np.array(parts)


def cost_to(courses: Sequence[Course], cost: str, target: float) -> float:
    """The amount of a cost at which the mean course reaches a quality; infinity if it never does.

    A course that falls again counts as what it had reached, and between two evaluations it rises in a straight line.

    Example:
        >>> cost_to([Course({"labels": (0, 10, 20)}, (0.0, 1.0, 3.0))], "labels", 2.0)
        15.0
    """
    quality = [np.array([course.quality]) for course in courses]
    even = np.full((1, len(courses)), 1 / len(courses))
    return float(costs_to(courses, quality, even, cost, np.array([target]))[0])


def costs_to(
    courses: Sequence[Course], quality: Sequence[np.ndarray], weight_DS: np.ndarray, cost: str, target_D: np.ndarray
) -> np.ndarray:
    """The amount of a cost at which the mean course of each draw reaches its target (see `cost_to`).

    Args:
        courses: The runs.
        quality: For each of them its quality in each draw, (D, E).
        weight_DS: The weight of each run in each draw.
        cost: The cost.
        target_D: The quality that is wanted.
    """
    amount_G, before_G = amounts([course.spent[cost] for course in courses])
    mean_DG = np.zeros((len(target_D), len(amount_G)))
    for weight_D, quality_DE, course in zip(weight_DS.T, quality, courses, strict=True):
        mean_DG += weight_D[:, None] * (quality_DE @ interpolation(amount_G, course.spent[cost], before_G))
    reached_DG = np.maximum.accumulate(mean_DG, axis=1)
    hit_DG = reached_DG >= target_D[:, None] - 1e-9  # sums in another order differ in their last digits
    at_D, draw_D = hit_DG.argmax(axis=1), np.arange(len(target_D))
    before_D = np.maximum(at_D - 1, 0)
    low_D, high_D = reached_DG[draw_D, before_D], reached_DG[draw_D, at_D]
    rise_D = np.where(high_D > low_D, high_D - low_D, math.inf)
    share_D = np.where(high_D > low_D, np.clip((target_D - low_D) / rise_D, 0, 1), 1.0)
    found_D = amount_G[before_D] + share_D * (amount_G[at_D] - amount_G[before_D])
    return np.where(hit_DG.any(axis=1), found_D, math.inf)


def amounts(spent: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The amounts (G,) at which runs were evaluated, and whether each of them stands for the moment before it.

    An amount at which a run was evaluated several times, as when its budget is spent, stands twice: when the run came
    to it, and when the run left it.

    Example:
        >>> [part.tolist() for part in amounts([(0, 10, 10), (0, 20)])]
        [[0.0, 10.0, 10.0, 20.0], [False, True, False, False]]
    """
    twice = {float(x) for at in spent for x, number in Counter(at).items() if number > 1}
    moments = {(float(x), False) for at in spent for x in at} | {(x, True) for x in twice}
    in_order = sorted(moments, key=lambda moment: (moment[0], not moment[1]))
    amount_G, before_G = (np.array(part) for part in zip(*in_order, strict=True))
    return amount_G, before_G


def interpolation(amount_G: np.ndarray, at: Sequence[float], before_G: np.ndarray | None = None) -> np.ndarray:
    """The weights (E, G) with which values at some points make their straight interpolation at other amounts.

    Of several points at one amount the last counts; the first, where `before_G` says the moment before the amount.

    Example:
        >>> interpolation(np.array([0.0, 5.0, 30.0]), (0.0, 10.0, 20.0)).T.tolist()
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    if before_G is not None:
        twice = [x for x, number in Counter(at).items() if number > 1]
        amount_G = np.where(before_G & np.isin(amount_G, twice), np.nextafter(amount_G, -math.inf), amount_G)
    return np.array([np.interp(amount_G, at, one) for one in np.eye(len(at))])


def area_weights(at: Sequence[float], end: float) -> np.ndarray:
    """The weights (E,) with which values at some points make the mean of their interpolation up to an end.

    Example:
        >>> area_weights((0.0, 10.0, 20.0), 10.0).tolist()
        [0.5, 0.5, 0.0]
    """
    amount_G, before_G = amounts([[*(x for x in at if x < end), end, end]])
    amount_G, before_G = amount_G[:-1], before_G[:-1]  # up to the moment before the end
    values_EG = interpolation(amount_G, at, before_G)
    if len(amount_G) == 1:
        return values_EG[:, 0]
    mean_E: np.ndarray = np.trapezoid(values_EG, amount_G, axis=1) / np.ptp(amount_G)
    return mean_E


def kl_weights(kl: Sequence[float], wanted: float) -> np.ndarray:
    """The weights (E,) with which values at each evaluation make the value at a KL divergence.

    Example:
        >>> kl_weights((0.0, 4.0, 3.0, 8.0), 6.0).tolist()
        [0.0, 0.0, 0.5, 0.5]
    """
    return interpolation(np.array([wanted]), np.maximum.accumulate(kl).tolist())[:, 0]


def equally_far(one: Course, other: Course) -> tuple[Course, Course]:
    """Two courses up to the last evaluation of one that has not come to its end."""
    ends = [len(course.quality) for course in (one, other) if not course.finished]
    end = min(ends, default=max(len(one.quality), len(other.quality)))
    return as_far_as(one, end), as_far_as(other, end)


def as_far_as(course: Course, evaluations: int) -> Course:
    """A course up to so many evaluations."""
    spent = {cost: amounts[:evaluations] for cost, amounts in course.spent.items()}
    answers = {prompt: each[:evaluations] for prompt, each in course.answers.items()}
    return Course(spent, course.quality[:evaluations], course.kl[:evaluations], answers, course.measure)


def seed_weights(seeds: int, generator: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """The share (D, S) of each seed in bootstrap samples; in the first, every seed stands once."""
    drawn = generator.multinomial(seeds, [1 / seeds] * seeds, draws) / seeds
    return np.vstack([np.full(seeds, 1 / seeds), drawn])


def drawn_quality(courses: Sequence[Course], generator: np.random.Generator, draws: int = DRAWS) -> list[np.ndarray]:
    """For each run its quality (D, E) with held-out prompts drawn, the same ones for all runs.

    The draws are a Bayesian bootstrap (Rubin 1981), which leaves every prompt some weight; the first draw is the
    quality as it was measured, and all of them are where the single answers are not known.
    """
    quality = [np.repeat([course.quality], draws + 1, axis=0) for course in courses]
    if not all(course.answers for course in courses):
        return quality
    prompts = sorted({prompt for course in courses for prompt in course.answers})
    weight_DP = generator.standard_exponential((draws, len(prompts)))
    gap = [[math.nan] * len(course.quality) for course in courses]
    table = [np.array([c.answers.get(p, none) for p in prompts]) for c, none in zip(courses, gap, strict=True)]
    value_PE = np.hstack(table)
    known_PE = ~np.isnan(value_PE)
    drawn_DE = (weight_DP @ np.where(known_PE, value_PE, 0.0)) / (weight_DP @ known_PE)
    ends = np.cumsum([len(course.quality) for course in courses])
    for each_DE, of_run_DE in zip(quality, np.split(drawn_DE, ends[:-1], axis=1), strict=True):
        each_DE[1:] = of_run_DE
    return quality


def interval(value_D: np.ndarray, seeds: int) -> Interval:
    """The first draw, with the interval of the others; one seed, and what is not known in every draw, has none."""
    if seeds == 1 or np.isnan(value_D).any():
        return Interval(float(value_D[0]))
    low, high = np.quantile(value_D[1:], [0.025, 0.975], method="nearest")
    return Interval(float(value_D[0]), float(low), float(high))


def sign_flip(differences: np.ndarray, generator: np.random.Generator) -> float:
    """The share of sign patterns under which the mean difference is at least as far from 0 as it is.

    Beyond twelve differences 20,000 patterns are drawn, and the one that was found is counted with them.

    Example:
        >>> sign_flip(np.array([1.0, 2.0, 3.0]), np.random.default_rng(0))
        0.25
    """
    n = len(differences)
    if n <= 12:
        signs = np.array(list(product((-1, 1), repeat=n)))
    else:
        signs = np.vstack([np.ones(n), generator.choice((-1, 1), (20_000, n))])
    means = np.abs(signs @ differences) / n
    return float(np.mean(means >= abs(differences.mean()) * (1 - 1e-9)))  # sums in another order differ a little


def seeds_needed(differences: np.ndarray, comparisons: int = 1) -> float:
    """Seeds that show a mean difference of this size at 5 % with a power of 80 %, as one of several comparisons.

    They are at least so many that a sign-flip test can show it at all.

    Example:
        >>> one = np.array([1.0, 3.0, 2.0, 6.0])
        >>> [round(seeds_needed(one, k), 1) for k in (1, 4)]
        [6.0, 8.0]
    """
    if len(differences) < 2:
        return math.nan
    mean = abs(differences.mean())
    if mean == 0:
        return math.inf
    level = 0.05 / comparisons
    z = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(0.8)
    return float(max((z * differences.std(ddof=1) / mean) ** 2, math.floor(math.log2(2 / level)) + 1))
