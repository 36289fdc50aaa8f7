"""The interface between training and losses: log-probs of a step's items in, one unreduced value an item out.

Axes: B items, R responses of the items, T tokens of the responses, K samples of the policy's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

# What a loss needs beside the log-probs of the policy:
Need = Literal[
    "pair",  # items are pairs: chosen, rejected
    "list",  # items are any number of responses, ranked by their rewards
    "single",  # items are single responses, good or bad
    "reference",  # log-probs under the reference
    "reward",  # the labeler's rewards
    "own",  # samples of the present policy
    "tokens",  # log-probs of single tokens, not only their sums
]
FORMS: tuple[Need, ...] = ("pair", "list", "single")


class TokenLogps(NamedTuple):
    """Log-probs of the T response tokens of a part.

    Attributes:
        logp_T: Under the policy, with gradient.
        ref_T: Under the reference.
        id_T: The tokens.
        response_T: The number of the response, in 0 ... R-1, that a token belongs to.
    """

    logp_T: Tensor
    ref_T: Tensor
    id_T: Tensor
    response_T: Tensor


@dataclass(frozen=True)
class LossInputs:
    """B items with their R responses, item after item, the best response of an item first.

    Attributes:
        logp_R: Log-probability of each response under the policy, summed over its tokens, with gradient.
        ref_R: The same under the reference; nan for a loss that does not need it.
        length_R: Tokens of each response.
        item_R: The number of the item, in 0 ... B-1, that a response belongs to.
        good_R: Whether the response is preferred: the first of a pair or a list, a single response that is good.
        reward_R: The labeler's rewards, larger is better, nan where there are none; in float64 and on the CPU.
        own_K: Log-probability under the policy of responses that it sampled in this round, with gradient.
        own_ref_K: The same under the reference.
        own_item_K: The item whose prompt a sample answers.
        kl: KL divergence of the policy from the reference as the last step's own samples estimate it, all ranks.
        tokens: Log-probs of single tokens, for a loss that needs them.
    """

    logp_R: Tensor
    ref_R: Tensor
    length_R: Tensor
    item_R: Tensor
    good_R: Tensor
    reward_R: Tensor
    own_K: Tensor
    own_ref_K: Tensor
    own_item_K: Tensor
    kl: float = 0.0
    tokens: TokenLogps | None = None

    @classmethod
    def of_pairs(
        cls,
        chosen_B: Sequence[float] | Tensor,
        rejected_B: Sequence[float] | Tensor,
        chosen_ref_B: Sequence[float] | Tensor,
        rejected_ref_B: Sequence[float] | Tensor,
        *,
        gap_B: Sequence[float] | Tensor | None = None,
    ) -> LossInputs:
        """The inputs of B pairs of one-token responses; the rewards are the gap and 0.

        Example:
            >>> LossInputs.of_pairs([-40.0], [-55.0], [-42.0], [-50.0]).item_R
            tensor([0, 0])
        """
        chosen, rejected, chosen_ref, rejected_ref = map(
            torch.as_tensor, (chosen_B, rejected_B, chosen_ref_B, rejected_ref_B)
        )
        gap = torch.full_like(chosen, torch.nan) if gap_B is None else torch.as_tensor(gap_B)
        return cls.of(
            torch.stack([chosen, rejected], 1).flatten(),
            torch.stack([chosen_ref, rejected_ref], 1).flatten(),
            sizes=[2] * len(chosen),
            reward_R=torch.stack([gap.detach(), torch.zeros_like(gap)], 1).flatten(),
        )

    @classmethod
    def of(
        cls,
        logp_R: Tensor,
        ref_R: Tensor | None = None,
        *,
        sizes: Sequence[int],
        length_R: Tensor | None = None,
        reward_R: Tensor | None = None,
        good_R: Tensor | None = None,
        own: tuple[Tensor, Tensor, Tensor] | None = None,
        kl: float = 0.0,
        tokens: TokenLogps | None = None,
    ) -> LossInputs:
        """The inputs of items with so many responses each; what is left out is nan, of length 1, or the first is good.

        Example:
            >>> s = LossInputs.of(torch.tensor([-1.0, -2.0, -3.0, -4.0]), sizes=[3, 1])
            >>> s.item_R.tolist(), s.rank_R.tolist(), s.good_R.tolist()
            ([0, 0, 0, 1], [0, 1, 2, 0], [True, False, False, True])
        """
        item_R = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
        item_R = item_R.to(logp_R.device)
        nan_R = torch.full_like(logp_R, torch.nan, requires_grad=False)
        none_K = logp_R.new_zeros(0)
        own_K, own_ref_K, own_item_K = (none_K, none_K, none_K.long()) if own is None else own
        return cls(
            logp_R,
            nan_R if ref_R is None else ref_R,
            torch.ones_like(item_R) if length_R is None else length_R,
            item_R,
            _rank(item_R) == 0 if good_R is None else good_R,
            nan_R.double() if reward_R is None else reward_R.double(),
            own_K,
            own_ref_K,
            own_item_K,
            kl,
            tokens,
        )

    def __len__(self) -> int:
        return int(self.item_R[-1]) + 1 if len(self.item_R) else 0

    @property
    def rank_R(self) -> Tensor:
        """The place of each response in its item: 0 for the best."""
        return _rank(self.item_R)

    @property
    def delta_B(self) -> Tensor:
        """Differences of the log-ratios of B pairs.

        delta = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)]

        Example:
            >>> LossInputs.of_pairs([-40.0], [-55.0], [-42.0], [-50.0]).delta_B
            tensor([7.])
        """
        logp_B2, ref_B2 = self.logp_R.view(-1, 2), self.ref_R.view(-1, 2)
        return (logp_B2[:, 0] - ref_B2[:, 0]) - (logp_B2[:, 1] - ref_B2[:, 1])

    @property
    def gap_B(self) -> Tensor:
        """reward(chosen) - reward(rejected) of B pairs; nan where there are no rewards."""
        reward_B2 = self.reward_R.view(-1, 2)
        return (reward_B2[:, 0] - reward_B2[:, 1]).to(self.logp_R)

    def by_rank(self, x_R: Tensor) -> Tensor:
        """A value of each response as (B, n), item by item and rank by rank; 0 where an item has fewer responses.

        Example:
            >>> s = LossInputs.of(torch.tensor([-1.0, -2.0, -3.0]), sizes=[2, 1])
            >>> s.by_rank(s.logp_R).tolist()
            [[-1.0, -2.0], [-3.0, 0.0]]
        """
        place = (self.item_R.to(x_R.device), self.rank_R.to(x_R.device))
        return x_R.new_zeros(len(self), int(self.rank_R.max()) + 1).index_put(place, x_R)

    def mean_logp_R(self) -> Tensor:
        """Mean log-probability of a response's tokens under the policy."""
        return self.logp_R / self.length_R.clamp(min=1)

    def log_ratio_rewards(self, beta: float) -> Tensor:
        """Implicit rewards of the responses, beta * log(pi / ref) (arXiv 2305.18290, Eq. 5), without gradient."""
        return beta * (self.logp_R.detach() - self.ref_R)

    def weighted(self, weighing: TokenWeighing) -> LossInputs:
        """The same items with log-probs summed by token weights instead of plainly, for policy and reference alike."""
        assert self.tokens is not None, "a loss with token weights needs tokens"
        sums = []
        for logp_T in (self.tokens.logp_T, self.tokens.ref_T):
            weight_T = weighing.token_weights(logp_T.detach(), self)
            sums.append(torch.zeros_like(self.logp_R).index_add(0, self.tokens.response_T, weight_T * logp_T))
        return replace(self, logp_R=sums[0], ref_R=sums[1])


def _rank(item_R: Tensor) -> Tensor:
    """Places within the items: 0 1 2 0 1 for items 0 0 0 1 1."""
    return torch.arange(len(item_R), device=item_R.device) - torch.searchsorted(item_R, item_R)


class Loss(Protocol):
    """A loss of items, unreduced: weights, the mean over a step, parts and ranks are the module's business.

    Attributes:
        beta: Scale of the implicit reward.
        needs: What the loss needs beside the policy's log-probs; the run refuses a set-up that does not give it.
    """

    @property
    def beta(self) -> float: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def items(self, s: LossInputs) -> Tensor:
        """The loss (B,) of each item."""
        ...

    def rewards(self, s: LossInputs) -> Tensor:
        """The implicit reward (R,) of each response, without gradient: what the loss takes the policy to believe."""
        ...


class TokenWeighing(Protocol):
    """A rule for weights on tokens, applied to their log-probs before the sum."""

    def token_weights(self, logp_T: Tensor, s: LossInputs) -> Tensor:
        """Weights (T,) of the tokens `s.tokens`, whose log-probs under the model in question are logp_T."""
        ...


def form_of(needs: Collection[Need]) -> Need:
    """The form of a loss's items; a loss that takes any form is given pairs.

    Raises:
        ValueError: It needs several.

    Example:
        >>> form_of({"list", "reward"}), form_of(set())
        ('list', 'pair')
    """
    forms = [form for form in FORMS if form in needs]
    if len(forms) > 1:
        raise ValueError(
            f"The parts of the loss need items of different forms ({', '.join(forms)}); add up losses of one form."
        )
    return forms[0] if forms else "pair"
