"""The interface of losses, which take the log-probs of a step's items and return one unreduced value for each item.

Axes: B items, R responses of the items, T tokens of the responses, K samples of the policy's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
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
    "collision",  # how sure the policy is of each place: the probability that two samples are the same token
    "step",  # the order of the step's pairs, which takes a second forward pass
    "degrees",  # what a head on the policy says of responses without some of their key phrases
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


class Degrees(NamedTuple):
    """V variants of items' best responses, and what a head on the policy's hidden state takes their degrees to be.

    Attributes:
        logits_VC: Of the C degrees, with gradient.
        degree_V: The degrees: 0 = the whole response, the larger the more of its key phrases are left out.
        item_V: The item whose response it is.
    """

    logits_VC: Tensor
    degree_V: Tensor
    item_V: Tensor


class Partners(NamedTuple):
    """What the B pairs of a part are compared with in a loss that compares a step's pairs as distributions.

    Two numbers of each pair of the step are sorted, each by itself; the partner of one is the other at the same place.
    A pair's margin is log pi(chosen) - log pi(rejected).

    Attributes:
        ref_margin_B: Partners of the policy's margins among the reference's.
        rejected_B: Partners of the chosen responses' log-ratios among those of the rejected ones.
        chosen_B: Partners of the rejected responses' log-ratios among those of the chosen ones.
    """

    ref_margin_B: Tensor
    rejected_B: Tensor
    chosen_B: Tensor

    @classmethod
    def of(cls, logp_B2: Tensor, ref_B2: Tensor) -> Partners:
        """The partners in a step of these pairs, whose log-probs are those of chosen and rejected.

        Example:
            >>> Partners.of(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
            Partners(ref_margin_B=tensor([ 1., -1.]), rejected_B=tensor([-1., -2.]), chosen_B=tensor([-1.,  2.]))
        """
        ratio_B2 = logp_B2 - ref_B2
        compared = (
            (logp_B2[:, 0] - logp_B2[:, 1], ref_B2[:, 0] - ref_B2[:, 1]),
            (ratio_B2[:, 0], ratio_B2[:, 1]),
            (ratio_B2[:, 1], ratio_B2[:, 0]),
        )
        return cls(
            *(torch.empty_like(one).index_copy(0, one.argsort(stable=True), two.sort().values) for one, two in compared)
        )


class Facts(NamedTuple):
    """What no part of a step shows by itself, of all ranks.

    Attributes:
        kl: KL divergence of the policy from the reference as the last step's own samples estimate it.
        reward: Mean implicit reward of a step's responses, averaged over the steps so far.
        steps: The number of these steps.
        partners: Of the pairs of the part, for a loss that needs the step.
    """

    kl: float = 0.0
    reward: float = 0.0
    steps: int = 0
    partners: Partners | None = None

    def after(self, *, kl: float | None, reward: float) -> Facts:
        """The facts after a step with this mean reward; without a new estimate of the KL divergence the old one stays.

        Example:
            >>> Facts().after(kl=0.5, reward=1.0).after(kl=None, reward=2.0)
            Facts(kl=0.5, reward=1.5, steps=2, partners=None)
        """
        return Facts(
            self.kl if kl is None else kl, self.reward + (reward - self.reward) / (self.steps + 1), self.steps + 1
        )


NO_STEPS_YET = Facts()


class LossInputs:
    """B items with their R responses, item after item, the best response of an item first.

    Args:
        sizes: The number of responses of each item. What is left out is nan, of length 1, or the first is good.

    Attributes:
        logp_R: Log-probability of each response under the policy, summed over its tokens, with gradient.
        ref_R: The same under the reference; nan for a loss that does not need it.
        length_R: Tokens of each response.
        collision_R: log sum p^2 over the policy's vocabulary, summed over the places of each response, without
            gradient: of two samples the probability of being the same token; nan for a loss that does not need it.
        item_R: The number of the item, in 0 ... B-1, that a response belongs to.
        good_R: Whether the response is preferred: the first of a pair or a list, a single response that is good.
        reward_R: The labeler's rewards, larger is better, nan where there are none; in float64 and on the CPU.
        own_K: Log-probability under the policy of responses that it sampled in this round, with gradient.
        own_ref_K: The same under the reference.
        own_item_K: The item whose prompt a sample answers.
        own_sampled_K: Log-probability under the policy as it was when it sampled them, at the start of the round.
        facts: What no part of a step shows by itself.
        tokens: Log-probs of single tokens, for a loss that needs them.
        degrees: Variants of the best responses, for a loss that needs them.

    Example:
        >>> s = LossInputs(torch.tensor([-1.0, -2.0, -3.0, -4.0]), sizes=[3, 1])
        >>> s.item_R.tolist(), s.rank_R.tolist(), s.good_R.tolist()
        ([0, 0, 0, 1], [0, 1, 2, 0], [True, False, False, True])
    """

    def __init__(
        self,
        logp_R: Tensor,
        ref_R: Tensor | None = None,
        *,
        sizes: Sequence[int],
        length_R: Tensor | None = None,
        collision_R: Tensor | None = None,
        reward_R: Tensor | None = None,
        good_R: Tensor | None = None,
        own: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        facts: Facts = NO_STEPS_YET,
        tokens: TokenLogps | None = None,
        degrees: Degrees | None = None,
    ) -> None:
        item_R = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
        nan_R = torch.full_like(logp_R, torch.nan, requires_grad=False)
        none_K = logp_R.new_zeros(0)
        self.logp_R = logp_R
        self.ref_R = nan_R if ref_R is None else ref_R
        self.item_R = item_R.to(logp_R.device)
        self.length_R = torch.ones_like(self.item_R) if length_R is None else length_R
        self.collision_R = nan_R if collision_R is None else collision_R
        self.good_R = self.rank_R == 0 if good_R is None else good_R
        self.reward_R = (nan_R if reward_R is None else reward_R).double()
        own = (none_K, none_K, none_K.long(), none_K) if own is None else own
        self.own_K, self.own_ref_K, self.own_item_K, self.own_sampled_K = own
        self.facts = facts
        self.tokens = tokens
        self.degrees = degrees

    def __len__(self) -> int:
        return int(self.item_R[-1]) + 1 if len(self.item_R) else 0

    @property
    def rank_R(self) -> Tensor:
        """The place of each response in its item: 0 for the best."""
        return torch.arange(len(self.item_R), device=self.item_R.device) - torch.searchsorted(self.item_R, self.item_R)

    @property
    def delta_B(self) -> Tensor:
        """Differences of the log-ratios of B pairs.

        delta = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)]

        Example:
            >>> LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2]).delta_B
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
            >>> s = LossInputs(torch.tensor([-1.0, -2.0, -3.0]), sizes=[2, 1])
            >>> s.by_rank(s.logp_R).tolist()
            [[-1.0, -2.0], [-3.0, 0.0]]
        """
        place = (self.item_R.to(x_R.device), self.rank_R.to(x_R.device))
        return x_R.new_zeros(len(self), int(self.rank_R.max()) + 1).index_put(place, x_R)

    def sum_of_own(self, x_K: Tensor) -> Tensor:
        """The sum (B,) of a value of each own sample over the samples to an item's prompt."""
        return x_K.new_zeros(len(self)).index_add(0, self.own_item_K, x_K)

    def mean_logp_R(self) -> Tensor:
        """Mean log-probability of a response's tokens under the policy."""
        return self.logp_R / self.length_R.clamp(min=1)

    def log_ratio_rewards(self, beta: float) -> Tensor:
        """Implicit rewards of the responses, beta * log(pi / ref) (arXiv 2305.18290, Eq. 5), without gradient."""
        return beta * (self.logp_R.detach() - self.ref_R)

    def scored(self, score_R: Tensor) -> LossInputs:
        """The same items with scores in the place of log-ratios."""
        scored = copy(self)
        scored.logp_R, scored.ref_R = score_R, torch.zeros_like(self.ref_R)
        return scored

    def weighted(self, weighing: TokenWeighing) -> LossInputs:
        """The same items with log-probs summed by token weights instead of plainly, for policy and reference alike."""
        assert self.tokens is not None, "a loss with token weights needs tokens"
        sums = []
        for logp_T in (self.tokens.logp_T, self.tokens.ref_T):
            weight_T = weighing.token_weights(logp_T.detach(), self)
            sums.append(torch.zeros_like(self.logp_R).index_add(0, self.tokens.response_T, weight_T * logp_T))
        weighted = copy(self)
        weighted.logp_R, weighted.ref_R = sums
        return weighted


def refuse_no_loss(loss: object) -> None:
    """Refuse an object that lacks what a loss has."""
    if lacks := [name for name in ("beta", "needs", "items", "rewards") if not hasattr(loss, name)]:
        raise ValueError(
            f"loss={type(loss).__name__} has no {lacks[0]}; a loss has beta, needs, items(s) and rewards(s), as in "
            "docs/python.md."
        )


def item_losses(loss: Loss, s: LossInputs, count: int) -> Tensor:
    """Return the loss (B,) of each of `count` items; refuse any other shape, which would be broadcast.

    Example:
        >>> from choosy.methods.losses import SigmoidLoss
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2])
        >>> item_losses(SigmoidLoss(), s, 1).shape
        torch.Size([1])
    """
    loss_B = loss.items(s)
    if loss_B.shape != (count,):
        raise ValueError(
            f"{type(loss).__name__}.items returned a tensor of shape {tuple(loss_B.shape)} for {count} items; it must "
            f"return one value for each, of shape ({count},), without a mean or a sum over them."
        )
    return loss_B


def check_beta(beta: float) -> None:
    """Refuse a beta that is not positive."""
    if not beta > 0:
        raise ValueError(f"loss.beta={beta} turns preference into nothing; choose beta > 0 (0.1 is usual).")


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
