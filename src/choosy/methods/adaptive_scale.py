"""Ada-DPO: a loss whose scale each pair chooses for itself.

H is the binary entropy in nats. Axes: B pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need

Penalty = Literal["linear", "quadratic"]
HALVINGS = 50  # of an interval: more than the digits of fp32


def entropy(logit_B: Tensor) -> Tensor:
    """H(sigmoid(logit)) = log(1 + exp(-|logit|)) + |logit| * sigmoid(-|logit|)."""
    z_B = logit_B.abs()
    return F.softplus(-z_B) + z_B * torch.sigmoid(-z_B)


def linear_scale(delta_B: Tensor, *, rho: float, lowest: float, highest: float) -> Tensor:
    """argmin over tau in [lowest, highest] of -tau * log sigmoid(delta / tau) + (rho - log 2) * tau.

    The slope, H(sigmoid(delta / tau)) + rho - log 2, grows with tau and is 0 where |delta| / tau = z, with
    H(sigmoid(z)) = log 2 - rho; so tau = |delta| / z, clipped.

    Example:
        >>> linear_scale(torch.tensor([0.5, 5.0, -1.0]), rho=0.1, lowest=0.1, highest=4.0)
        tensor([0.5300, 4.0000, 1.0599])
    """
    return (delta_B.abs() / indifference(rho)).clamp(lowest, highest)


@cache
def indifference(rho: float) -> float:
    """The z > 0 with H(sigmoid(z)) = log 2 - rho, by bisection.

    Example:
        >>> [round(indifference(rho), 3) for rho in (0.05, 0.1, 0.3, 0.5)]
        [0.649, 0.943, 1.87, 2.983]
    """
    low, high = 0.0, 50.0
    for _ in range(HALVINGS):  # H falls with z
        z = (low + high) / 2
        above = math.log1p(math.exp(-z)) + z / (1 + math.exp(z)) > math.log(2) - rho
        low, high = (z, high) if above else (low, z)
    return z


def quadratic_scale(delta_B: Tensor, *, rho: float, lowest: float) -> Tensor:
    """argmin over tau >= lowest of -tau * log sigmoid(delta / tau) + rho * tau^2 - log(2) * tau, by bisection.

    The slope, H(sigmoid(delta / tau)) + 2 rho tau - log 2, grows with tau and is positive from log(2) / (2 rho) on.

    Example:
        >>> quadratic_scale(torch.tensor([0.0, 1.0]), rho=0.1, lowest=0.1)
        tensor([0.1000, 0.8053])
    """
    low_B = torch.full_like(delta_B, lowest)
    high_B = torch.full_like(delta_B, max(lowest, math.log(2) / (2 * rho)))
    for _ in range(HALVINGS):
        tau_B = (low_B + high_B) / 2
        rising_B = entropy(delta_B / tau_B) + 2 * rho * tau_B > math.log(2)
        low_B, high_B = torch.where(rising_B, low_B, tau_B), torch.where(rising_B, tau_B, high_B)
    return low_B


@dataclass(frozen=True)
class AdaDPOLoss:
    """-tau * log sigmoid(delta / tau) + penalty(tau), each pair with the tau that minimises it (arXiv 2406.02764).

    A pair that the policy ranks clearly gets a large tau, hence a long slope: its difference may grow. An ambiguous one
    gets a small tau. tau has no gradient, for the minimum's slope in it is 0; beta is absorbed in it.

    Args:
        penalty: `linear`: (rho - log 2) * tau; `quadratic`: rho * tau^2 - log(2) * tau, without a highest tau.
        rho: The price of a large tau, above 0; below log 2 in the linear form.
        lowest: Of tau.
        highest: Of tau, in the linear form.

    Example:
        >>> s = LossInputs(torch.tensor([0.5, 0.0, 5.0, 0.0]), torch.zeros(4), sizes=[2, 2])
        >>> AdaDPOLoss().items(s)
        tensor([-0.1401, -1.3649])
    """

    penalty: Penalty = "linear"
    rho: float = 0.1
    lowest: float = 0.1
    highest: float = 4.0
    beta: ClassVar[float] = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({"pair", "reference"})

    def __post_init__(self) -> None:
        if self.penalty not in get_args(Penalty):
            raise ValueError(f"loss.penalty={self.penalty} is none of {', '.join(get_args(Penalty))}.")
        limit = math.log(2) if self.penalty == "linear" else math.inf
        if not 0 < self.rho < limit:
            raise ValueError(f"loss.rho={self.rho} leaves no choice of a scale; choose one in (0, {limit:.3g}).")
        if not 0 < self.lowest <= self.highest:
            raise ValueError(f"loss.lowest={self.lowest} loss.highest={self.highest} is no range of positive scales.")

    def scale(self, delta_B: Tensor) -> Tensor:
        """tau of each pair."""
        if self.penalty == "linear":
            return linear_scale(delta_B, rho=self.rho, lowest=self.lowest, highest=self.highest)
        return quadratic_scale(delta_B, rho=self.rho, lowest=self.lowest)

    def items(self, s: LossInputs) -> Tensor:
        delta_B = s.delta_B
        tau_B = self.scale(delta_B.detach())
        power = 1 if self.penalty == "linear" else 2
        return -tau_B * F.logsigmoid(delta_B / tau_B) + self.rho * tau_B**power - math.log(2) * tau_B

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)
