"""Pair weights: factors on each pair's loss from the gap of its rewards, or from a column of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Brought = Literal["gap", "given", "nothing"]
GapSource = Literal["bought", "predicted", "difference"]


class Weighting(Protocol):
    """Any rule for pair weights.

    Attributes:
        normalize: Whether the weights are divided by their mean over the round, which keeps the step size comparable.
        needs: What a pair must bring: its reward `gap`, a `given` weight, or nothing.
    """

    normalize: bool

    @property
    def needs(self) -> Brought: ...

    def weigh(self, gap_B: Tensor, given_B: Tensor) -> Tensor:
        """Weights of B pairs from reward(chosen) - reward(rejected) and the data's own weights; nan = not known."""
        ...


def mean_weight(weight_X: Tensor) -> float:
    """The divisor that gives the weights of a round's X pairs mean 1 (form C of OPTune's weighting).

    It is a fact of the round and not of a batch: a pair's weight depends neither on the batch it falls into nor on
    that batch's size. Weights that are all zero stay zero.

    Example:
        >>> mean_weight(torch.tensor([1.0, 3.0])), mean_weight(torch.zeros(2))
        (2.0, 1.0)
    """
    return float(weight_X.double().mean()) or 1.0 if len(weight_X) else 1.0


@dataclass(frozen=True)
class Uniform:
    """Every pair counts 1: plain DPO."""

    normalize: bool = False
    needs: ClassVar[Brought] = "nothing"

    def weigh(self, gap_B: Tensor, given_B: Tensor) -> Tensor:
        return torch.ones_like(gap_B)


@dataclass(frozen=True)
class RewardGap:
    """OPTune's wDPO (arXiv 2406.07657): the larger the reward gap of a pair, the larger its weight.

    The paper's exact function is not public; both readings are here. A predicted gap may be against the verdict, hence
    negative: then `sigmoid` weighs the pair less than 1/2, `inverse` more, and `linear` nothing.

    Args:
        form: `sigmoid`: sigmoid(beta2 * gap), in [1/2, 1) (form A); `linear`: beta2 * gap, unbounded (form B);
            `inverse`: sigmoid(-beta2 * gap), the opposite direction (MADPO, arXiv 2510.05342).
        beta2: How strongly the gap counts.
        clip: Largest weight, for the linear form; None = no limit.
        normalize: Divide by the mean weight of the round's pairs (form C). AdamW cancels a constant scale of the loss,
            so what a weighting changes is only how the pairs compare with each other.

    Example:
        >>> RewardGap(beta2=1.0).weigh(torch.tensor([0.0, 1.25]), torch.ones(2))
        tensor([0.5000, 0.7773])
    """

    form: Literal["sigmoid", "linear", "inverse"] = "sigmoid"
    beta2: float = 1.0
    clip: float | None = None
    normalize: bool = False
    needs: ClassVar[Brought] = "gap"

    def __post_init__(self) -> None:
        if self.form not in ("sigmoid", "linear", "inverse"):
            raise ValueError(f"weighting.form={self.form!r} is none of sigmoid, linear, inverse.")
        if not self.beta2 > 0:
            raise ValueError(f"weighting.beta2={self.beta2} weighs large gaps no more; choose beta2 > 0.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"weighting.clip={self.clip} leaves no weight; choose clip > 0, or null.")

    def weigh(self, gap_B: Tensor, given_B: Tensor) -> Tensor:
        scaled_B = self.beta2 * gap_B
        weight_B = {"sigmoid": scaled_B.sigmoid(), "linear": scaled_B.clamp(min=0), "inverse": (-scaled_B).sigmoid()}[
            self.form
        ]
        return weight_B if self.clip is None else weight_B.clamp(max=self.clip)


@dataclass(frozen=True)
class Column:
    """The weight that each row of the data brings in its `weight` column."""

    normalize: bool = False
    needs: ClassVar[Brought] = "given"

    def weigh(self, gap_B: Tensor, given_B: Tensor) -> Tensor:
        return given_B
