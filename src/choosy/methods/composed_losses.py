"""Losses that are made of other losses: sums with shares, sums over weighted tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from choosy.methods.loss_inputs import Loss, LossInputs, Need, TokenWeighing, form_of


@dataclass(frozen=True)
class LossSum:
    """The sum of losses of one form of items, each times its share. Implicit rewards are those of the first part.

    Args:
        parts: The losses by name.
        shares: The share of each, by the same names.

    Example:
        >>> from choosy.methods.losses import SFTLoss, SigmoidLoss
        >>> rpo = LossSum({"sigmoid": SigmoidLoss(), "sft": SFTLoss()}, {"sigmoid": 1.0, "sft": 0.5})
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2])
        >>> rpo.items(s)  # 0.4032 + 0.5 * 40
        tensor([20.4032])
    """

    parts: Mapping[str, Loss]
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.parts or self.parts.keys() != self.shares.keys():
            raise ValueError(
                f"loss.parts has {', '.join(self.parts) or 'nothing'} and loss.shares {', '.join(self.shares)}; "
                "give each part a share."
            )
        form_of(self.needs)

    @property
    def beta(self) -> float:
        return next(iter(self.parts.values())).beta

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(part.needs for part in self.parts.values()))

    def items(self, s: LossInputs) -> Tensor:
        return torch.stack([self.shares[name] * part.items(s) for name, part in self.parts.items()]).sum(0)

    def rewards(self, s: LossInputs) -> Tensor:
        return next(iter(self.parts.values())).rewards(s)


@dataclass(frozen=True)
class TokenWeightedLoss:
    """Any loss on log-probs that are summed with weights on tokens, under policy and reference alike.

    Implicit rewards are those of plain sums where single tokens are not known, as of held-out pairs.

    Example:
        >>> from choosy.methods.losses import SigmoidLoss
        >>> ld_dpo = TokenWeightedLoss(SigmoidLoss(), LengthDesensitized(alpha=0.5))
        >>> sorted(ld_dpo.needs)
        ['pair', 'reference', 'tokens']
    """

    loss: Loss
    weighing: TokenWeighing

    @property
    def beta(self) -> float:
        return self.loss.beta

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs | {"tokens", "reference"}

    def items(self, s: LossInputs) -> Tensor:
        return self.loss.items(s.weighted(self.weighing))

    def rewards(self, s: LossInputs) -> Tensor:
        return self.loss.rewards(s.weighted(self.weighing) if s.tokens else s)


@dataclass(frozen=True)
class LengthDesensitized:
    """Token weights of LD-DPO (arXiv 2409.06411): what the longer responses of an item have more counts less.

    Args:
        alpha: Weight of tokens beyond the length of the item's shortest response, in [0, 1]; 1 = plain sums.

    Example:
        >>> from choosy.methods.loss_inputs import TokenLogps
        >>> tokens = TokenLogps(torch.zeros(5), torch.zeros(5), torch.arange(5), torch.tensor([0, 0, 0, 1, 1]))
        >>> s = LossInputs(torch.zeros(2), sizes=[2], length_R=torch.tensor([3, 2]), tokens=tokens)
        >>> LengthDesensitized(alpha=0.5).token_weights(tokens.logp_T, s)
        tensor([1.0000, 1.0000, 0.5000, 1.0000, 1.0000])
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"loss.weighing.alpha={self.alpha} is no weight of surplus tokens in [0, 1].")

    def token_weights(self, logp_T: Tensor, s: LossInputs) -> Tensor:
        assert s.tokens is not None
        response_T = s.tokens.response_T
        shortest_B = torch.full((len(s),), 2**62, device=s.item_R.device).scatter_reduce(
            0, s.item_R, s.length_R, reduce="amin"
        )
        place_T = torch.arange(len(response_T), device=response_T.device) - torch.searchsorted(response_T, response_T)
        return torch.where(place_T < shortest_B[s.item_R][response_T], torch.ones_like(logp_T), self.alpha)
