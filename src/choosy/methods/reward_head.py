"""A linear model of rewards on frozen embeddings, with its uncertainty.

The head is fitted to bought labels: to scores by ridge regression, to verdicts by regularised Bradley-Terry. Both give
a Gaussian posterior of the weights, so that a reward has a mean and a standard deviation, and a draw of the weights is
a plausible reward function (Thompson sampling).

Axes: N responses, M pairs, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the prior, for embeddings of unit mean square
NEWTON_STEPS = 30
TUNED_ON = 500  # verdicts, at most, by which the strength of the prior is chosen


@dataclass(frozen=True)
class RewardHead:
    """A Gaussian posterior of the weights of a linear reward.

    Attributes:
        centre_D: Subtracted from an embedding.
        scale: Divides it then.
        weight_D: Mean of the weights.
        root_DD: A square root of their covariance: root_DD @ root_DD.T.
        offset: Reward of the embedding at the centre.
    """

    centre_D: Tensor
    scale: float
    weight_D: Tensor
    root_DD: Tensor
    offset: float = 0.0

    def features(self, embed_ND: Tensor) -> Tensor:
        """Standardised embeddings (N, D)."""
        return (embed_ND.double() - self.centre_D) / self.scale

    def rewards(self, embed_ND: Tensor) -> Tensor:
        """Predicted rewards (N,)."""
        return self.features(embed_ND) @ self.weight_D + self.offset

    def deviations(self, embed_ND: Tensor) -> Tensor:
        """Standard deviations (N,) of the predicted rewards."""
        return (self.features(embed_ND) @ self.root_DD).square().sum(-1).sqrt()

    def drawn(self, seed: int) -> RewardHead:
        """A head whose weights are drawn from the posterior."""
        generator = torch.Generator().manual_seed(seed)
        noise_D = torch.randn(len(self.weight_D), generator=generator, dtype=torch.float64)
        return replace(self, weight_D=self.weight_D + self.root_DD @ noise_D)


def fit_scores(embed_ND: Tensor, score_N: Tensor, strengths: Sequence[float] = STRENGTHS) -> RewardHead:
    """Fit a head to scores by ridge regression; the strength of the prior is the one with the best leave-one-out error.

    Args:
        embed_ND: Embeddings of N scored responses.
        score_N: Their scores.
        strengths: Candidates for the prior's precision over the noise's.

    Returns:
        The posterior for the noise that the leave-one-out errors show.

    Raises:
        ValueError: An embedding or a score is not finite.

    Example:
        >>> head = fit_scores(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
        >>> [round(reward, 1) for reward in head.rewards(torch.tensor([[0.0], [4.0]])).tolist()]
        [1.0, 9.0]
    """
    _refuse_broken(embed_ND, score_N)
    centre_D, scale = _standard(embed_ND)
    feature_ND, offset = (embed_ND.double() - centre_D) / scale, score_N.double().mean().item()
    target_N = score_N.double() - offset
    value_D, vector_DD = torch.linalg.eigh(feature_ND.T @ feature_ND)
    rotated_ND = feature_ND @ vector_DD
    moment_D = rotated_ND.T @ target_N

    def left_out(strength: float) -> Tensor:
        """Errors (N,) of predictions from the other N - 1 labels, exact for a ridge regression with an intercept."""
        shrink_D = 1 / (value_D.clamp(min=0) + strength)
        leverage_N = (rotated_ND.square() @ shrink_D + 1 / len(target_N)).clamp(max=1 - 1e-9)
        error_N: Tensor = (target_N - rotated_ND @ (shrink_D * moment_D)) / (1 - leverage_N)
        return error_N

    best = min(strengths, key=lambda strength: left_out(strength).square().mean().item())
    shrink_D, error_N = 1 / (value_D.clamp(min=0) + best), left_out(best)
    return RewardHead(
        centre_D,
        scale,
        weight_D=vector_DD @ (shrink_D * moment_D),
        root_DD=vector_DD * shrink_D.sqrt() * error_N.square().mean().sqrt(),
        offset=offset,
    )


def normal_scores(score_N: Tensor) -> Tensor:
    """The standard normal quantiles (N,) of the scores' ranks; equal scores share a rank (van der Waerden).

    Only the order of the scores counts, so that probabilities of 1e-6, marks from 1 to 10 and rewards without limits
    are learned alike, and no outlier rules the fit.

    Example:
        >>> [round(x, 2) for x in normal_scores(torch.tensor([1e-6, 0.9, 1e-5, 1e-5])).tolist()]
        [-1.15, 1.15, 0.0, 0.0]
    """
    sorted_N = score_N.sort().values
    below_N, up_to_N = (torch.searchsorted(sorted_N, score_N, side=side) for side in ("left", "right"))
    middle_N: Tensor = torch.special.ndtri((below_N + up_to_N).double() / (2 * len(score_N)))  # the mean rank of equals
    return middle_N


def fit_verdicts(chosen_MD: Tensor, rejected_MD: Tensor, strengths: Sequence[float] = STRENGTHS) -> RewardHead:
    """Fit a head to verdicts: P(chosen wins) = sigmoid(reward of chosen - reward of rejected), Bradley and Terry 1952.

    The posterior is Laplace's approximation; the strength of the prior is the one under which each verdict is most
    probable given the others (approximate leave-one-out: one Newton step from the fit). Of more than 500 verdicts,
    500 drawn by lot choose it.

    Args:
        chosen_MD: Embeddings of the preferred responses of M pairs.
        rejected_MD: Embeddings of the other ones. Ties and invalid verdicts are left out by the caller.
        strengths: Candidates for the prior's precision.

    Raises:
        ValueError: An embedding is not finite.

    Example:
        >>> head = fit_verdicts(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
        >>> (head.rewards(torch.tensor([[1.0], [0.0]])).diff() < 0).item()
        True
    """
    centre_D, scale, fit = _fitted(chosen_MD, rejected_MD, strengths)
    return RewardHead(centre_D, scale, fit.weight_D, fit.root_DD)


def left_out_gaps(chosen_MD: Tensor, rejected_MD: Tensor, strengths: Sequence[float] = STRENGTHS) -> Tensor:
    """Differences (M,) of the rewards of chosen and rejected, each predicted from the other M - 1 verdicts.

    Such a model of differences weighs pairs in RDO (arXiv 2408.09385). No verdict has a say in its own gap, which is
    negative where the others speak against it.

    Args:
        chosen_MD: Embeddings of the preferred responses of M pairs.
        rejected_MD: Embeddings of the other ones.
        strengths: Candidates for the prior's precision (see `fit_verdicts`).

    Raises:
        ValueError: An embedding is not finite.

    Example:
        >>> ones = torch.ones(4, 1)
        >>> left_out_gaps(torch.cat([ones, -ones[:1]]), torch.cat([-ones, ones[:1]])).sign().tolist()
        [1.0, 1.0, 1.0, 1.0, -1.0]
    """
    return _fitted(chosen_MD, rejected_MD, strengths)[2].left_out_M


def _fitted(chosen_MD: Tensor, rejected_MD: Tensor, strengths: Sequence[float]) -> tuple[Tensor, float, _Laplace]:
    """The centre and the scale of the embeddings, and the fit under the best prior."""
    _refuse_broken(chosen_MD, rejected_MD)
    centre_D, scale = _standard(torch.cat([chosen_MD, rejected_MD]))
    gap_MD = (chosen_MD.double() - rejected_MD.double()) / scale
    some_MD = gap_MD
    if len(gap_MD) > TUNED_ON:
        some_MD = gap_MD[torch.randperm(len(gap_MD), generator=torch.Generator().manual_seed(0))[:TUNED_ON]]
    strongest, *weaker = sorted(strengths, reverse=True)
    best, best_strength = _laplace(some_MD, strongest, torch.zeros_like(centre_D)), strongest
    for strength in weaker:
        fit = _laplace(some_MD, strength, best.weight_D)
        if F.logsigmoid(fit.left_out_M).mean() <= F.logsigmoid(best.left_out_M).mean():
            break
        best, best_strength = fit, strength
    return centre_D, scale, best if len(some_MD) == len(gap_MD) else _laplace(gap_MD, best_strength, best.weight_D)


class _Laplace(NamedTuple):
    """The mode of the weights, a root of their covariance, each pair's margin under the fit to the other pairs."""

    weight_D: Tensor
    root_DD: Tensor
    left_out_M: Tensor


def _laplace(gap_MD: Tensor, strength: float, weight_D: Tensor) -> _Laplace:
    """Newton's method on the penalised likelihood, begun at the given weights.

    The curvature takes most of the time. It is kept while each step is less than a quarter of the one before.
    """
    identity_DD = torch.eye(gap_MD.shape[1], dtype=torch.float64)

    def curvature(margin_M: Tensor) -> Tensor:
        bend_M = margin_M.sigmoid() * (-margin_M).sigmoid()
        factor_DD: Tensor = torch.linalg.cholesky(gap_MD.T @ (bend_M[:, None] * gap_MD) + strength * identity_DD)
        return factor_DD

    def penalised(weight_D: Tensor) -> Tensor:
        """The loss that is minimised: minus the log-likelihood, plus the prior's penalty."""
        return strength / 2 * weight_D @ weight_D - F.logsigmoid(gap_MD @ weight_D).sum()

    factor_DD, before = None, 0.0
    for _ in range(NEWTON_STEPS):
        margin_M = gap_MD @ weight_D
        gradient_D = gap_MD.T @ (-margin_M).sigmoid() - strength * weight_D
        step_D = None if factor_DD is None else torch.cholesky_solve(gradient_D[:, None], factor_DD)[:, 0]
        if step_D is None or step_D.norm() > before / 4:
            factor_DD = curvature(margin_M)
            step_D = torch.cholesky_solve(gradient_D[:, None], factor_DD)[:, 0]
        while step_D.norm() > 1e-9 and penalised(weight_D + step_D) > penalised(weight_D):
            step_D = step_D / 2
        weight_D, before = weight_D + step_D, step_D.norm()
        if before <= 1e-6 * (1 + weight_D.norm()):
            break
    margin_M = gap_MD @ weight_D
    root_DD = torch.linalg.solve_triangular(curvature(margin_M), identity_DD, upper=False).T
    leverage_M = (gap_MD @ root_DD).square().sum(1)
    surprise_M, bend_M = (-margin_M).sigmoid(), margin_M.sigmoid() * (-margin_M).sigmoid()
    left_out_M = margin_M - leverage_M * surprise_M / (1 - leverage_M * bend_M)
    return _Laplace(weight_D, root_DD, left_out_M)


def _standard(embed_ND: Tensor) -> tuple[Tensor, float]:
    """The mean embedding, and the root mean square distance from it; 1 where all are equal."""
    centre_D = embed_ND.double().mean(0)
    return centre_D, float((embed_ND.double() - centre_D).square().sum(1).mean().sqrt()) or 1.0


def _refuse_broken(*numbers: Tensor) -> None:
    if not all(bool(torch.isfinite(some).all()) for some in numbers):
        raise ValueError("A reward head is fitted to finite embeddings and scores; found one that is nan or infinite.")
