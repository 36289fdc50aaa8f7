"""The gradient of HyPO's term against that of the true KL divergence, in expectation over all that can be sampled."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from choosy.methods.loss_inputs import Loss, LossInputs
from choosy.methods.losses import OwnSamplesLoss, ReverseKLLoss

V = 4  # what a policy may answer


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGITS, OLD = double([0.3, -1.2, 0.8, 0.1]), double([0.9, 0.4, -0.5, -1.0])
REFERENCE = double([-0.4, 0.7, 0.2, 1.1]).log_softmax(0)


def true_gradient() -> Tensor:
    logits_V = LOGITS.clone().requires_grad_()
    logp_V = logits_V.log_softmax(0)
    return torch.autograd.grad((logp_V.exp() * (logp_V - REFERENCE)).sum(), logits_V)[0]


def expected(loss: Loss, sampled_V: Tensor, k: int) -> tuple[float, Tensor]:
    """Value and gradient in the logits, averaged over every draw of k samples, by its probability."""
    logits_V = LOGITS.clone().requires_grad_()
    value, sampled_V = torch.zeros((), dtype=torch.float64), sampled_V.log_softmax(0)
    for drawn in product(range(V), repeat=k):
        y_K = torch.tensor(drawn)
        own = logits_V.log_softmax(0)[y_K], REFERENCE[y_K], torch.zeros(k, dtype=torch.long), sampled_V[y_K]
        probability = sampled_V[y_K].sum().exp()
        value = value + probability * loss.items(LossInputs(double([0.0, 0.0]), sizes=[2], own=own))[0]
    return value.item(), torch.autograd.grad(value, logits_V)[0]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("sampled_V", [LOGITS, OLD], ids=["fresh", "stale"])
def test_the_gradient_is_that_of_the_true_divergence(sampled_V: Tensor, k: int) -> None:
    """With a clip that cuts nothing, value and gradient are unbiased, of stale samples too."""
    logp_V = LOGITS.log_softmax(0)
    value, gradient = expected(ReverseKLLoss(clip=math.inf), sampled_V, k)
    assert value == pytest.approx((logp_V.exp() * (logp_V - REFERENCE)).sum().item(), rel=1e-12)
    torch.testing.assert_close(gradient, true_gradient(), rtol=1e-12, atol=1e-14)
    assert gradient.abs().max() > 0.1


def test_the_log_ratio_alone_has_no_gradient_in_expectation() -> None:
    """The mistake that the term is often written with."""
    assert expected(OwnSamplesLoss(), LOGITS, 2)[1].abs().max() < 1e-15


def test_the_other_samples_as_a_baseline_take_noise_away() -> None:
    """Of two samples one compares with the other: the gradients scatter less than those of two alone."""

    def scatter(items: list[int]) -> float:
        logits_V = LOGITS.clone().requires_grad_()
        total = 0.0
        for drawn in product(range(V), repeat=2):
            y_K, logp_V = torch.tensor(drawn), logits_V.log_softmax(0)
            own = logp_V[y_K], REFERENCE[y_K] - 10, torch.tensor(items), logp_V[y_K].detach()
            kl_B = ReverseKLLoss().items(LossInputs(double([0.0] * 4), sizes=[2, 2], own=own))
            (gradient,) = torch.autograd.grad(kl_B.sum() / len(set(items)), logits_V)
            total += (logp_V[y_K].sum().exp() * (gradient - true_gradient()).square().sum()).item()
        return total

    assert scatter([0, 0]) < scatter([0, 1]) / 10


def test_a_stale_sample_that_became_likely_counts_as_often_as_the_clip_allows() -> None:
    """k = 3 and 1; the first became e times as likely, the second half as likely."""
    own_K = double([-2.0, -3.0]).requires_grad_()
    own = own_K, double([-5.0, -4.0]), torch.tensor([0, 0]), double([-3.0, -3.0 + math.log(2)])
    s = LossInputs(double([0.0, 0.0]), sizes=[2], own=own)
    value = ReverseKLLoss(clip=2.0).items(s)
    assert value.tolist() == pytest.approx([(2 * 3 + 0.5 * 1) / 2])
    assert torch.autograd.grad(value, own_K)[0].tolist() == pytest.approx([2 * (3 - 1) / 2, 0.5 * (1 - 3) / 2])
    assert ReverseKLLoss(clip=10.0).items(s).tolist() == pytest.approx([(math.e * 3 + 0.5 * 1) / 2])


def test_an_item_without_own_samples_costs_nothing() -> None:
    own = double([-2.0]), double([-3.0]), torch.tensor([1]), double([-2.0])
    assert ReverseKLLoss().items(LossInputs(double([0.0] * 4), sizes=[2, 2], own=own)).tolist() == [0.0, 1.0]


def test_a_clip_below_the_ratio_of_a_fresh_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.clip=0.5 shrinks the gradient of fresh samples"):
        ReverseKLLoss(clip=0.5)
