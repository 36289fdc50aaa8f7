"""The DPO family: from what the policy learned about a pair to what it should still learn.

Every loss takes delta_B, the difference of log-ratios of B pairs,

    delta = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)],

and returns one unreduced value a pair. Weighing and averaging are the caller's: `weighted_dpo_loss`. A loss may ask
delta for a margin that grows with the gap of the pair's rewards: `Margined`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor


class PreferenceLoss(Protocol):
    """Any loss of the family: (B,) differences of log-ratios to (B,) losses; beta scales the implicit reward."""

    beta: float

    def pairwise(self, delta_B: Tensor) -> Tensor:
        """The loss of each pair, unreduced."""
        ...


@runtime_checkable
class Margined(Protocol):
    """A loss of the family that is not content with delta > 0: its pairwise is given delta less this margin."""

    def margin(self, gap_B: Tensor) -> Tensor:
        """What delta_B shall exceed, from reward(chosen) - reward(rejected)."""
        ...


def log_ratio_difference(chosen_B: Tensor, rejected_B: Tensor, chosen_ref_B: Tensor, rejected_ref_B: Tensor) -> Tensor:
    """delta_B of the summed log-probabilities of chosen and rejected under policy and reference.

    Example:
        >>> import torch
        >>> log_ratio_difference(*(torch.tensor([x]) for x in (-40.0, -55.0, -42.0, -50.0)))
        tensor([7.])
    """
    return (chosen_B - chosen_ref_B) - (rejected_B - rejected_ref_B)


def weighted_dpo_loss(delta_B: Tensor, weight_B: Tensor, loss: PreferenceLoss, gap_B: Tensor | None = None) -> Tensor:
    """Reweighted DPO: each pair's loss times its weight, unreduced; weight and margin carry no gradient.

    Args:
        delta_B: The differences of log-ratios.
        weight_B: The weights.
        loss: A loss of the family.
        gap_B: reward(chosen) - reward(rejected), for a loss with a margin.

    Example:
        >>> import torch
        >>> weighted_dpo_loss(torch.tensor([7.0]), torch.tensor([0.5]), SigmoidLoss())
        tensor([0.2016])
    """
    if isinstance(loss, Margined):
        assert gap_B is not None, f"{type(loss).__name__} takes its margin from the gap of the rewards"
        delta_B = delta_B - loss.margin(gap_B.detach())
    return weight_B.detach() * loss.pairwise(delta_B)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"loss.beta={beta} turns preference into nothing; choose beta > 0 (0.1 is usual).")


@dataclass(frozen=True)
class SigmoidLoss:
    """-log sigmoid(beta * delta), the DPO loss (arXiv 2305.18290, Eq. 7).

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in [0, 1/2]: conservative DPO.

    Example:
        >>> import torch
        >>> SigmoidLoss(beta=0.1).pairwise(torch.tensor([7.0, 0.0]))
        tensor([0.4032, 0.6931])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 <= self.label_smoothing <= 0.5:
            raise ValueError(f"loss.label_smoothing={self.label_smoothing} is no share of flipped labels in [0, 0.5].")

    def pairwise(self, delta_B: Tensor) -> Tensor:
        agree_B = -F.logsigmoid(self.beta * delta_B)
        flipped_B = -F.logsigmoid(-self.beta * delta_B)
        return (1 - self.label_smoothing) * agree_B + self.label_smoothing * flipped_B


@dataclass(frozen=True)
class IPOLoss:
    """(delta - 1 / (2 beta))^2, identity preference optimisation (arXiv 2310.12036, Eq. 17), on summed log-probs.

    Example:
        >>> import torch
        >>> IPOLoss(beta=0.1).pairwise(torch.tensor([7.0]))
        tensor([4.])
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def pairwise(self, delta_B: Tensor) -> Tensor:
        return (delta_B - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class HingeLoss:
    """max(0, 1 - beta * delta), the hinge of SLiC (arXiv 2305.10425) on log-ratios.

    Example:
        >>> import torch
        >>> HingeLoss(beta=0.1).pairwise(torch.tensor([7.0, 20.0]))
        tensor([0.3000, 0.0000])
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def pairwise(self, delta_B: Tensor) -> Tensor:
        return F.relu(1 - self.beta * delta_B)


@dataclass(frozen=True)
class SelfRewardLoss:
    """-log sigmoid(beta * (delta - share * clamp(R, -clip, clip))), DLMA (arXiv 2402.11907).

    It is taken from the authors' code, which clamps R first and multiplies the margin by beta too. R is the gap of the
    pair's self-rewards (labeler=contrastive), or of any other labeler's rewards: a pair that the labeler tells apart
    more clearly has to be told apart more clearly.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        share: Of the gap, that delta shall reach.
        clip: The largest gap that counts.

    Example:
        >>> import torch
        >>> loss = SelfRewardLoss()
        >>> loss.margin(torch.tensor([25.0, 100.0]))
        tensor([5., 8.])
        >>> weighted_dpo_loss(torch.tensor([7.0]), torch.tensor([1.0]), loss, torch.tensor([25.0]))
        tensor([0.5981])
    """

    beta: float = 0.1
    share: float = 0.2
    clip: float = 40.0

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not self.share > 0:
            raise ValueError(f"loss.share={self.share} leaves no margin; choose loss.share > 0, or loss=sigmoid.")
        if not self.clip > 0:
            raise ValueError(f"loss.clip={self.clip} leaves no margin; choose loss.clip > 0, or loss=sigmoid.")

    def margin(self, gap_B: Tensor) -> Tensor:
        return self.share * gap_B.clamp(-self.clip, self.clip)

    def pairwise(self, delta_B: Tensor) -> Tensor:
        return -F.logsigmoid(self.beta * delta_B)
