"""The losses: from log-probs of a step's items to one value an item.

A loss declares what it needs and returns unreduced values (see `choosy.methods.loss_inputs`). Axes as there: B items,
R responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need

PAIRS_AND_REFERENCE: frozenset[Need] = frozenset({"pair", "reference"})


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"loss.beta={beta} turns preference into nothing; choose beta > 0 (0.1 is usual).")


# -- pairs, with a reference ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigmoidLoss:
    """-log sigmoid(beta * delta), the DPO loss (arXiv 2305.18290, Eq. 7).

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in [0, 1/2]: conservative DPO.

    Example:
        >>> s = LossInputs.of_pairs([-40.0, -1.0], [-55.0, -1.0], [-42.0, -1.0], [-50.0, -1.0])
        >>> SigmoidLoss(beta=0.1).items(s)
        tensor([0.4032, 0.6931])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.label_smoothing <= 0.5:
            raise ValueError(f"loss.label_smoothing={self.label_smoothing} is no share of flipped labels in [0, 0.5].")

    def items(self, s: LossInputs) -> Tensor:
        delta_B = s.delta_B
        agree_B, flipped_B = -F.logsigmoid(self.beta * delta_B), -F.logsigmoid(-self.beta * delta_B)
        return (1 - self.label_smoothing) * agree_B + self.label_smoothing * flipped_B

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class IPOLoss:
    """(delta - 1 / (2 beta))^2, identity preference optimisation (arXiv 2310.12036, Eq. 17), on summed log-probs.

    Example:
        >>> IPOLoss(beta=0.1).items(LossInputs.of_pairs([-40.0], [-55.0], [-42.0], [-50.0]))
        tensor([4.])
    """

    beta: float = 0.1
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def items(self, s: LossInputs) -> Tensor:
        return (s.delta_B - 1 / (2 * self.beta)) ** 2

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class HingeLoss:
    """max(0, 1 - beta * delta), the hinge of SLiC (arXiv 2305.10425) on log-ratios.

    Example:
        >>> HingeLoss(beta=0.1).items(LossInputs.of_pairs([-40.0], [-55.0], [-42.0], [-50.0]))
        tensor([0.3000])
    """

    beta: float = 0.1
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def items(self, s: LossInputs) -> Tensor:
        return F.relu(1 - self.beta * s.delta_B)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class SelfRewardLoss:
    """-log sigmoid(beta * (delta - share * clamp(R, -clip, clip))), DLMA (arXiv 2402.11907).

    It follows the authors' code, which clamps R first and multiplies the margin by beta too. R is the gap of the
    pair's self-rewards (labeler=contrastive), or of any other labeler's rewards: the policy has to prefer a response
    the more, the more clearly the labeler does.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        share: The share of the gap that delta has to reach.
        clip: The largest gap that counts.

    Example:
        >>> s = LossInputs.of_pairs([-40.0], [-55.0], [-42.0], [-50.0], gap_B=[25.0])
        >>> SelfRewardLoss().items(s)  # -log sigmoid(0.1 * (7 - 5))
        tensor([0.5981])
    """

    beta: float = 0.1
    share: float = 0.2
    clip: float = 40.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE | {"reward"}

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not self.share > 0:
            raise ValueError(f"loss.share={self.share} leaves no margin; choose loss.share > 0, or loss=sigmoid.")
        if not self.clip > 0:
            raise ValueError(f"loss.clip={self.clip} leaves no margin; choose loss.clip > 0, or loss=sigmoid.")

    def items(self, s: LossInputs) -> Tensor:
        margin_B = self.share * s.gap_B.clamp(-self.clip, self.clip)
        return -F.logsigmoid(self.beta * (s.delta_B - margin_B))

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)
