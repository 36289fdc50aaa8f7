"""The losses: hand-derived numbers, the numbers of other implementations, gradients, extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from choosy.methods.losses import (
    HingeLoss,
    IPOLoss,
    PreferenceLoss,
    SelfRewardLoss,
    SigmoidLoss,
    log_ratio_difference,
    weighted_dpo_loss,
)
from choosy.methods.weighting import RewardGap

# Log-probs of four pairs for which LLaMA-Factory's tests and TRL's formulas give known losses.
CHOSEN, REJECTED = [-3.0, -2.5, -4.0, -1.5], [-5.0, -3.5, -6.0, -2.5]
CHOSEN_REF, REJECTED_REF = [-2.8, -2.3, -3.8, -1.4], [-3.2, -2.7, -4.2, -1.8]
FAMILY = [SigmoidLoss(), SigmoidLoss(label_smoothing=0.1), IPOLoss(), HingeLoss(), SelfRewardLoss()]
GAP = [25.0, 100.0, -3.0, 0.0]  # of the rewards


def double(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def deltas(*logps: list[float]) -> torch.Tensor:
    return log_ratio_difference(*map(double, logps))


@pytest.fixture(params=FAMILY, ids=lambda loss: f"{type(loss).__name__}{getattr(loss, 'label_smoothing', '') or ''}")
def loss(request: pytest.FixtureRequest) -> PreferenceLoss:
    return request.param


# -- numbers -------------------------------------------------------------------------------------------------


def test_golden_values() -> None:
    """delta = (-40 + 42) - (-55 + 50) = 7; -log sigmoid(0.7) = log(1 + e^-0.7) = 0.403186."""
    delta_B = deltas([-40.0], [-55.0], [-42.0], [-50.0])
    assert delta_B.tolist() == [7.0]
    assert SigmoidLoss(beta=0.1).pairwise(delta_B).item() == pytest.approx(0.403186, abs=1e-6)
    assert IPOLoss(beta=0.1).pairwise(delta_B).item() == pytest.approx(4.0)  # (7 - 1 / 0.2)^2
    assert HingeLoss(beta=0.1).pairwise(delta_B).item() == pytest.approx(0.3)  # 1 - 0.7


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SigmoidLoss(beta=0.1), [0.61634377, 0.66359711]),
        (SigmoidLoss(beta=0.1, label_smoothing=0.1), [0.63234377, 0.66959711]),
        (HingeLoss(beta=0.1), [0.84, 0.94]),
        (IPOLoss(beta=0.1), [11.56, 19.36]),
    ],
)
def test_other_implementations_give_the_same(loss: PreferenceLoss, expected: list[float]) -> None:
    """delta = 1.6 0.6 1.6 0.6."""
    delta_B = deltas(CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF)
    assert delta_B.tolist() == pytest.approx([1.6, 0.6, 1.6, 0.6])
    assert loss.pairwise(delta_B).tolist() == pytest.approx(expected * 2, abs=1e-8)


def test_weighted_sigmoid_of_other_implementations() -> None:
    delta_B = deltas(CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF)
    weighted_B = weighted_dpo_loss(delta_B, double([1.0, 0.5, 0.25, 2.0]), SigmoidLoss(beta=0.1))
    assert weighted_B.tolist() == pytest.approx([0.61634377, 0.33179856, 0.15408594, 1.32719423], abs=1e-8)


@pytest.mark.parametrize("beta2", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("form", ["sigmoid", "linear"])
def test_wdpo_golden_values(form: Any, beta2: float) -> None:
    """Gap 1.25, delta 7: sigmoid(1.25) 0.403186 = 0.777300 * 0.403186 = 0.313396; linear 1.25 * 0.403186."""
    golden = {
        "sigmoid": {0.5: 0.262617, 1.0: 0.313396, 2.0: 0.372601},
        "linear": {0.5: 0.251991, 1.0: 0.503983, 2.0: 1.007965},
    }
    weight_B = RewardGap(form=form, beta2=beta2).weigh(double([1.25]), double([math.nan]))
    value = weighted_dpo_loss(double([7.0]), weight_B, SigmoidLoss(beta=0.1)).item()
    assert value == pytest.approx(golden[form][beta2], abs=1e-6)


@pytest.mark.parametrize(
    ("gap", "expected"), [(25.0, 0.598139), (100.0, 0.744397), (-100.0, 0.201413), (0.0, 0.403186)]
)
def test_dlma_golden_values(gap: float, expected: float) -> None:
    """delta 7, share 0.2, clip 40: -log sigmoid(0.1 (7 - 5)), then (7 - 8), (7 + 8) and (7 - 0) for 7 - 5."""
    value = weighted_dpo_loss(double([7.0]), double([1.0]), SelfRewardLoss(beta=0.1), double([gap])).item()
    assert value == pytest.approx(expected, abs=1e-6)


# -- what every loss keeps -----------------------------------------------------------------------------------


def test_a_policy_that_is_its_reference_has_a_known_loss(loss: PreferenceLoss) -> None:
    """delta 0: ln 2 for the sigmoid, smoothed or not; 1 for the hinge; (1 / 2 beta)^2 = 25 for IPO."""
    expected = {HingeLoss: 1.0, IPOLoss: 25.0}.get(type(loss), math.log(2))
    assert loss.pairwise(torch.zeros(3)).tolist() == pytest.approx([expected] * 3, abs=1e-7)


def test_swapping_chosen_and_rejected_flips_delta(loss: PreferenceLoss) -> None:
    delta_B = deltas(CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF)
    swapped_B = deltas(REJECTED, CHOSEN, REJECTED_REF, CHOSEN_REF)
    assert torch.equal(swapped_B, -delta_B)
    assert (loss.pairwise(swapped_B) > loss.pairwise(delta_B)).all(), "every pair here prefers its chosen response"


def test_half_the_labels_flipped_says_nothing() -> None:
    delta_B = torch.linspace(-50, 50, 11)
    loss = SigmoidLoss(label_smoothing=0.5)
    torch.testing.assert_close(loss.pairwise(delta_B), loss.pairwise(-delta_B))


def test_the_loss_is_unreduced_and_each_pair_is_its_own(loss: PreferenceLoss) -> None:
    delta_B = torch.tensor([1.5, -2.0, 30.0])
    assert torch.equal(loss.pairwise(delta_B), torch.cat([loss.pairwise(d[None]) for d in delta_B]))


def test_gradients_are_those_of_the_formula(loss: PreferenceLoss) -> None:
    delta_B = double([-30.0, -1.0, 0.0, 2.0, 7.0, 25.0]).requires_grad_()
    assert torch.autograd.gradcheck(loss.pairwise, (delta_B,))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_log_probs_stay_finite(loss: PreferenceLoss, scale: float, dtype: torch.dtype) -> None:
    delta_B = scale * deltas([-0.1, -50, -0.5, -100], [-0.2, -5, -30, -1], [-0.15, -3, -0.6, -2], [-0.25, -4, -5, -1.5])
    delta_B = delta_B.to(dtype).requires_grad_()
    values_B = loss.pairwise(delta_B)
    values_B.sum().backward()
    assert values_B.isfinite().all()
    assert delta_B.grad is not None
    assert delta_B.grad.isfinite().all()


# -- weights -------------------------------------------------------------------------------------------------


def test_the_weight_is_a_factor(loss: PreferenceLoss) -> None:
    delta_B, weight_B, gap_B = (torch.tensor(x) for x in ([1.6, 0.6, -3.0], [2.0, 0.0, 0.25], [0.0, 0.0, 0.0]))
    assert torch.equal(weighted_dpo_loss(delta_B, weight_B, loss, gap_B), weight_B * loss.pairwise(delta_B))
    assert torch.equal(weighted_dpo_loss(delta_B, torch.ones(3), loss, gap_B), loss.pairwise(delta_B))


def test_neither_weight_nor_gap_gets_a_gradient(loss: PreferenceLoss) -> None:
    delta_B, weight_B, gap_B = (torch.tensor([1.6, 0.6]).requires_grad_() for _ in range(3))
    weighted_dpo_loss(delta_B, weight_B * 2, loss, gap_B).sum().backward()
    assert weight_B.grad is None
    assert gap_B.grad is None
    assert delta_B.grad is not None


def test_only_a_loss_with_a_margin_looks_at_the_gap() -> None:
    delta_B, weight_B, gap_B = double([7.0] * 4), torch.ones(4, dtype=torch.float64), double(GAP)
    for loss in FAMILY[:-1]:
        nothing = gap_B * math.nan
        assert torch.equal(weighted_dpo_loss(delta_B, weight_B, loss, nothing), loss.pairwise(delta_B))
    margin_B = SelfRewardLoss(share=0.5, clip=10.0).margin(gap_B)
    assert margin_B.tolist() == [5.0, 5.0, -1.5, 0.0]  # half of 10, of 10, of -3 and of 0


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
@pytest.mark.parametrize("kind", [SigmoidLoss, IPOLoss, HingeLoss, SelfRewardLoss])
def test_beta_must_be_positive(kind: Any, beta: float) -> None:
    with pytest.raises(ValueError, match=rf"loss\.beta={beta} turns preference into nothing; choose beta > 0"):
        kind(beta=beta)


@pytest.mark.parametrize("share", [-0.1, 0.6, math.nan])
def test_label_smoothing_is_at_most_half(share: float) -> None:
    with pytest.raises(
        ValueError, match=rf"loss\.label_smoothing={share} is no share of flipped labels in \[0, 0\.5\]"
    ):
        SigmoidLoss(label_smoothing=share)


@pytest.mark.parametrize("name", ["share", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_margin_of_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}={value} leaves no margin; choose loss\.{name} > 0, or loss="):
        SelfRewardLoss(**{name: value})
