"""The losses: hand-derived numbers, the numbers of other implementations, gradients, extremes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from choosy.methods.loss_inputs import Loss, LossInputs
from choosy.methods.losses import SelfRewardLoss, SigmoidLoss
from choosy.methods.pair_losses import PairLoss
from choosy.methods.weighting import RewardGap

# Log-probs of four pairs for which LLaMA-Factory's tests and TRL's formulas give known losses.
CHOSEN, REJECTED = [-3.0, -2.5, -4.0, -1.5], [-5.0, -3.5, -6.0, -2.5]
CHOSEN_REF, REJECTED_REF = [-2.8, -2.3, -3.8, -1.4], [-3.2, -2.7, -4.2, -1.8]
IPOLoss, HingeLoss = (partial(PairLoss, formula) for formula in ("ipo", "hinge"))
FAMILY = [SigmoidLoss(), SigmoidLoss(label_smoothing=0.1), IPOLoss(), HingeLoss(), SelfRewardLoss()]
GAP = [25.0, 100.0, -3.0, 0.0]  # of the rewards


def double(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    chosen_ref_B: torch.Tensor,
    rejected_ref_B: torch.Tensor,
    gap_B: torch.Tensor | None,
) -> LossInputs:
    return LossInputs(
        torch.stack([chosen_B, rejected_B], 1).flatten(),
        torch.stack([chosen_ref_B, rejected_ref_B], 1).flatten(),
        sizes=[2] * len(chosen_B),
        reward_R=None if gap_B is None else torch.stack([gap_B.detach(), torch.zeros_like(gap_B)], 1).flatten(),
    )


def pairs(*logps: list[float], gap: list[float] | None = None) -> LossInputs:
    """Pairs from log-probs of chosen and rejected under the policy, then under the reference."""
    return inputs(*map(double, logps), gap_B=double(gap) if gap else None)


def pairs_of(delta_B: torch.Tensor, gap_B: torch.Tensor | None = None) -> LossInputs:
    """Pairs with these differences of log-ratios: chosen moved by delta, rejected at its reference."""
    zero_B = torch.zeros_like(delta_B)
    return inputs(delta_B, zero_B, zero_B, zero_B, gap_B=zero_B if gap_B is None else gap_B)


@pytest.fixture(params=FAMILY, ids=repr)
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


# -- the same digits as the closed forms on delta ------------------------------------------------------------


def sigmoid(delta: torch.Tensor, gap: torch.Tensor, beta: float) -> torch.Tensor:
    return (1 - 0.0) * -F.logsigmoid(beta * delta) + 0.0 * -F.logsigmoid(-beta * delta)


def smoothed(delta: torch.Tensor, gap: torch.Tensor, beta: float) -> torch.Tensor:
    return (1 - 0.1) * -F.logsigmoid(beta * delta) + 0.1 * -F.logsigmoid(-beta * delta)


def ipo(delta: torch.Tensor, gap: torch.Tensor, beta: float) -> torch.Tensor:
    return (delta - 1 / (2 * beta)) ** 2


def hinge(delta: torch.Tensor, gap: torch.Tensor, beta: float) -> torch.Tensor:
    return F.relu(1 - beta * delta)


def dlma(delta: torch.Tensor, gap: torch.Tensor, beta: float) -> torch.Tensor:
    return -F.logsigmoid(beta * (delta - 0.2 * gap.clamp(-40.0, 40.0)))


CLOSED = [
    (SigmoidLoss, {}, sigmoid),
    (SigmoidLoss, {"label_smoothing": 0.1}, smoothed),
    (IPOLoss, {}, ipo),
    (HingeLoss, {}, hinge),
    (SelfRewardLoss, {}, dlma),
]


@pytest.mark.parametrize("beta", [0.1, 0.37, 2.0])
@pytest.mark.parametrize(("kind", "settings", "closed"), CLOSED, ids=lambda x: getattr(x, "__name__", ""))
def test_every_bit_is_that_of_the_closed_form(kind: Any, settings: dict[str, float], closed: Any, beta: float) -> None:
    """Value and gradient of 512 random pairs in fp32, as the loss took them from the difference of log-ratios."""
    random = torch.Generator().manual_seed(0)
    logp_B4 = -200 * torch.rand(512, 4, generator=random)
    rewards_B2 = torch.randn(512, 2, generator=random, dtype=torch.float64) * 30
    weight_B = torch.rand(512, generator=random)
    gap_B = torch.tensor([chosen - rejected for chosen, rejected in rewards_B2.tolist()])
    found, expected = logp_B4[:, :2].clone().requires_grad_(), logp_B4[:, :2].clone().requires_grad_()
    delta_B = (expected[:, 0] - logp_B4[:, 2]) - (expected[:, 1] - logp_B4[:, 3])
    wanted_B = weight_B * closed(delta_B, gap_B, beta)
    s = LossInputs(found.flatten(), logp_B4[:, 2:].flatten(), sizes=[2] * 512, reward_R=rewards_B2.flatten())
    loss = kind(beta=beta, **settings)
    given_B = weight_B * loss.items(s)
    assert torch.equal(given_B, wanted_B)
    given_B.sum().backward()
    wanted_B.sum().backward()
    assert torch.equal(found.grad, expected.grad)
    assert torch.equal(loss.rewards(s).view(-1, 2), beta * (logp_B4[:, :2] - logp_B4[:, 2:]))


# -- numbers -------------------------------------------------------------------------------------------------


def test_golden_values() -> None:
    """delta = (-40 + 42) - (-55 + 50) = 7; -log sigmoid(0.7) = log(1 + e^-0.7) = 0.403186."""
    s = pairs([-40.0], [-55.0], [-42.0], [-50.0])
    assert s.delta_B.tolist() == [7.0]
    assert SigmoidLoss(beta=0.1).items(s).item() == pytest.approx(0.403186, abs=1e-6)
    assert IPOLoss(beta=0.1).items(s).item() == pytest.approx(4.0)  # (7 - 1 / 0.2)^2
    assert HingeLoss(beta=0.1).items(s).item() == pytest.approx(0.3)  # 1 - 0.7


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SigmoidLoss(beta=0.1), [0.61634377, 0.66359711]),
        (SigmoidLoss(beta=0.1, label_smoothing=0.1), [0.63234377, 0.66959711]),
        (HingeLoss(beta=0.1), [0.84, 0.94]),
        (IPOLoss(beta=0.1), [11.56, 19.36]),
    ],
)
def test_other_implementations_give_the_same(loss: Loss, expected: list[float]) -> None:
    """delta = 1.6 0.6 1.6 0.6."""
    s = pairs(CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF)
    assert s.delta_B.tolist() == pytest.approx([1.6, 0.6, 1.6, 0.6])
    assert loss.items(s).tolist() == pytest.approx(expected * 2, abs=1e-8)


@pytest.mark.parametrize("beta2", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("form", ["sigmoid", "linear"])
def test_wdpo_golden_values(form: Any, beta2: float) -> None:
    """Gap 1.25, delta 7: sigmoid(1.25) 0.403186 = 0.777300 * 0.403186 = 0.313396; linear 1.25 * 0.403186."""
    golden = {
        "sigmoid": {0.5: 0.262617, 1.0: 0.313396, 2.0: 0.372601},
        "linear": {0.5: 0.251991, 1.0: 0.503983, 2.0: 1.007965},
    }
    weight_B = RewardGap(form=form, beta2=beta2).weigh(double([1.25]), double([math.nan]))
    value = (weight_B * SigmoidLoss(beta=0.1).items(pairs_of(double([7.0])))).item()
    assert value == pytest.approx(golden[form][beta2], abs=1e-6)


@pytest.mark.parametrize(
    ("gap", "expected"), [(25.0, 0.598139), (100.0, 0.744397), (-100.0, 0.201413), (0.0, 0.403186)]
)
def test_dlma_golden_values(gap: float, expected: float) -> None:
    """delta 7, share 0.2, clip 40: -log sigmoid(0.1 (7 - 5)), then (7 - 8), (7 + 8) and (7 - 0) for 7 - 5."""
    value = SelfRewardLoss(beta=0.1).items(pairs_of(double([7.0]), double([gap]))).item()
    assert value == pytest.approx(expected, abs=1e-6)


# -- what every loss of pairs with a reference keeps -----------------------------------------------------------


def test_swapping_chosen_and_rejected_flips_delta(loss: Loss) -> None:
    s = pairs(CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF, gap=[0.0] * 4)
    swapped = pairs(REJECTED, CHOSEN, REJECTED_REF, CHOSEN_REF, gap=[0.0] * 4)
    assert torch.equal(swapped.delta_B, -s.delta_B)
    assert (loss.items(swapped) > loss.items(s)).all(), "every pair here prefers its chosen response"


def test_half_the_labels_flipped_says_nothing() -> None:
    delta_B = torch.linspace(-50, 50, 11)
    loss = SigmoidLoss(label_smoothing=0.5)
    torch.testing.assert_close(loss.items(pairs_of(delta_B)), loss.items(pairs_of(-delta_B)))


def test_neither_reward_nor_reference_gets_a_gradient(loss: Loss) -> None:
    logp_R, ref_R, reward_R = (torch.tensor([1.6, 0.6, -1.0, 2.0]).requires_grad_() for _ in range(3))
    s = LossInputs(logp_R, ref_R.detach(), sizes=[2, 2], reward_R=reward_R.detach())
    loss.items(s).sum().backward()
    assert logp_R.grad is not None
    assert not loss.rewards(s).requires_grad


def test_a_margin_is_the_clamped_gap_times_its_share() -> None:
    """Half of 10, of 10, of -3 and of 0: the loss is that of the sigmoid at 7 less these."""
    margin_B = double([5.0, 5.0, -1.5, 0.0])
    found = SelfRewardLoss(share=0.5, clip=10.0).items(pairs_of(double([7.0] * 4), double(GAP)))
    torch.testing.assert_close(found, SigmoidLoss().items(pairs_of(7 - margin_B)))


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
