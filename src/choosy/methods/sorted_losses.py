"""The losses that compare the pairs of a step as distributions, AOT (arXiv 2406.05882)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need
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
        margin_B, ref_B = (of_R.view(-1, 2)[:, 0] - of_R.view(-1, 2)[:, 1] for of_R in (s.logp_R, s.ref_R))
        partner_B = s.facts.partner_B
        if partner_B is None:  # these items are a step of their own
            partner_B = torch.empty_like(ref_B).index_copy(0, margin_B.detach().argsort(), ref_B.sort().values)
        x_B = self.beta * (margin_B - partner_B)
        return -(1 - self.label_smoothing) * F.logsigmoid(x_B) - self.label_smoothing * F.logsigmoid(-x_B)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)
