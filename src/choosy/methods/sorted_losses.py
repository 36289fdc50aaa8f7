"""The losses that compare the pairs of a step as distributions, AOT (arXiv 2406.05882)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need, Partners
from choosy.methods.losses import PAIRS_AND_REFERENCE, SigmoidLoss


@dataclass(frozen=True)
class AOTLoss:
    """The DPO loss of margins that are sorted, AOT (arXiv 2406.05882): distributions are compared, not pairs.

    Of the pairs of a step, m = log pi(chosen) - log pi(rejected) and its like under the reference are sorted, each by
    itself; a pair's loss is -log sigmoid(beta * (m - the reference's margin at the same place)). It asks that the
    policy's margins exceed the reference's at every quantile.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in [0, 1/2].

    Example:
        >>> s = LossInputs(torch.tensor([3.0, 0, 1, 0]), torch.tensor([1.0, 0, 2, 0]), sizes=[2, 2])
        >>> AOTLoss(beta=1.0).items(s)  # -log sigmoid(3 - 2), -log sigmoid(1 - 1)
        tensor([0.3133, 0.6931])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE | {"step"}

    def __post_init__(self) -> None:
        SigmoidLoss(self.beta, self.label_smoothing)  # refuses what makes no sense

    def items(self, s: LossInputs) -> Tensor:
        margin_B = s.logp_R.view(-1, 2)[:, 0] - s.logp_R.view(-1, 2)[:, 1]
        return smoothed(self.beta * (margin_B - partners_of(s).ref_margin_B), self.label_smoothing)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class AOTUnpairedLoss:
    """The DPO loss of log-ratios that are sorted, AOT for unpaired data (arXiv 2406.05882), in TRL's form.

    The log-ratios of a step's chosen responses and those of its rejected ones are sorted, each by itself, and compared
    place by place: sum over k of -log sigmoid(beta * (c_k - r_k)). It asks that the chosen responses' log-ratios exceed
    the rejected ones' at every quantile, whoever the partners are.

    Both responses of a pair are compared with a partner of another pair, and have the gradient of that comparison; the
    value of a pair is half of the two comparisons that it has part in.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in [0, 1/2].

    Example:
        >>> s = LossInputs(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.zeros(4), sizes=[2, 2])
        >>> AOTUnpairedLoss(beta=1.0).items(s)  # 3 is compared with 2, and 1 with 0
        tensor([0.3133, 0.3133])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE | {"step"}

    def __post_init__(self) -> None:
        SigmoidLoss(self.beta, self.label_smoothing)  # refuses what makes no sense

    def items(self, s: LossInputs) -> Tensor:
        ratio_B2, partners = (s.logp_R - s.ref_R).view(-1, 2), partners_of(s)
        compared_B2 = torch.stack([ratio_B2[:, 0] - partners.rejected_B, partners.chosen_B - ratio_B2[:, 1]], dim=1)
        both_B = smoothed(self.beta * compared_B2, self.label_smoothing).sum(1)
        return both_B - both_B.detach() / 2  # a partner's half has its gradient where the partner is

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


def partners_of(s: LossInputs) -> Partners:
    """The partners that the step gives; items without a step are one of their own."""
    return s.facts.partners or Partners.of(s.logp_R.detach().view(-1, 2), s.ref_R.view(-1, 2))


def smoothed(x_B: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(x), where a share of the labels is believed to be flipped."""
    return -(1 - label_smoothing) * F.logsigmoid(x_B) - label_smoothing * F.logsigmoid(-x_B)
