"""Losses that are made of other losses: sums with shares, other scores of responses, weights of tokens or of items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import Loss, LossInputs, Need, TokenWeighing, form_of

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
LARGEST = 40.0  # exponent: what a loss makes of exp(40), and its square, is finite in fp32


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


def refuse_other_scores(loss: Loss) -> None:
    """Refuse other scores for a loss that needs plain log-probs: for the step's order, or as likelihoods."""
    name = type(loss).__name__
    if "step" in loss.needs:
        raise ValueError(
            f"loss.loss ({name}) orders pairs by their summed log-probs, and is given other scores; type loss=aot by "
            "itself, or another loss.loss."
        )
    if isinstance(loss, LikelihoodWeightedLoss):
        raise ValueError(
            f"loss.loss ({name}) weighs pairs by their likelihood, and is given other scores; type loss=wpo, with this "
            "loss as its loss.loss."
        )


def refuse_log_ratios(loss: Loss) -> None:
    """Refuse log-ratios for a loss, or a part of a sum, that takes log-probs without a reference."""
    for part in loss.parts.values() if isinstance(loss, LossSum) else [loss]:
        if "reference" not in part.needs:
            raise ValueError(
                f"loss.loss ({type(part).__name__}) takes log-probs without a reference, and is given log-ratios; "
                "choose another, such as a sigmoid one."
            )


def divergence_slope(log_ratio_R: Tensor, divergence: Divergence, alpha: float = 0.5) -> Tensor:
    """f'(pi / ref) of a divergence f: the score that takes the place of log(pi / ref) (f-DPO, arXiv 2309.16240).

    Constants that cancel between the responses of a pair are left as in TRL.

    Example:
        >>> divergence_slope(torch.tensor([0.0, 1.0]), "forward_kl")  # 1 - exp(-1)
        tensor([0.0000, 0.6321])
    """
    if divergence == "forward_kl":
        return 1 - torch.exp((-log_ratio_R).clamp(max=LARGEST))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(log_ratio_R)
    if divergence == "alpha":
        return torch.expm1(((alpha - 1) * log_ratio_R).clamp(max=LARGEST)) / (alpha - 1)
    return log_ratio_R


@dataclass(frozen=True)
class ScoredLoss:
    """Any loss on other scores of responses than the log-ratio log(pi / ref).

    Args:
        loss: The loss.
        reference: False = the score is log pi, and responses are not scored under the reference.
        average: Divide by the response's tokens.
        divergence: What holds the policy to the reference; reverse_kl is DPO's.
        alpha: Of the alpha divergence; towards 1 it becomes reverse_kl.

    Example:
        >>> from choosy.methods.losses import SigmoidLoss
        >>> cpo = ScoredLoss(SigmoidLoss(beta=0.1), reference=False)
        >>> cpo.items(LossInputs(torch.tensor([-40.0, -55.0]), sizes=[2]))  # -log sigmoid(0.1 * 15)
        tensor([0.2014])
    """

    loss: Loss
    reference: bool = True
    average: bool = False
    divergence: Divergence = "reverse_kl"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        refuse_other_scores(self.loss)
        if self.reference:
            refuse_log_ratios(self.loss)
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"loss.divergence={self.divergence} is none of {', '.join(get_args(Divergence))}.")
        if self.divergence != "reverse_kl" and not self.reference:
            raise ValueError(
                f"loss.divergence={self.divergence} is one from the reference, which +loss.reference=false leaves "
                "out; type loss.divergence=reverse_kl."
            )
        if self.divergence == "alpha" and abs(self.alpha - 1) < 1e-6:
            raise ValueError("loss.alpha=1 is the reverse KL divergence: type loss.divergence=reverse_kl.")

    @property
    def beta(self) -> float:
        return self.loss.beta

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs if self.reference else self.loss.needs - {"reference"}

    def _scored(self, s: LossInputs) -> LossInputs:
        score_R = s.logp_R - s.ref_R if self.reference else s.logp_R
        score_R = divergence_slope(score_R, self.divergence, self.alpha)
        return s.scored(score_R / s.length_R.clamp(min=1) if self.average else score_R)

    def items(self, s: LossInputs) -> Tensor:
        return self.loss.items(self._scored(s))

    def rewards(self, s: LossInputs) -> Tensor:
        return self.loss.rewards(self._scored(s))


@dataclass(frozen=True)
class LikelihoodWeightedLoss:
    """Any loss of pairs times exp(mean log pi(chosen) + mean log pi(rejected)), WPO (arXiv 2406.11827, Eq. 2).

    The weight is of the policy as it is, without gradient: pairs that it would sample count more.

    Args:
        loss: The loss.
        aligned: Divide each token's pi by the mean of pi under the policy itself, sum over the vocabulary of pi^2, so
            that the policy's own samples weigh about 1 wherever it is unsure; False = the plain form.

    Example:
        >>> from choosy.methods.losses import SigmoidLoss
        >>> s = LossInputs(torch.tensor([-4.0, -5.0]), torch.tensor([-4.0, -5.0]), sizes=[2],
        ...                length_R=torch.tensor([4, 10]), collision_R=torch.tensor([-2.0, -5.0]))
        >>> LikelihoodWeightedLoss(SigmoidLoss(), aligned=False).items(s)  # exp(-1 - 0.5) * 0.6931
        tensor([0.1547])
        >>> LikelihoodWeightedLoss(SigmoidLoss()).items(s)  # exp(-0.5 - 0) * 0.6931
        tensor([0.4204])
    """

    loss: Loss
    aligned: bool = True

    def __post_init__(self) -> None:
        if form_of(self.loss.needs) != "pair":
            raise ValueError(
                f"loss=wpo weighs pairs, and loss.loss ({type(self.loss).__name__}) takes none; choose another, such "
                "as a sigmoid one."
            )

    @property
    def beta(self) -> float:
        return self.loss.beta

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs | ({"collision"} if self.aligned else set())

    def items(self, s: LossInputs) -> Tensor:
        likely_R = s.logp_R.detach() - (s.collision_R if self.aligned else 0)
        weight_B = (likely_R / s.length_R.clamp(min=1)).view(-1, 2).sum(1).exp()
        return weight_B * self.loss.items(s)

    def rewards(self, s: LossInputs) -> Tensor:
        return self.loss.rewards(s)


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

    def __post_init__(self) -> None:
        refuse_other_scores(self.loss)
        if isinstance(self.weighing, DifferenceWeighted) and form_of(self.loss.needs) != "pair":
            raise ValueError(
                "loss.weighing compares the two responses of a pair, which loss.loss "
                f"({type(self.loss).__name__}) does not take; choose another, such as a sigmoid one."
            )

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


@dataclass(frozen=True)
class DifferenceWeighted:
    """Token weights of BMC (arXiv 2408.07471): 1 + min(1 / pi, delta) of tokens that only one response has, else 1.

    What differs is found in the tokens of the two responses alone. pi is the policy's probability of the token, without
    gradient, for the sums under policy and reference alike: the authors' code weighs the reference's log-probs by the
    reference's own probabilities. English stop-words, which they leave at 1, are tokens like others here.

    Args:
        delta: The largest addition.

    Example:
        >>> from choosy.methods.loss_inputs import TokenLogps
        >>> logp_T = torch.tensor([-0.1, -2.0, -0.5, -0.1])
        >>> tokens = TokenLogps(logp_T, logp_T, torch.tensor([7, 8, 9, 7]), torch.tensor([0, 0, 0, 1]))
        >>> s = LossInputs(torch.tensor([-2.6, -0.1]), sizes=[2], tokens=tokens)
        >>> DifferenceWeighted(delta=1.5).token_weights(logp_T, s)
        tensor([1.0000, 2.5000, 2.5000, 1.0000])
    """

    delta: float = 1.5

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"loss.weighing.delta={self.delta} weighs all tokens alike; choose more than 0.")

    def token_weights(self, logp_T: Tensor, s: LossInputs) -> Tensor:
        assert s.tokens is not None
        length_R = torch.bincount(s.tokens.response_T, minlength=2 * len(s))
        ids = [of_response.tolist() for of_response in torch.split(s.tokens.id_T, length_R.tolist())]
        pairs = zip(ids[::2], ids[1::2], strict=True)
        differs_T = torch.tensor([differs for pair in pairs for of in different(*pair) for differs in of])
        addition_T = torch.exp(-s.tokens.logp_T.detach()).clamp(max=self.delta)
        return 1 + addition_T * differs_T.to(addition_T)


def different(one: Sequence[int], other: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Whether each token of two responses is outside of what the longest matching blocks have in common.

    Example:
        >>> different([1, 2, 3], [1, 3, 4])
        ([False, True, False], [False, False, True])
    """
    in_one, in_other = [True] * len(one), [True] * len(other)
    for i, j, n in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        in_one[i : i + n] = in_other[j : j + n] = [False] * n
    return in_one, in_other
