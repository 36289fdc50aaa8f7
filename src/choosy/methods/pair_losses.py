"""Losses of pairs that are functions of the two responses' scores, one function for each paper.

The score of a response is its log-ratio log(pi / ref), or what `ScoredLoss` puts in its place. Axes: B pairs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need, check_beta

Formula = Literal[
    "hinge", "ipo", "robust", "exo", "nca", "sppo", "apo_zero", "apo_down", "discopop", "dpop", "odds_ratio"
]


def hinge(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta * delta), the hinge of SLiC (arXiv 2305.10425) on log-ratios; delta = chosen - rejected."""
    return F.relu(1 - beta * (chosen_B - rejected_B))


def ipo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """(delta - 1 / (2 beta))^2, identity preference optimisation (arXiv 2310.12036, Eq. 17)."""
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


def robust(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, label_smoothing: float = 0.1) -> Tensor:
    """The DPO loss without the bias of flipped labels (arXiv 2403.00409).

    [(1 - eps) * l(delta) - eps * l(-delta)] / (1 - 2 eps) with l(x) = -log sigmoid(beta * x): its mean over labels that
    are flipped with probability eps is l(delta) of the true ones. It has no lower bound.
    """
    eps, margin_B = label_smoothing, beta * (chosen_B - rejected_B)
    return (eps * F.logsigmoid(-margin_B) - (1 - eps) * F.logsigmoid(margin_B)) / (1 - 2 * eps)


def exo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, label_smoothing: float = 1e-3) -> Tensor:
    """KL(q || p) of q = sigmoid(+-beta * delta) and p = (1 - eps, eps), EXO (arXiv 2402.00856, Eq. 16)."""
    margin_B, eps = beta * (chosen_B - rejected_B), label_smoothing
    first_B = margin_B.sigmoid() * (F.logsigmoid(margin_B) - math.log1p(-eps))
    second_B = (-margin_B).sigmoid() * (F.logsigmoid(-margin_B) - math.log(eps))
    return first_B + second_B


def nca(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """Noise contrastive alignment of two responses (arXiv 2402.05369): it holds up the chosen one's own likelihood."""
    pull_B = F.logsigmoid(beta * chosen_B)
    return -pull_B - 0.5 * (F.logsigmoid(-beta * chosen_B) + F.logsigmoid(-beta * rejected_B))


def sppo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2, SPPO (arXiv 2405.00675, Eq. 4.7) of a sure win."""
    return (chosen_B - 0.5 / beta) ** 2 + (rejected_B + 0.5 / beta) ** 2


def apo_zero(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """Chosen responses more likely, rejected ones less (arXiv 2408.06266, Eq. 7)."""
    return 1 - (beta * chosen_B).sigmoid() + (beta * rejected_B).sigmoid()


def apo_down(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """Both less likely, the rejected one more so: for chosen responses worse than the policy's (2408.06266, Eq. 8)."""
    return (beta * chosen_B).sigmoid() + 1 - (beta * (chosen_B - rejected_B)).sigmoid()


def discopop(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, temperature: float = 0.05) -> Tensor:
    """DiscoPOP, a loss that a language model found (arXiv 2406.08414, Eq. 5).

    (1 - m) * -log sigmoid(x) + m * exp(-x) with x = beta * delta, m = sigmoid(x / temperature). The second term is one
    exponential, because exp(-x) and m alone make inf * 0 of a pair that the policy ranks far the wrong way.
    """
    x_B = beta * (chosen_B - rejected_B)
    return -F.logsigmoid(x_B) * (-x_B / temperature).sigmoid() + torch.exp(F.logsigmoid(x_B / temperature) - x_B)


def dpop(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, penalty: float = 50.0) -> Tensor:
    """-log sigmoid(beta * (delta - penalty * max(0, -chosen))), DPO-positive (arXiv 2402.13228).

    The penalty keeps the chosen response at least as likely as under the reference.
    """
    return -F.logsigmoid(beta * (chosen_B - rejected_B - penalty * F.relu(-chosen_B)))


def odds_ratio(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """-beta * log sigmoid(log odds(chosen) - log odds(rejected)), the term of ORPO (arXiv 2403.07691, Eq. 7).

    Scores are mean log-probs of tokens, p = exp(score), odds = p / (1 - p). A score above -1e-6 counts as -1e-6, so
    that odds are finite.
    """
    log_p_2B = torch.stack([chosen_B, rejected_B]).clamp(max=-1e-6)
    log_odds_2B = log_p_2B - torch.log(-torch.expm1(log_p_2B))
    return -beta * F.logsigmoid(log_odds_2B[0] - log_odds_2B[1])


FORMULAS: Mapping[str, Callable[..., Tensor]] = {
    each.__name__: each for each in (hinge, ipo, robust, exo, nca, sppo, apo_zero, apo_down, discopop, dpop, odds_ratio)
}


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs by its formula: one of the functions of this file.

    Args:
        formula: The function's name.
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in (0, 1/2), for the formulas that take it.
        temperature: Of discopop's mixture, in (0, 1).
        penalty: Of dpop, for a chosen response that has become less likely than under the reference.

    Example:
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2])
        >>> PairLoss("ipo").items(s), PairLoss("hinge").items(s)  # (7 - 5)^2, 1 - 0.1 * 7
        (tensor([4.]), tensor([0.3000]))
    """

    formula: Formula
    beta: float = 0.1
    label_smoothing: float | None = None
    temperature: float | None = None
    penalty: float | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({"pair", "reference"})

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.formula not in FORMULAS:
            raise ValueError(f"loss.formula={self.formula} is none of {', '.join(get_args(Formula))}.")
        takes = inspect.signature(FORMULAS[self.formula]).parameters
        for name, value in self.settings.items():
            if name not in takes:
                raise ValueError(
                    f"loss.{name}={value} has no meaning for {self.formula}, which takes none; leave it out."
                )
        if self.label_smoothing is not None and not 0 < self.label_smoothing < 0.5:
            raise ValueError(f"loss.label_smoothing={self.label_smoothing} is no share of flipped labels in (0, 0.5).")
        if self.temperature is not None and not 0 < self.temperature < 1:
            raise ValueError(
                f"loss.temperature={self.temperature} lets the loss grow without end; choose one in (0, 1)."
            )
        if self.penalty is not None and not self.penalty >= 0:
            raise ValueError(f"loss.penalty={self.penalty} is no penalty; choose loss.penalty >= 0.")

    @property
    def settings(self) -> dict[str, float]:
        """What is set besides beta."""
        known = {"label_smoothing": self.label_smoothing, "temperature": self.temperature, "penalty": self.penalty}
        return {name: value for name, value in known.items() if value is not None}

    def items(self, s: LossInputs) -> Tensor:
        score_B2 = (s.logp_R - s.ref_R).view(-1, 2)
        return FORMULAS[self.formula](score_B2[:, 0], score_B2[:, 1], beta=self.beta, **self.settings)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)
