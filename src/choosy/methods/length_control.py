"""The win rate of answers that are as long as those they are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

Z95 = 1.959964  # of a two-sided interval that covers 95 %
MOST_STEPS = 200
LONGEST_STEP = 1.0  # of an answer's logit, so that Newton's method does not overshoot


class Rate(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def length_controlled(wins: Sequence[float], lengths: Sequence[tuple[int, int]]) -> Rate | None:
    """Estimate the win rate at equal lengths, as AlpacaEval 2 does (2404.04475, without its terms for each prompt).

    A logistic regression explains each outcome by the difference of lengths,
    `logit P(win) = a + b tanh((length - other length) / s)`, and the rate is `sigmoid(a)`: that of a difference of 0.
    `s` is the differences' root mean square, which is their standard deviation where they are 0 in the mean. Jeffreys'
    prior (Firth 1993) keeps both coefficients finite where all answers won, or all longer ones; it moves the rate a
    little towards 1/2, as half a win and half a loss more would do. The interval is Wald's, on the scale of the logit.
    A tie counts as half a win, which makes it a little too wide. Where no pair is nearly as long, the rate is
    extrapolated, and its interval says how little is known.

    Args:
        wins: Of each answer 1, 0.5 for a tie, or 0.
        lengths: Of each answer its length and that of the other one.

    Returns:
        The rate; None without outcomes, or where all differences are the same and not 0.

    Example:
        Of 14 longer answers 13 won, with the prior 13.5 of 15: odds 9. Of 4 shorter ones none did, 0.5 of 5: odds 1/9.
        Halfway, at equal lengths, the odds are 1. (The raw win rate is 13 / 18 = 72 %.)

        >>> found = length_controlled([1] * 13 + [0] * 5, [(9, 5)] * 14 + [(5, 9)] * 4)
        >>> f"{found.value:.3f}"
        '0.500'
    """
    y_N = torch.tensor(wins, dtype=torch.float64)
    difference_N = torch.tensor([one - other for one, other in lengths], dtype=torch.float64)
    x_NK = torch.ones(len(y_N), 1, dtype=torch.float64)
    if not len(y_N):
        return None
    if bool((difference_N != difference_N[0]).any()):
        x_NK = torch.stack([x_NK[:, 0], (difference_N / difference_N.square().mean().sqrt()).tanh()], dim=1)
    elif difference_N[0] != 0:
        return None
    coefficient_K = torch.zeros(x_NK.shape[1], dtype=torch.float64)
    for _ in range(MOST_STEPS):
        p_N = (x_NK @ coefficient_K).sigmoid()
        covariance_KK = torch.linalg.inv(x_NK.T @ ((p_N * (1 - p_N))[:, None] * x_NK))
        leverage_N = p_N * (1 - p_N) * ((x_NK @ covariance_KK) * x_NK).sum(dim=1)
        step_K = covariance_KK @ (x_NK.T @ (y_N - p_N + leverage_N * (0.5 - p_N)))
        longest = (x_NK @ step_K).abs().max().item()
        coefficient_K = coefficient_K + step_K * min(1.0, LONGEST_STEP / max(longest, 1e-12))
        if longest < 1e-10:
            break
    a, error = coefficient_K[0].item(), math.sqrt(covariance_KK[0, 0].item())
    value, low, high = torch.tensor([a, a - Z95 * error, a + Z95 * error], dtype=torch.float64).sigmoid().tolist()
    return Rate(value, low, high)
