"""The losses: from log-probs of a step's items to one value an item.

A loss declares what it needs and returns unreduced values (see `choosy.methods.loss_inputs`). Axes as there: B items,
R responses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.methods.loss_inputs import LossInputs, Need, check_beta

PAIRS_AND_REFERENCE: frozenset[Need] = frozenset({"pair", "reference"})


# -- pairs, with a reference ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigmoidLoss:
    """-log sigmoid(beta * delta), the DPO loss (arXiv 2305.18290, Eq. 7).

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        label_smoothing: Believed share of flipped labels, in [0, 1/2]: conservative DPO.

    Example:
        >>> s = LossInputs(torch.tensor([-40.0, -55, -1, -1]), torch.tensor([-42.0, -50, -1, -1]), sizes=[2, 2])
        >>> SigmoidLoss(beta=0.1).items(s)
        tensor([0.4032, 0.6931])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not 0 <= self.label_smoothing <= 0.5:
            raise ValueError(f"loss.label_smoothing={self.label_smoothing} is no share of flipped labels in [0, 0.5].")

    def items(self, s: LossInputs) -> Tensor:
        delta_B = s.delta_B
        agree_B, flipped_B = -F.logsigmoid(self.beta * delta_B), -F.logsigmoid(-self.beta * delta_B)
        return (1 - self.label_smoothing) * agree_B + self.label_smoothing * flipped_B

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
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2],
        ...                reward_R=torch.tensor([25.0, 0.0]))
        >>> SelfRewardLoss().items(s)  # -log sigmoid(0.1 * (7 - 5))
        tensor([0.5981])
    """

    beta: float = 0.1
    share: float = 0.2
    clip: float = 40.0
    needs: ClassVar[frozenset[Need]] = PAIRS_AND_REFERENCE | {"reward"}

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not self.share > 0:
            raise ValueError(f"loss.share={self.share} leaves no margin; choose loss.share > 0, or loss=sigmoid.")
        if not self.clip > 0:
            raise ValueError(f"loss.clip={self.clip} leaves no margin; choose loss.clip > 0, or loss=sigmoid.")

    def items(self, s: LossInputs) -> Tensor:
        margin_B = self.share * s.gap_B.clamp(-self.clip, self.clip)
        return -F.logsigmoid(self.beta * (s.delta_B - margin_B))

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


# -- without a reference -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimPOLoss:
    """-log sigmoid(beta * (mean log pi(chosen) - mean log pi(rejected)) - gamma), SimPO (arXiv 2405.14734, Eq. 6).

    Args:
        beta: Scale of the mean log-prob of a response's tokens.
        gamma: The margin by which the chosen response's reward should exceed the other's.

    Example:
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), sizes=[2], length_R=torch.tensor([20, 25]))
        >>> SimPOLoss(beta=2.0, gamma=1.0).items(s)  # -log sigmoid(2 * (-2 + 2.2) - 1)
        tensor([1.0375])
    """

    beta: float = 2.0
    gamma: float = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({"pair"})

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if not self.gamma >= 0:
            raise ValueError(f"loss.gamma={self.gamma} is no margin; choose loss.gamma >= 0.")

    def items(self, s: LossInputs) -> Tensor:
        mean_B2 = s.mean_logp_R().view(-1, 2)
        return -F.logsigmoid(self.beta * (mean_B2[:, 0] - mean_B2[:, 1]) - self.gamma)

    def rewards(self, s: LossInputs) -> Tensor:
        return self.beta * s.mean_logp_R().detach()


@dataclass(frozen=True)
class SFTLoss:
    """-mean log pi of the best response's tokens: a term that keeps the preferred response likely.

    A single response that is bad costs nothing. RPO is DPO plus a share of it (arXiv 2404.19733): see `LossSum`.

    Example:
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), sizes=[2], length_R=torch.tensor([20, 25]))
        >>> SFTLoss().items(s)
        tensor([2.])
    """

    beta: ClassVar[float] = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset()

    def items(self, s: LossInputs) -> Tensor:
        return (-s.mean_logp_R() * s.good_R)[s.rank_R == 0]

    def rewards(self, s: LossInputs) -> Tensor:
        return s.mean_logp_R().detach()


@dataclass(frozen=True)
class PROLoss:
    """Preference Ranking Optimization of n responses, the best first (arXiv 2306.17492, after its code).

    With r the rewards and s the mean log-probs, each response k < n is compared with those below it,

        L_k = -log exp(s_k T_kk) / (exp(s_k T_kk) + sum_{i>k} exp(s_i T_ki)),   T_ki = r_k - r_i,  T_kk = max_i T_ki,

    and the best one is learned by a term of its own: the sum of L_k plus sft_share * (n - 1)^2 * -log pi(best).

    Args:
        sft_share: Share of the term of the best response.

    Example:
        >>> s = LossInputs(torch.tensor([-1.0, -1.2, -1.5]), sizes=[3], reward_R=torch.tensor([2.0, 1.0, -0.5]))
        >>> PROLoss(sft_share=0.0).items(s)  # 1.600559 + 0.493249
        tensor([2.0938])
    """

    sft_share: float = 0.05
    beta: ClassVar[float] = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({"list", "reward"})

    def __post_init__(self) -> None:
        if not self.sft_share >= 0:
            raise ValueError(f"loss.sft_share={self.sft_share} is no share; choose loss.sft_share >= 0.")

    def items(self, s: LossInputs) -> Tensor:
        mean_Bn, reward_Bn, there_Bn = map(s.by_rank, (s.mean_logp_R(), s.reward_R, torch.ones_like(s.good_R)))
        below_Bnn = (there_Bn[:, :, None] & there_Bn[:, None, :]).triu(1)  # [k, i]: whether i is ranked below k
        scale_Bnn = (reward_Bn[:, :, None] - reward_Bn[:, None, :]).to(mean_Bn) * below_Bnn
        own_Bn = mean_Bn * scale_Bnn.amax(-1)
        other_Bnn = (mean_Bn[:, None, :] * scale_Bnn).masked_fill(~below_Bnn, -torch.inf)
        rank_loss_Bn = torch.logsumexp(torch.cat([own_Bn[..., None], other_Bnn], -1), -1) - own_Bn
        sft_B = -s.logp_R[s.rank_R == 0] * (there_Bn.sum(-1) - 1) ** 2
        return rank_loss_Bn.sum(-1) + self.sft_share * sft_B

    def rewards(self, s: LossInputs) -> Tensor:
        return s.mean_logp_R().detach()


# -- the policy's own samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnSamplesLoss:
    """Mean over the policy's own samples to an item's prompt of log pi - log ref, SELM's term (arXiv 2405.19332).

    Added to a loss it makes less likely what the policy has already sampled, so that it explores. Its share there is
    alpha * beta in SELM, alpha in XPO, whose term is log pi of the reference's samples (arXiv 2405.21046, Alg. 1); with
    reference=previous_round these are the round's own. An item without own samples costs nothing.

    Args:
        reference: False = log pi alone, XPO's term.

    Example:
        >>> own = torch.tensor([-50.0]), torch.tensor([-51.7]), torch.tensor([0]), torch.tensor([-50.0])
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2], own=own)
        >>> OwnSamplesLoss().items(s)
        tensor([1.7000])
    """

    reference: bool = True
    beta: ClassVar[float] = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"own", "reference"}) if self.reference else frozenset({"own"})

    def items(self, s: LossInputs) -> Tensor:
        value_K = s.own_K - s.own_ref_K if self.reference else s.own_K
        return s.sum_of_own(value_K) / s.sum_of_own(torch.ones_like(value_K)).clamp(min=1)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class ReverseKLLoss:
    """KL(pi || ref) of an item's prompt, estimated by the policy's own samples: HyPO's term (arXiv 2406.01462).

    The value is the mean of k = log pi - log ref over the samples. Its gradient is the divergence's, which moves with
    what the policy samples (RLOO):

        mean over samples y of ratio(y) * [k(y) - mean of the other samples' k] * grad log pi(y)

    The gradient of k alone would be 0 in expectation. ratio = pi / (pi when it sampled y), for the policy moves on in a
    round; it is cut at `clip`. An only sample has no other to be compared with, so its gradient is noisier; an item
    without own samples costs nothing.

    Args:
        clip: The largest ratio, at least 1; inf leaves the gradient unbiased.

    Example:
        >>> own_K = torch.tensor([-3.0, -1.0], requires_grad=True)
        >>> own = own_K, torch.tensor([-5.0, -2.0]), torch.tensor([0, 0]), torch.tensor([-3.0, -1.0])
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[2], own=own)
        >>> kl_B = ReverseKLLoss().items(s)  # the mean of 2 and 1
        >>> kl_B.tolist(), torch.autograd.grad(kl_B.sum(), own_K)[0].tolist()  # (2 - 1) / 2, (1 - 2) / 2
        ([1.5], [0.5, -0.5])
    """

    clip: float = 2.0
    beta: ClassVar[float] = 1.0
    needs: ClassVar[frozenset[Need]] = frozenset({"own", "reference"})

    def __post_init__(self) -> None:
        if not self.clip >= 1:
            raise ValueError(f"loss.clip={self.clip} shrinks the gradient of fresh samples; choose loss.clip >= 1.")

    def items(self, s: LossInputs) -> Tensor:
        now_K = s.own_K.detach()
        ratio_K = (now_K - s.own_sampled_K).clamp(max=math.log(self.clip)).exp()
        k_K = now_K - s.own_ref_K
        count_K, sum_K = (s.sum_of_own(x_K)[s.own_item_K] for x_K in (torch.ones_like(k_K), k_K))
        baseline_K = (sum_K - k_K) / (count_K - 1).clamp(min=1)  # leave-one-out
        score_K = (k_K - baseline_K) * (s.own_K - now_K)  # 0, with the gradient of the score function
        return s.sum_of_own(ratio_K * (k_K + score_K) / count_K)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


# -- single responses ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KTOLoss:
    """1 - sigmoid(+-(beta * (log pi - log ref) - z0)), + of good responses and - of bad ones (arXiv 2402.01306, Eq. 7).

    z0 = beta * max(0, KL(pi || ref)) is what a response is compared with. The paper estimates it from answers to other
    prompts; here it is the mean log-ratio of the policy's own samples in the last step, which is unbiased.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        good_weight: Factor on the loss of good responses.
        bad_weight: Factor on the loss of bad ones.
        reference_point: `own`: z0 as above; `zero`: z0 = 0, which needs no samples: APO-zero for single responses
            (arXiv 2408.06266, Eq. 7).

    Example:
        >>> from choosy.methods.loss_inputs import Facts
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[1, 1],
        ...                good_R=torch.tensor([True, False]), facts=Facts(kl=1.0))
        >>> KTOLoss(beta=0.1).items(s)  # 1 - sigmoid(0.1 * (2 - 1)), 1 - sigmoid(0.1 * (1 + 5))
        tensor([0.4750, 0.3543])
    """

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0
    reference_point: Literal["own", "zero"] = "own"

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.reference_point not in ("own", "zero"):
            raise ValueError(f"loss.reference_point={self.reference_point} is none of own, zero.")
        for name, weight in (("good_weight", self.good_weight), ("bad_weight", self.bad_weight)):
            if not weight >= 0:
                raise ValueError(f"loss.{name}={weight} would turn the labels round; choose loss.{name} >= 0.")

    @property
    def needs(self) -> frozenset[Need]:
        always: frozenset[Need] = frozenset({"single", "reference"})
        return always | {"own"} if self.reference_point == "own" else always

    def items(self, s: LossInputs) -> Tensor:
        kl = max(0.0, s.facts.kl) if self.reference_point == "own" else 0.0
        gain_B = self.beta * (s.logp_R - s.ref_R - kl)
        good_B, bad_B = 1 - torch.sigmoid(gain_B), 1 - torch.sigmoid(-gain_B)
        return torch.where(s.good_R, self.good_weight * good_B, self.bad_weight * bad_B)

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)


@dataclass(frozen=True)
class BCOLoss:
    """-log sigmoid(+-(beta * (log pi - log ref) - shift)), + of good responses and - of bad ones (arXiv 2404.04656).

    The classifier's logit is the implicit reward less its mean over the steps so far, as TRL's running mean has it;
    there the present step counts too, here it does not, so that a step's parts and ranks need not wait for each other.

    Args:
        beta: How closely the policy is held to the reference; larger = closer.
        shift: `running`: as above; `zero`: no shift.

    Example:
        >>> from choosy.methods.loss_inputs import Facts
        >>> s = LossInputs(torch.tensor([-40.0, -55.0]), torch.tensor([-42.0, -50.0]), sizes=[1, 1],
        ...                good_R=torch.tensor([True, False]), facts=Facts(reward=0.1))
        >>> BCOLoss(beta=0.1).items(s)  # -log sigmoid(0.2 - 0.1), -log sigmoid(0.5 + 0.1)
        tensor([0.6444, 0.4375])
    """

    beta: float = 0.1
    shift: Literal["running", "zero"] = "running"
    needs: ClassVar[frozenset[Need]] = frozenset({"single", "reference"})

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.shift not in ("running", "zero"):
            raise ValueError(f"loss.shift={self.shift} is none of running, zero.")

    def items(self, s: LossInputs) -> Tensor:
        shift = s.facts.reward if self.shift == "running" else 0.0
        logit_B = self.beta * (s.logp_R - s.ref_R) - shift
        return -F.logsigmoid(torch.where(s.good_R, logit_B, -logit_B))

    def rewards(self, s: LossInputs) -> Tensor:
        return s.log_ratio_rewards(self.beta)
