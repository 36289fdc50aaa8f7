"""What every loss of the menu keeps, whatever its formula; a new file in conf/loss is tested here at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from choosy.methods.loss_inputs import Degrees, Facts, Loss, LossInputs, Partners, TokenLogps, form_of
from choosy.methods.sorted_losses import AOTUnpairedLoss

MENU = sorted((Path(__file__).resolve().parents[2] / "conf" / "loss").glob("*.yaml"))
SIZES = {"pair": [2, 2, 2], "list": [3, 1, 2], "single": [1] * 6}
LENGTH_R = torch.tensor([2, 1, 4, 3, 1, 5])
LOGP_R, REF_R = [-2.0, -1.5, -3.0, -7.0, -0.5, -6.0], [-3.0, -1.0, -4.0, -6.0, -2.0, -3.5]
REWARD_R = torch.tensor([3.0, 1.0, -0.5, 2.0, 1.5, 1.0], dtype=torch.float64)  # of pairs 2, -2.5 and 0.5
PARTNERS = Partners(*torch.tensor([[-2.0, 1.5, 0.5], [-1.0, 0.5, 2.0], [1.0, 2.5, -0.5]], dtype=torch.float64))
COLLISION_R = torch.tensor([-0.5, -1.0, -2.0, -1.5, -0.25, -3.0], dtype=torch.float64)
OWN_ITEM_K = torch.tensor([0, 1, 1])
OWN_REF_K = torch.tensor([-4.0, -5.0, -6.0], dtype=torch.float64)
OWN_SAMPLED_K = torch.tensor([-2.5, -2.0, -3.0], dtype=torch.float64)

# The loss of the first pair, or of the first response, where the policy is its reference; by hand
MEAN, OTHER = LOGP_R[0] / 2, LOGP_R[1] / 1  # mean log-probs of the first pair's tokens
AT_REFERENCE = {
    **dict.fromkeys(
        ("sigmoid", "ld_dpo", "f_dpo", "sigmoid_averaged", "robust", "dpop", "bco", "aot", "aot_unpaired", "bmc"),
        math.log(2),
    ),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
    **dict.fromkeys(("ipo", "ipo_averaged"), 25.0),  # (1 / 0.2)^2
    "sppo": 2 * 500.0**2,
    "exo": -math.log(2) - (math.log(0.999) + math.log(0.001)) / 2,
    "nca": 2 * math.log(2),
    "discopop": (math.log(2) + 1) / 2,
    "kto": 0.5,
    "dlma": math.log1p(math.exp(0.1 * 0.2 * 2)),
    "rpo": math.log(2) - MEAN,
    "sft": -MEAN,
    "simpo": math.log1p(math.exp(1 - 2 * (MEAN - OTHER))),
    "cpo": math.log1p(math.exp(-0.1 * (LOGP_R[0] - LOGP_R[1]))) - MEAN,
    "orpo": 0.1 * math.log1p(math.exp(OTHER - MEAN) * (1 - math.exp(MEAN)) / (1 - math.exp(OTHER))) - MEAN,
    "wpo": math.log(2) * math.exp(MEAN + 0.5 / 2 + OTHER + 1.0 / 1),
    "selm": math.log(2),
    "hypo": math.log(2),
    "spo": math.log(2) + 0.1 * math.log(4),  # the head knows nothing yet
    "xpo": math.log(2) + 5e-6 * LOGP_R[0],  # one own sample
    "ada_dpo": 0.1 * 0.1,  # tau (log 2 + rho - log 2) at the lowest tau
    "pro": math.log(1 + math.exp(OTHER * 2 - MEAN * 3.5) + math.exp(-0.75 * 3.5 - MEAN * 3.5))
    + math.log1p(math.exp(-0.75 * 1.5 - OTHER * 1.5))
    + 0.05 * 4 * 2.0,
}


@pytest.fixture(params=MENU, ids=lambda path: path.stem)
def menu(request: pytest.FixtureRequest) -> tuple[str, Loss]:
    return request.param.stem, instantiate(OmegaConf.load(request.param), _convert_="object")


@pytest.fixture
def loss(menu: tuple[str, Loss]) -> Loss:
    return menu[1]


def inputs(loss: Loss, logp_R: Tensor, ref_R: Tensor | None = None, **more: Any) -> LossInputs:
    """Six responses in the items that the loss takes; a response's tokens share its log-prob evenly."""
    ref_R = torch.tensor(REF_R, dtype=logp_R.dtype) if ref_R is None else ref_R
    length_R = more.pop("length_R", LENGTH_R)
    response_T = torch.repeat_interleave(length_R)
    logp_T, ref_T = ((of_R / length_R)[response_T] for of_R in (logp_R, ref_R))
    given: dict[str, Any] = {
        "good_R": torch.tensor([True, False] * 3) if form_of(loss.needs) == "single" else None,
        "own": (logp_R[:3], OWN_REF_K.to(logp_R.dtype), OWN_ITEM_K, OWN_SAMPLED_K.to(logp_R.dtype)),
        "facts": Facts(kl=0.3, reward=0.2, steps=1, partners=PARTNERS),
        "reward_R": REWARD_R,
        "collision_R": COLLISION_R.to(logp_R.dtype),
        "degrees": Degrees(logp_R.new_zeros(2, 4), torch.tensor([0, 3]), torch.tensor([0, 0])),
        "tokens": TokenLogps(logp_T, ref_T, torch.arange(len(response_T)), response_T),
    }
    sizes = SIZES[form_of(loss.needs)]
    return LossInputs(logp_R, ref_R, sizes=sizes, length_R=length_R, **{**given, **more})


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_policy_that_is_its_reference_has_the_loss_worked_by_hand(menu: tuple[str, Loss]) -> None:
    name, loss = menu
    same_R = double(LOGP_R)
    s = inputs(loss, same_R, same_R, facts=Facts(), own=(same_R[:3], same_R[:3], OWN_ITEM_K, OWN_SAMPLED_K))
    assert loss.items(s)[0].item() == pytest.approx(AT_REFERENCE[name])


def test_gradients_are_those_of_the_formula(menu: tuple[str, Loss]) -> None:
    name, loss = menu
    if name == "aot_unpaired":
        return  # an item has half of a comparison's value, and half of the gradient is its partner's: see below
    aligned = {"wpo": lambda s: ((s.logp_R.detach() - s.collision_R) / s.length_R).view(-1, 2).sum(1).exp()}
    weight = aligned.get(name, lambda s: 1.0)
    # differences do not see what the policy samples: test_reverse_kl.py compares that term with the true divergence
    own = {"own": None} if name == "hypo" else {}

    def values(logp_R: Tensor) -> Tensor:  # a detached weight is divided out: differences would see it move
        s = inputs(loss, logp_R, **own)
        return loss.items(s) / weight(s)

    logp_R = double(LOGP_R).requires_grad_()
    assert values(logp_R).shape == (len(SIZES[form_of(loss.needs)]),)
    assert torch.autograd.gradcheck(values, (logp_R,))


def test_the_gradient_of_a_step_of_aot_unpaired_is_that_of_the_sorted_log_ratios() -> None:
    logp_R, ref_R = double(LOGP_R).requires_grad_(), double(REF_R)
    chosen_3, rejected_3 = ((logp_R - ref_R)[first::2].sort().values for first in (0, 1))
    sorted_3 = -torch.nn.functional.logsigmoid(0.1 * (chosen_3 - rejected_3))
    items_3 = AOTUnpairedLoss(beta=0.1).items(LossInputs(logp_R, ref_R, sizes=[2, 2, 2]))
    assert items_3.sum().item() == pytest.approx(sorted_3.sum().item())
    assert items_3.tolist() != pytest.approx(sorted_3.tolist()), "no order is that of the pairs"
    ours_R, theirs_R = (torch.autograd.grad(x_3.sum(), logp_R)[0] for x_3 in (items_3, sorted_3))
    torch.testing.assert_close(ours_R, theirs_R)


def test_each_item_is_its_own(loss: Loss) -> None:
    """The last item moves no other's loss."""
    moved = [*LOGP_R[:5], -9.0]
    assert torch.equal(loss.items(inputs(loss, double(LOGP_R)))[:-1], loss.items(inputs(loss, double(moved)))[:-1])


def test_a_swapped_item_mirrors_its_rewards_and_costs_more(loss: Loss) -> None:
    """The log-ratios of the first pair are 3 and -3: it is ranked right, and wrong once it is swapped."""
    if form_of(loss.needs) == "list":
        return  # its order is that of the rewards
    logp_R, ref_R = [-1.0, -4.0, *LOGP_R[2:]], [-4.0, -1.0, *REF_R[2:]]
    same = {"reward_R": torch.zeros(6), "length_R": torch.full((6,), 2)}
    if form_of(loss.needs) == "single":
        s = inputs(loss, double(logp_R), double(ref_R))
        swapped = inputs(loss, double(logp_R), double(ref_R), good_R=torch.tensor([False, True] * 3))
        mirrored_R = loss.rewards(swapped)
    else:
        order = [1, 0, 3, 2, 5, 4]
        s = inputs(loss, double(logp_R), double(ref_R), **same)
        swapped = inputs(loss, double(logp_R)[order], double(ref_R)[order], **same)
        mirrored_R = loss.rewards(swapped)[order]
    assert torch.equal(mirrored_R, loss.rewards(s))
    assert loss.items(swapped)[0] > loss.items(s)[0]


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_log_probs_stay_finite_and_weight_0_gives_gradient_0(
    loss: Loss, dtype: torch.dtype, scale: float
) -> None:
    logp_R = (scale * torch.tensor([-0.1, -0.2, -50, -5, -1, -100])).to(dtype).requires_grad_()
    ref_R = (scale * torch.tensor([-3.0, -4.0, -0.2, -60, -1, -0.01])).to(dtype)
    values = loss.items(inputs(loss, logp_R, ref_R))
    assert values.isfinite().all()
    (plain,) = torch.autograd.grad(values.sum(), logp_R, retain_graph=True)
    assert plain.isfinite().all()
    (weighted,) = torch.autograd.grad((0 * values).sum(), logp_R)
    assert weighted.tolist() == [0.0] * 6


def test_a_loss_looks_at_reference_and_rewards_only_if_it_says_so(loss: Loss) -> None:
    nan_R = torch.full((6,), math.nan, dtype=torch.float64)
    without_ref = inputs(loss, double(LOGP_R), nan_R, facts=Facts())
    assert bool(loss.items(without_ref).isfinite().all()) == ("reference" not in loss.needs)
    assert bool(loss.rewards(without_ref).isfinite().all()) == ("reference" not in loss.needs)
    without_rewards = inputs(loss, double(LOGP_R), reward_R=nan_R)
    assert bool(loss.items(without_rewards).isfinite().all()) == ("reward" not in loss.needs)
