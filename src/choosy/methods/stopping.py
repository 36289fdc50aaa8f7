"""Tells which runs of a search are not worth their further rounds.

A run that is stopped after some of its rounds is forecast to grow by as much as runs that were played to their ends
did from there. What its rest would teach for its cost is compared with what a new run would, as in freeze-thaw
optimisation (Swersky et al. 2014, arXiv 1406.3896), with the gain of `safe_region.knowledge_gain`.

Shapes: R rounds of a run without its last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from choosy.methods.safe_region import Proposal, expected_improvement

ASSUMED = 3  # runs' worth of the variance that is assumed of forecasts
FAR = 8.0  # standard deviations, beyond which nothing is expected


def growth(curves: Sequence[Sequence[float]], rounds: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """How much runs grow from each round but the last to their end, and the variance of such a forecast.

    Args:
        curves: The quality after each round, of runs that were played to their ends.
        rounds: Only those with so many are looked at.
        spread: The standard deviation of the growth over a whole run that is assumed at first.

    Returns:
        A value for each round, none if there is no such run.

    Example:
        >>> growth([(1.0, 2.0), (1.0, 3.0), (5.0,)], 2, 1.0)[0].tolist()
        [1.5]
    """
    found = np.array([curve for curve in curves if len(curve) == rounds])
    if not len(found):
        return np.empty(0), np.empty(0)
    grown_NR = found[:, -1:] - found[:, :-1]
    left_R = 1 - np.arange(1, rounds) / rounds
    off_R = ((grown_NR - grown_NR.mean(0)) ** 2).sum(0)
    variance_R = (ASSUMED * left_R * spread**2 + off_R) / (ASSUMED + len(found) - 1)
    return grown_NR.mean(0), variance_R * (1 + 1 / len(found))


def least_quality(
    proposal: Proposal,
    noise: float,
    forecast: tuple[np.ndarray, np.ndarray],
    *,
    best: float,
    start: float,
    allowed_loss: float,
    confidence: float,
) -> tuple[float, ...]:
    """The quality after each round but the last below which a run is stopped.

    After a round the run's end is forecast, which tells of its settings as a noisy run does. The run is stopped where
    its rest would teach less for its cost than the best new run, or where it leaves the safe region: where its quality
    after its next round is no longer, with the wanted confidence, above the start's less the allowed loss.

    Args:
        proposal: What was predicted of the run before it began.
        noise: The variance between runs with the same settings.
        forecast: How much a run grows to its end, and the variance of that (see `growth`).
        best: The highest predicted quality of settings that were played.
        start: The predicted quality of the start.
        allowed_loss: How much worse than the start a run may be.
        confidence: With which it is no worse than that.
    """
    growth_R, doubt_R = forecast
    rounds, before = len(growth_R) + 1, proposal.variance
    at_the_end = before * noise / (before + noise)
    found = []
    for played, (grown, doubt) in enumerate(zip(growth_R, doubt_R, strict=True), 1):
        share = before / (before + noise + doubt)  # of what it differs by, that counts
        after = before * (1 - share)
        safe = start - allowed_loss * rounds / (played + 1) + norm.ppf(confidence) * math.sqrt(after)
        safe = safe if proposal.index else -math.inf  # the start is safe
        wanted = proposal.rate * proposal.cost * (1 - played / rounds)
        worthwhile = mean_for(wanted, math.sqrt(max(after - at_the_end, 1e-12)), best)
        end = proposal.quality + (max(safe, worthwhile) - proposal.quality) / share
        found.append(float(end - grown))
    return tuple(found)


def mean_for(gain: float, deviation: float, best: float) -> float:
    """The mean from which the expected improvement on the best value is as large as a gain.

    Example:
        >>> round(mean_for(0.399, 1.0, 1.0), 2), mean_for(0.0, 1.0, 1.0)
        (1.0, -inf)
    """
    low = best - FAR * deviation

    def missing(mean: float) -> float:
        return gain - float(expected_improvement(np.array(mean), np.array(deviation), best))

    return -math.inf if missing(low) <= 0 else float(brentq(missing, low, best + gain))


def falls_short(quality: Sequence[float], least: Sequence[float]) -> bool:
    """Whether a run's quality after its latest round is below the least for that round.

    Example:
        >>> falls_short([0.1], [0.2]), falls_short([0.1, 0.6], [0.2, 0.5]), falls_short([0.1, 0.1], [0.2])
        (True, False, False)
    """
    return 0 < len(quality) <= len(least) and quality[-1] < least[len(quality) - 1]
