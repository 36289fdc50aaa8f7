"""Proposes settings that are predicted to be no worse than a start by more than an allowed loss.

The safe region, and tuning a job from one period to the next, are those of Li et al. 2023 (arXiv 2309.01901); a period
is here a run. The improvement is divided by a power of the predicted cost, as by Lee et al. 2020 (arXiv 2003.10870).

Shapes: N runs; C candidates; D coordinates of the settings, each from 0 to 1.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

MORE_TO_FIT = 2  # runs than coordinates; with fewer the kernel stays as it is
LEAST_COST = 1e-6  # of a run that is free


@dataclass(frozen=True)
class Proposal:
    """One of the candidates, and what is predicted of it.

    Attributes:
        index: Its place among the candidates.
        quality: Its predicted quality.
        low: The quality that it exceeds with the wanted confidence.
        gain: The largest expected improvement inside the safe region, its own or a more expensive candidate's.
        cost: Its predicted cost.
        safe: How many candidates lie inside the safe region.
    """

    index: int
    quality: float
    low: float
    gain: float
    cost: float
    safe: int


class Posterior:
    """What runs tell about the value of other settings: a Gaussian process with a Matérn 5/2 kernel and noise."""

    def __init__(self, point_ND: np.ndarray, value_N: np.ndarray, centre: float, *, scale: float = 0.0) -> None:
        """Fit the process.

        Args:
            point_ND: The settings of the runs.
            value_N: Their values.
            centre: The value that is expected far from all of them.
            scale: The standard deviation over all settings that is assumed while the runs show a smaller one.
        """
        apart_N = value_N - centre
        self.centre, self.scale = centre, max(float(np.sqrt(np.mean(apart_N**2))), scale) or 1.0
        self.process = fitted(point_ND, apart_N / self.scale)

    def predict(self, point_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the standard deviation of the value at each candidate, without the noise of a single run."""
        mean_C, noisy_C = self.process.predict(point_CD, return_std=True)
        variance_C = np.maximum(noisy_C**2 - self.process.kernel_.k2.noise_level, 1e-12)
        return self.centre + self.scale * mean_C, self.scale * np.sqrt(variance_C)


def fitted(point_ND: np.ndarray, value_N: np.ndarray) -> GaussianProcessRegressor:
    """A Gaussian process on values around 0; its kernel has the highest likelihood where the runs suffice to tell."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern([0.7] * point_ND.shape[1], (0.2, 5.0), nu=2.5)
    kernel = ConstantKernel(1.0, (0.3, 3.0)) * smooth + WhiteKernel(0.1, (1e-3, 1.0))
    optimizer = "fmin_l_bfgs_b" if len(value_N) >= point_ND.shape[1] + MORE_TO_FIT else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a length or a noise at its bound
        return GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimizer).fit(point_ND, value_N)


def expected_improvement(mean_C: np.ndarray, deviation_C: np.ndarray, best: float) -> np.ndarray:
    """How much each candidate is expected to exceed the best value, where one that does not exceeds it by 0.

    Example:
        >>> expected_improvement(np.array([1.0, 1.0]), np.array([1.0, 1e-9]), 1.0).round(3).tolist()
        [0.399, 0.0]
    """
    z_C = (mean_C - best) / deviation_C
    found_C: np.ndarray = deviation_C * (z_C * norm.cdf(z_C) + norm.pdf(z_C))
    return found_C


def quality_of(point_ND: np.ndarray, quality_N: np.ndarray, start_D: np.ndarray, allowed_loss: float) -> Posterior:
    """What runs tell about the quality: far from them it is expected to be that of the start, which was played.

    Until they show more, its standard deviation over all settings is taken to be twice the allowed loss, so that only
    settings near the start are safe at first.
    """
    centre = float(quality_N[(point_ND == start_D).all(axis=1)].mean())
    return Posterior(point_ND, quality_N, centre, scale=2 * allowed_loss)


def propose(
    point_ND: np.ndarray,
    quality_N: np.ndarray,
    cost_N: np.ndarray,
    point_CD: np.ndarray,
    *,
    allowed_loss: float,
    confidence: float,
    cost_power: float = 1.0,
) -> Proposal:
    """Choose the candidate that promises the most improvement for its cost, among those inside the safe region.

    The safe region holds the settings whose quality exceeds that of the start less the allowed loss, with the wanted
    confidence, as well as the start itself, which is proposed again where nothing else is safe.

    Args:
        point_ND: The settings of the runs so far, the start among them.
        quality_N: The quality of each.
        cost_N: The cost of each.
        point_CD: The candidates, the first of which is the start.
        allowed_loss: How much worse than the start a run may be.
        confidence: With which a candidate is no worse than that.
        cost_power: 1 = improvement for its cost; 0 = improvement whatever it costs.
    """
    quality = quality_of(point_ND, quality_N, point_CD[0], allowed_loss)
    mean_C, deviation_C = quality.predict(point_CD)
    low_C = mean_C - norm.ppf(confidence) * deviation_C
    safe_C = low_C >= mean_C[0] - allowed_loss
    safe_C[0] = True
    best = quality.predict(point_ND)[0].max()
    log_cost_N = np.log(np.maximum(cost_N, LEAST_COST))
    cost_C = np.exp(Posterior(point_ND, log_cost_N, float(log_cost_N.mean())).predict(point_CD)[0])
    gain_C = np.where(safe_C, expected_improvement(mean_C, deviation_C, best), 0.0)
    index = int(np.argmax(np.where(safe_C, gain_C / cost_C**cost_power, -1.0)))
    mean, low, cost = (float(each_C[index]) for each_C in (mean_C, low_C, cost_C))
    return Proposal(index, mean, low, float(gain_C.max()), cost, int(safe_C.sum()))
