"""Proposes settings that are predicted to be no worse than a start by more than an allowed loss.

The safe region, and tuning a job from one period to the next, are those of Li et al. 2023 (arXiv 2309.01901); a period
is here a run. What a run teaches is the knowledge gradient of Frazier et al. 2009 for the settings that it plays; it is
divided by a power of the predicted cost, as by Lee et al. 2020 (arXiv 2003.10870).

Shapes: N runs; C candidates; D coordinates of the settings, each from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.spatial.distance import cdist
from scipy.stats import norm

LENGTHS = (0.35, 0.7, 1.4)  # of the kernel
NOISES = (0.01, 0.03, 0.1, 0.2, 0.5, 1.0)  # variances between equal runs, as shares of that over all settings
EXPECTED = (0.7, 0.5)  # a length and a noise, before runs tell
UNSURE = (0.5, 1.0)  # standard deviations of their logarithms
LEAST_COST = 1e-6  # of a run that is free


@dataclass(frozen=True)
class Shown:
    """What the runs so far have shown.

    Attributes:
        point_ND: Their settings.
        quality_N: The quality at their ends, forecast where a run was stopped.
        doubt_N: The variance of these forecasts; 0 of a run that was played to its end.
        cost_N: What they have cost, or would have when played to their ends.
    """

    point_ND: np.ndarray
    quality_N: np.ndarray
    doubt_N: np.ndarray
    cost_N: np.ndarray


@dataclass(frozen=True)
class Proposal:
    """One of the candidates, and what is predicted of it.

    Attributes:
        index: Its place among the candidates.
        quality: Its predicted quality.
        variance: The variance of that.
        low: The quality that it exceeds with the wanted confidence, as far as that of the start is known.
        gain: The largest expected gain inside the safe region, its own or a more expensive candidate's.
        rate: The largest expected gain for its cost.
        cost: Its predicted cost.
        safe: How many candidates lie inside the safe region.
    """

    index: int
    quality: float
    variance: float
    low: float
    gain: float
    rate: float
    cost: float
    safe: int


class Posterior:
    """What runs tell about the value of other settings: a Gaussian process with a Matérn 5/2 kernel and noise.

    Attributes:
        noise: The variance between runs with the same settings.
        length: Of the kernel; it and the noise are the most probable of a few.
    """

    def __init__(
        self, point_ND: np.ndarray, value_N: np.ndarray, centre: float, *, doubt_N: np.ndarray, scale: float = 0.0
    ) -> None:
        """Condition the process on the runs.

        Args:
            point_ND: The settings of the runs.
            value_N: Their values.
            centre: The value that is expected far from all of them.
            doubt_N: The variance of each value beside the noise.
            scale: The standard deviation over all settings that is assumed while the runs show a smaller one.
        """
        apart_N = value_N - centre
        self.point_ND, self.centre = point_ND, centre
        self.scale = max(float(np.sqrt(np.mean(apart_N**2))), scale) or 1.0
        likely = -np.inf
        for length, share in product(LENGTHS, NOISES):
            noise = share * self.scale**2
            kernel_NN = self.scale**2 * matern(point_ND, point_ND, length)
            factor_NN = cholesky(kernel_NN + np.diag(noise + doubt_N), lower=True)
            explained_N = solve_triangular(factor_NN, apart_N, lower=True)
            off = np.log(np.divide((length, share), EXPECTED)) / UNSURE
            log_posterior = -0.5 * (off @ off + explained_N @ explained_N) - np.log(factor_NN.diagonal()).sum()
            if log_posterior > likely:
                likely, self.noise, self.length = log_posterior, noise, length
                self.factor_NN, self.explained_N = factor_NN, explained_N

    def predict(self, point_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the variance of the value at each candidate, without the noise of a single run."""
        mean_C, variance_C = self._moments(self._kernel(point_CD), np.full(len(point_CD), self.scale**2))
        return self.centre + mean_C, variance_C

    def differences(self, point_CD: np.ndarray, point_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the variance of how far the value at each candidate exceeds that at a point."""
        prior_C = 2 * self.scale**2 * (1 - matern(point_CD, point_D[None], self.length)[:, 0])
        return self._moments(self._kernel(point_CD) - self._kernel(point_D[None]), prior_C)

    def _kernel(self, point_CD: np.ndarray) -> np.ndarray:
        return self.scale**2 * matern(self.point_ND, point_CD, self.length)

    def _moments(self, kernel_NC: np.ndarray, prior_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        explained_NC = solve_triangular(self.factor_NN, kernel_NC, lower=True)
        return self.explained_N @ explained_NC, np.maximum(prior_C - (explained_NC**2).sum(0), 1e-12)


def matern(one_ND: np.ndarray, other_MD: np.ndarray, length: float) -> np.ndarray:
    """The Matérn 5/2 kernel with variance 1."""
    distance_NM = cdist(one_ND, other_MD) * np.sqrt(5) / length
    kernel_NM: np.ndarray = (1 + distance_NM + distance_NM**2 / 3) * np.exp(-distance_NM)
    return kernel_NM


def expected_improvement(mean_C: np.ndarray, deviation_C: np.ndarray, best: float) -> np.ndarray:
    """How much each candidate is expected to exceed the best value, where one that does not exceeds it by 0.

    Example:
        >>> expected_improvement(np.array([1.0, 1.0]), np.array([1.0, 1e-9]), 1.0).round(3).tolist()
        [0.399, 0.0]
    """
    z_C = (mean_C - best) / deviation_C
    found_C: np.ndarray = deviation_C * (z_C * norm.cdf(z_C) + norm.pdf(z_C))
    return found_C


def knowledge_gain(mean_C: np.ndarray, variance_C: np.ndarray, noise: float, best: float) -> np.ndarray:
    """How much the predicted quality of each candidate is expected to exceed the best one after a run with it.

    Example:
        >>> knowledge_gain(np.array([1.0]), np.array([1.0]), 3.0, 1.0).round(3).tolist()  # a half of a sure run's
        [0.199]
    """
    return expected_improvement(mean_C, variance_C / np.sqrt(variance_C + noise), best)


def quality_of(shown: Shown, start_D: np.ndarray, allowed_loss: float) -> Posterior:
    """What runs tell about the quality: far from them it is expected to be that of the start, which was played.

    Until they show more, its standard deviation over all settings is taken to be twice the allowed loss, so that only
    settings near the start are safe at first.
    """
    centre = float(shown.quality_N[(shown.point_ND == start_D).all(axis=1)].mean())
    return Posterior(shown.point_ND, shown.quality_N, centre, doubt_N=shown.doubt_N, scale=2 * allowed_loss)


def propose(
    shown: Shown,
    point_CD: np.ndarray,
    *,
    allowed_loss: float,
    confidence: float,
    rounds: int = 1,
    cost_power: float = 1.0,
) -> Proposal:
    """Choose the candidate that teaches the most for its cost, among those inside the safe region.

    The safe region holds the settings whose quality is, with the wanted confidence, no worse than that of the start by
    more than the allowed loss, as well as the start itself, which is proposed again where nothing else is safe. A run
    that can be stopped after each of its rounds has to be safe after the first: by then its quality is taken to have
    come apart from the start's by its share of the rounds.

    Args:
        shown: What the runs so far have shown, the start among them.
        point_CD: The candidates, the first of which is the start.
        allowed_loss: How much worse than the start a run may be.
        confidence: With which a candidate is no worse than that.
        rounds: After how many rounds, the last one included, a run can be stopped.
        cost_power: 1 = gain for its cost; 0 = gain whatever it costs.
    """
    quality = quality_of(shown, point_CD[0], allowed_loss)
    mean_C, variance_C = quality.predict(point_CD)
    apart_C, of_apart_C = quality.differences(point_CD, point_CD[0])
    low_C = apart_C - norm.ppf(confidence) * np.sqrt(of_apart_C)
    safe_C = low_C >= -allowed_loss * rounds
    safe_C[0] = True
    best = quality.predict(shown.point_ND)[0].max()
    log_cost_N = np.log(np.maximum(shown.cost_N, LEAST_COST))
    costs = Posterior(shown.point_ND, log_cost_N, float(log_cost_N.mean()), doubt_N=np.zeros_like(log_cost_N))
    cost_C = np.exp(costs.predict(point_CD)[0])
    gain_C = np.where(safe_C, knowledge_gain(mean_C, variance_C, quality.noise, best), 0.0)
    index = int(np.argmax(np.where(safe_C, gain_C / cost_C**cost_power, -1.0)))
    return Proposal(
        index,
        quality=float(mean_C[index]),
        variance=float(variance_C[index]),
        low=float(mean_C[0] + low_C[index]),
        gain=float(gain_C.max()),
        rate=float((gain_C / cost_C).max()),
        cost=float(cost_C[index]),
        safe=int(safe_C.sum()),
    )
