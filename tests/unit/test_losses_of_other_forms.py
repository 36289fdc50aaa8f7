"""Losses without a reference, of lists, of single responses, and composed ones: worked by hand, and TRL's numbers.

TRL's numbers are what `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss` and `CPOTrainer.cpo_loss` of TRL 1.16.0
return in float64 for these log-probs, one item at a time, with a model that returns them and the reference's given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from choosy.methods.adaptive_scale import AdaDPOLoss
from choosy.methods.composed_losses import (
    DifferenceWeighted,
    LengthDesensitized,
    LikelihoodWeightedLoss,
    LossSum,
    ScoredLoss,
    TokenWeightedLoss,
)
from choosy.methods.loss_inputs import Facts, Loss, LossInputs, TokenLogps, form_of
from choosy.methods.losses import BCOLoss, KTOLoss, PROLoss, SFTLoss, SigmoidLoss, SimPOLoss
from choosy.methods.pair_losses import PairLoss
from choosy.methods.sorted_losses import AOTLoss

# Log-probs of the tokens of two pairs, and of the same tokens under the reference.
CHOSEN = [[-0.5, -1.25, -2.0], [-0.75, -0.5]]
REJECTED = [[-1.5, -0.25], [-1.0, -2.5, -0.125, -0.75]]
CHOSEN_REF = [[-0.75, -1.0, -2.5], [-1.0, -1.0]]
REJECTED_REF = [[-1.25, -0.5], [-1.5, -1.0, -0.5, -0.25]]

CONF = Path(__file__).resolve().parents[2] / "conf" / "loss"


def double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of_menu(name: str) -> Loss:
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="object")  # type: ignore[no-any-return]


def of_tokens(responses: list[list[float]], refs: list[list[float]], sizes: list[int], **more: Any) -> LossInputs:
    """Inputs from the log-probs of every token of every response."""
    tokens = TokenLogps(
        double([logp for of_response in responses for logp in of_response]),
        double([logp for of_response in refs for logp in of_response]),
        torch.arange(sum(map(len, responses))),
        torch.repeat_interleave(torch.tensor([*map(len, responses)])),
    )
    logp_R, ref_R = (double([*map(sum, of)]) for of in (responses, refs))
    length_R = torch.tensor([*map(len, responses)])
    return LossInputs(logp_R, ref_R, sizes=sizes, length_R=length_R, tokens=tokens, **more)


def trl_pairs() -> LossInputs:
    responses, refs = ([x for pair in zip(*of, strict=True) for x in pair] for of in (PAIR, PAIR_REF))
    return of_tokens(responses, refs, [2, 2])


PAIR, PAIR_REF = (CHOSEN, REJECTED), (CHOSEN_REF, REJECTED_REF)


# -- TRL's numbers -------------------------------------------------------------------------------------------


SUM = {"sigmoid": SigmoidLoss(), "sft": SFTLoss()}
TRL = [
    (SigmoidLoss(), [0.6684596480132863, 0.6037852895555947]),
    (PairLoss("hinge"), [0.95, 0.8125]),
    (ScoredLoss(PairLoss("ipo"), average=True), [23.361111111111107, 18.8681640625]),
    (ScoredLoss(SigmoidLoss(beta=2.0), average=True), [0.5403055746894084, 0.23834450811044117]),
    (PairLoss("robust", label_smoothing=0.1), [0.6622096480132862, 0.5803477895555946]),
    (PairLoss("exo", label_smoothing=0.001), [2.675226705379445, 2.4427970925507965]),
    (PairLoss("nca"), [1.3742630622999021, 1.341264400359641]),
    (PairLoss("sppo"), [45.25, 33.078125]),
    (PairLoss("apo_zero"), [0.9875026035157897, 0.9531634097130777]),
    (PairLoss("apo_down"), [1.0, 0.9720030638939213]),
    (PairLoss("discopop", beta=0.05), [0.8640922419165428, 0.8755221578488466]),
    (ScoredLoss(SigmoidLoss(), divergence="forward_kl"), [0.6736672237153757, 0.5712317887803589]),
    (ScoredLoss(SigmoidLoss(), divergence="js"), [0.6822536592300815, 0.6434813246990446]),
    (ScoredLoss(SigmoidLoss(), divergence="alpha"), [0.6712718605995178, 0.5920604467391968]),
    (LikelihoodWeightedLoss(SigmoidLoss(), aligned=False), [0.07983611992875338, 0.10825273735081087]),
    (SFTLoss(), [1.25, 0.625]),
    (LossSum(SUM, {"sigmoid": 1.0, "sft": 0.5}), [1.2934596480132863, 0.9162852895555947]),
    (TokenWeightedLoss(SigmoidLoss(), LengthDesensitized(alpha=0.3)), [0.6856753052962774, 0.607760819971521]),
    (SimPOLoss(beta=2.0, gamma=1.0), [1.9102241504380872, 0.7248853823577756]),
    (SimPOLoss(beta=0.5, gamma=0.3), [0.9663146208427502, 0.7264979140660384]),
    (of_menu("cpo"), [2.048138869381592, 1.1740548622706681]),
    (of_menu("orpo"), [1.3522539138793945, 0.6612769365310669]),
]


@pytest.mark.parametrize(("loss", "expected"), TRL, ids=lambda x: type(x).__name__)
def test_losses_of_pairs_give_trl_s_numbers(loss: Loss, expected: list[float]) -> None:
    assert loss.items(trl_pairs()).tolist() == pytest.approx(expected, rel=2e-7)  # exo, alpha, orpo are in fp32 there


def test_simpo_s_rewards_are_trl_s() -> None:
    assert SimPOLoss(beta=2.0).rewards(trl_pairs()).tolist() == pytest.approx([-2.5, -1.75, -1.25, -2.1875])


@pytest.mark.parametrize(
    ("loss", "kl", "expected"),
    [
        (
            KTOLoss(good_weight=1.5, bad_weight=0.8),
            0.6,
            [0.7537499687503124, 0.38800359870447204, 0.7443751054663771, 0.3655852954205521],
        ),
        (
            KTOLoss(good_weight=1.5, bad_weight=0.8),
            -0.4,
            [0.7312539052736845, 0.4, 0.7218881761821972, 0.37752370047329037],
        ),
        (
            KTOLoss(reference_point="zero"),
            0.6,
            [0.48750260351578967, 0.5, 0.48125878412146483, 0.4719046255916129],
        ),
    ],
)
def test_kto_gives_trl_s_numbers(loss: Loss, kl: float, expected: list[float]) -> None:
    """Chosen responses are good, rejected ones bad; an estimate of the KL divergence below 0 counts as 0."""
    responses, refs = ([x for pair in zip(*of, strict=True) for x in pair] for of in (PAIR, PAIR_REF))
    s = of_tokens(responses, refs, [1] * 4, good_R=torch.tensor([True, False] * 2), facts=Facts(kl=kl))
    assert loss.items(s).tolist() == pytest.approx(expected, rel=1e-12)


def test_bco_gives_trl_s_numbers() -> None:
    """A good and a bad response added up are TRL's bco_pair, whose newer releases have no shift."""
    responses, refs = ([x for pair in zip(*of, strict=True) for x in pair] for of in (PAIR, PAIR_REF))
    s = of_tokens(responses, refs, [1] * 4, good_R=torch.tensor([True, False] * 2), facts=Facts(reward=9.0))
    expected = [1.3616068285732315, 1.294828519065692]
    assert BCOLoss(shift="zero").items(s).view(2, 2).sum(1).tolist() == pytest.approx(expected, rel=1e-12)


# -- worked by hand ------------------------------------------------------------------------------------------


def pro_by_hand(s: Sequence[float], r: Sequence[float], sft: float) -> float:
    """L_k one by one, as the definition reads."""
    total = 0.0
    for k in range(len(s) - 1):
        scale = [r[k] - r[i] for i in range(k + 1, len(s))]
        own = math.exp(s[k] * max(scale))
        total += -math.log(own / (own + sum(math.exp(x * t) for x, t in zip(s[k + 1 :], scale, strict=True))))
    return total + sft


def test_pro_s_golden_values() -> None:
    """L_1 = -log(e^-2.5 / (e^-2.5 + e^-1.2 + e^-3.75)) = 1.600559, L_2 = -log(e^-1.8 / (e^-1.8 + e^-2.25))."""
    s = LossInputs(double([-1.0, -1.2, -1.5]), sizes=[3], reward_R=double([2.0, 1.0, -0.5]))
    assert PROLoss(sft_share=0.0).items(s).item() == pytest.approx(2.093808, abs=1e-6)
    assert pro_by_hand([-1.0, -1.2, -1.5], [2.0, 1.0, -0.5], 0.0) == pytest.approx(1.600559 + 0.493249, abs=2e-6)


def test_pro_takes_lists_of_any_length_side_by_side() -> None:
    """Mean log-probs rank, the sum over tokens is learned: 0.1 * (n - 1)^2 * -log pi(best)."""
    length_R = torch.tensor([2, 1, 4, 3, 1, 5])
    logp_R, reward_R = double([-2.0, -1.2, -6.0, -1.5, -0.5, -9.0]), double([2.0, 1.0, -0.5, 0.5, 0.5, -3.0])
    s = LossInputs(logp_R, sizes=[3, 1, 2], length_R=length_R, reward_R=reward_R)
    expected = [
        pro_by_hand([-1.0, -1.2, -1.5], [2.0, 1.0, -0.5], 0.1 * 4 * 2.0),
        0.0,
        pro_by_hand([-0.5, -1.8], [0.5, -3.0], 0.1 * 0.5),
    ]
    assert PROLoss(sft_share=0.1).items(s).tolist() == pytest.approx(expected)


def test_equal_rewards_of_a_list_teach_nothing() -> None:
    logp_R = double([-1.0, -2.0, -3.0]).requires_grad_()
    values = PROLoss(sft_share=0.0).items(LossInputs(logp_R, sizes=[3], reward_R=double([1.0, 1.0, 1.0])))
    assert values.item() == pytest.approx(math.log(3) + math.log(2))
    values.sum().backward()
    assert logp_R.grad is not None
    assert logp_R.grad.tolist() == [0.0, 0.0, 0.0]


def test_pro_of_large_rewards_stays_finite() -> None:
    logp_R = torch.tensor([-300.0, -2.0, -900.0]).requires_grad_()
    values = PROLoss().items(LossInputs(logp_R, sizes=[3], reward_R=torch.tensor([1e6, 10.0, -1e6])))
    values.sum().backward()
    assert values.isfinite().all()
    assert logp_R.grad is not None
    assert logp_R.grad.isfinite().all()


def test_sft_learns_the_best_response_and_no_bad_one() -> None:
    s = LossInputs(double([-4.0, -1.0, -3.0]), sizes=[2, 1], length_R=torch.tensor([2, 1, 3]))
    assert SFTLoss().items(s).tolist() == [2.0, 1.0]
    bad = LossInputs(double([-4.0, -6.0]), sizes=[1, 1], good_R=torch.tensor([True, False]))
    assert SFTLoss().items(bad).tolist() == [4.0, 0.0]


def test_a_policy_that_is_its_reference_costs_kto_one_half() -> None:
    same = LossInputs(double([-4.0, -6.0]), double([-4.0, -6.0]), sizes=[1, 1], good_R=torch.tensor([True, False]))
    assert KTOLoss().items(same).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, -5.0), (0.5, -4.0), (0.0, -3.0)])
def test_surplus_tokens_weigh_alpha_under_both_models(alpha: float, expected: float) -> None:
    """Three tokens against two: -1, -2 and a third of -2 beyond the shorter response's length."""
    s = of_tokens([[-1.0, -2.0, -2.0], [-1.0, -1.0]], [[-1.0, -1.0, -8.0], [-3.0, -3.0]], [2])
    weighted = s.weighted(LengthDesensitized(alpha))
    assert weighted.logp_R.tolist() == [expected, -2.0]
    assert weighted.ref_R.tolist() == [-2.0 - 8.0 * alpha, -6.0]


def test_token_weights_leave_their_gradient_to_the_tokens() -> None:
    s = of_tokens([[-1.0, -2.0, -2.0], [-1.0, -1.0]], [[0.0] * 3, [0.0] * 2], [2])
    assert s.tokens is not None
    s.tokens.logp_T.requires_grad_()
    TokenWeightedLoss(PairLoss("hinge"), LengthDesensitized(0.5)).items(s).sum().backward()
    assert s.tokens.logp_T.grad is not None
    assert s.tokens.logp_T.grad.tolist() == pytest.approx([-0.1, -0.1, -0.05, 0.1, 0.1])


@pytest.mark.parametrize(
    ("name", "beta", "own", "own_ref", "expected"),
    [("selm", 0.01, -50.0, -51.7, 0.658777), ("xpo", 0.1, -50.0, -49.0, 0.402936)],
)
def test_golden_values_with_an_own_sample(name: str, beta: float, own: float, own_ref: float, expected: float) -> None:
    """delta 7: 0.658760 + 0.001 * 0.01 * 1.7; 0.403186 + 5e-6 * -50. A pair without a sample has no such term."""
    sample = double([own]), double([own_ref]), torch.tensor([0]), double([own])
    s = LossInputs(double([-40.0, -55.0] * 2), double([-42.0, -50.0] * 2), sizes=[2, 2], own=sample)
    found = of_menu(name).items(s).tolist()
    assert found == pytest.approx([expected, math.log1p(math.exp(-7 * beta))], abs=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_dpop_charges_a_chosen_response_that_became_less_likely(penalty: float) -> None:
    """Log-ratios 1 and -1, then -1 and -3: both differ by 2, and only the second chosen one lost 1."""
    s = LossInputs(double([1.0, -1.0, -1.0, -3.0]), double([0.0] * 4), sizes=[2, 2])
    found = PairLoss("dpop", beta=0.5, penalty=penalty).items(s).tolist()
    assert found == pytest.approx([math.log1p(math.exp(-0.5 * margin)) for margin in (2.0, 2.0 - penalty)])


def test_discopop_of_a_pair_ranked_far_wrong_is_finite_where_the_formula_is_not() -> None:
    """exp(1000) * sigmoid(-20000) is inf * 0 as it is written; in one exponential it is exp(-19000) = 0."""
    x = torch.tensor(-1000.0)
    assert (torch.exp(-x) * (x / 0.05).sigmoid()).isnan()
    s = LossInputs(torch.tensor([-20_000.0, 0.0]), torch.zeros(2), sizes=[2])
    assert PairLoss("discopop", beta=0.05).items(s).tolist() == [1000.0]


def newton(delta: float, slope: Any, curve: Any, lowest: float, highest: float) -> float:
    """The paper's solver, projected Newton steps from 1, here a tenth as long, since whole ones can swing for ever."""
    tau = 1.0
    for _ in range(1000):
        tau = min(max(tau - 0.1 * slope(delta, tau) / curve(delta, tau), lowest), highest)
    return tau


def log_odds_slope(z: float) -> float:
    """Minus the derivative of H(sigmoid(z)) in z."""
    return z / (2 + math.exp(z) + math.exp(-z))


def entropy(z: float) -> float:
    return math.log1p(math.exp(-abs(z))) + abs(z) / (1 + math.exp(abs(z)))


@pytest.mark.parametrize("rho", [0.05, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("penalty", ["linear", "quadratic"])
def test_ada_dpo_s_scale_is_where_newton_s_method_ends(penalty: Any, rho: float) -> None:
    """H(sigmoid(delta / tau)) + rho - log 2 = 0, or with 2 rho tau for rho, within the range of tau."""

    def slope(delta: float, tau: float) -> float:
        return entropy(delta / tau) - math.log(2) + (rho if penalty == "linear" else 2 * rho * tau)

    def curve(delta: float, tau: float) -> float:
        return log_odds_slope(delta / tau) * delta / tau**2 + (0 if penalty == "linear" else 2 * rho)

    loss = AdaDPOLoss(penalty=penalty, rho=rho)
    deltas = [0.2, 0.5, 1.0, 2.0]
    highest = 4.0 if penalty == "linear" else math.inf
    expected = [newton(delta, slope, curve, 0.1, highest) for delta in deltas]
    assert loss.scale(double(deltas)).tolist() == pytest.approx(expected, rel=1e-6)
    assert loss.scale(-double(deltas)).tolist() == pytest.approx(expected, rel=1e-6)


def test_ada_dpo_s_golden_values() -> None:
    s = LossInputs(double([0.5, 0.0, 5.0, 0.0, -1.0, 0.0]), double([0.0] * 6), sizes=[2, 2, 2])
    assert AdaDPOLoss().scale(s.delta_B).tolist() == pytest.approx([0.530, 4.0, 1.060], abs=5e-4)
    assert AdaDPOLoss().items(s).tolist() == pytest.approx([-0.140103, -1.364872, 0.719795], abs=1e-6)


def test_no_other_scale_costs_less() -> None:
    delta_B = double([-3.0, -0.2, 0.7, 6.0])
    s = LossInputs(torch.stack([delta_B, torch.zeros(4)], 1).flatten(), double([0.0] * 8), sizes=[2] * 4)
    for penalty, power in (("linear", 1), ("quadratic", 2)):
        loss = AdaDPOLoss(penalty=penalty, rho=0.2)  # type: ignore[arg-type]
        for tau in torch.linspace(0.1, 4.0, 40).tolist():
            cost_B = tau * torch.log1p(torch.exp(-delta_B / tau)) + 0.2 * tau**power - math.log(2) * tau
            assert (loss.items(s) <= cost_B + 1e-12).all()


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SimPOLoss(gamma=-1.0), r"loss\.gamma=-1\.0 is no margin; choose loss\.gamma >= 0"),
        (lambda: SimPOLoss(beta=0.0), r"loss\.beta=0\.0 turns preference into nothing"),
        (lambda: PROLoss(sft_share=-0.1), r"loss\.sft_share=-0\.1 is no share"),
        (lambda: KTOLoss(reference_point="ref"), r"loss\.reference_point=ref is none of own, zero"),  # type: ignore[arg-type]
        (lambda: KTOLoss(bad_weight=-1.0), r"loss\.bad_weight=-1\.0 would turn the labels round"),
        (lambda: LengthDesensitized(alpha=1.5), r"loss\.weighing\.alpha=1\.5 is no weight"),
        (
            lambda: ScoredLoss(AOTLoss(), average=True),
            r"loss\.loss \(AOTLoss\) orders pairs by their summed log-probs.*type loss=aot by itself",
        ),
        (lambda: ScoredLoss(SimPOLoss(), divergence="js"), r"loss\.loss \(SimPOLoss\) takes log-probs without a ref"),
        (
            lambda: ScoredLoss(LossSum({"a": SigmoidLoss(), "b": SFTLoss()}, {"a": 1.0, "b": 1.0})),
            r"loss\.loss \(SFTLoss\) takes log-probs without a reference",
        ),
        (lambda: ScoredLoss(LikelihoodWeightedLoss(SigmoidLoss())), r"weighs pairs by their likelihood.*type loss=wpo"),
        (lambda: LikelihoodWeightedLoss(KTOLoss()), r"loss=wpo weighs pairs, and loss\.loss \(KTOLoss\) takes none"),
        (lambda: ScoredLoss(SigmoidLoss(), divergence="kl"), r"loss\.divergence=kl is none of reverse_kl, forward_kl"),  # type: ignore[arg-type]
        (
            lambda: ScoredLoss(SigmoidLoss(), divergence="js", reference=False),
            r"loss\.divergence=js is one from the reference.*leaves out; type loss\.divergence=reverse_kl",
        ),
        (lambda: ScoredLoss(SigmoidLoss(), divergence="alpha", alpha=1.0), r"type loss\.divergence=reverse_kl"),
        (lambda: PairLoss("dpo"), r"loss\.formula=dpo is none of hinge, ipo, robust"),  # type: ignore[arg-type]
        (lambda: PairLoss("sppo", penalty=1.0), r"loss\.penalty=1\.0 has no meaning for sppo"),
        (lambda: PairLoss("exo", label_smoothing=0.0), r"loss\.label_smoothing=0\.0 is no share.*\(0, 0\.5\)"),
        (lambda: PairLoss("discopop", temperature=1.0), r"loss\.temperature=1\.0 lets the loss grow without end"),
        (lambda: PairLoss("dpop", penalty=-1.0), r"loss\.penalty=-1\.0 is no penalty"),
        (lambda: BCOLoss(shift="none"), r"loss\.shift=none is none of running, zero"),  # type: ignore[arg-type]
        (lambda: AdaDPOLoss(rho=0.7), r"loss\.rho=0\.7 leaves no choice of a scale; choose one in \(0, 0\.693\)"),
        (lambda: AdaDPOLoss(lowest=5.0), r"loss\.lowest=5\.0 loss\.highest=4\.0 is no range"),
        (lambda: LossSum({}, {}), r"loss\.parts has nothing"),
        (
            lambda: LossSum({"a": SFTLoss()}, {"b": 1.0}),
            r"loss\.parts has a and loss\.shares b; give each",
        ),
        (
            lambda: LossSum({"a": SigmoidLoss(), "b": KTOLoss()}, {"a": 1.0, "b": 1.0}),
            r"items of different forms \(pair, single\)",
        ),
    ],
)
def test_a_setting_without_a_meaning_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_sum_needs_what_its_parts_need() -> None:
    rpo = LossSum({"hinge": PairLoss("hinge", beta=0.3), "sft": SFTLoss()}, {"hinge": 1.0, "sft": 1.0})
    assert (rpo.needs, rpo.beta) == ({"pair", "reference"}, 0.3)
    assert form_of(LossSum({"pro": PROLoss(), "sft": SFTLoss()}, {"pro": 1.0, "sft": 1.0}).needs) == "list"


def test_rewards_of_weighted_tokens_are_of_plain_sums_where_tokens_are_not_known() -> None:
    s = LossInputs(double([-4.0, -6.0]), double([-5.0, -5.0]), sizes=[2])
    weighted = TokenWeightedLoss(SigmoidLoss(beta=0.1), LengthDesensitized(alpha=0.5))
    assert weighted.rewards(s).tolist() == SigmoidLoss(beta=0.1).rewards(s).tolist() == [0.1, -0.1]


# -- BMC: tokens that differ ----------------------------------------------------------------------------------------


def of_ids(ids: Sequence[Sequence[int]], logps: Sequence[float], refs: Sequence[float]) -> LossInputs:
    """Pairs whose tokens have these log-probs, response after response."""
    response_T = torch.tensor([r for r, of_response in enumerate(ids) for _ in of_response])
    logp_T, ref_T = (torch.tensor(each, dtype=torch.float64) for each in (logps, refs))
    id_T = torch.tensor([token for of_response in ids for token in of_response])
    none_R = torch.zeros(len(ids), dtype=torch.float64)
    tokens = TokenLogps(logp_T, ref_T, id_T, response_T)
    return LossInputs(none_R, none_R, sizes=[2] * (len(ids) // 2), tokens=tokens)


def test_bmc_weighs_tokens_that_differ_by_the_policy_alone() -> None:
    """Weights 1 + min(1 / p, 1.5) at -2 and -0.5, and 1 + 1 / p at -0.1; the reference's sum has the same weights."""
    s = of_ids([[7, 8, 9], [7, 5]], [-0.1, -2.0, -0.5, -0.1, -0.1], [-1.0, -0.01, -0.01, -3.0, -0.5])
    last = 1 + math.exp(0.1)
    weighted = s.weighted(DifferenceWeighted(delta=1.5))
    assert weighted.logp_R.tolist() == pytest.approx([-6.35, -0.1 - 0.1 * last])
    assert weighted.ref_R.tolist() == pytest.approx([-1.0 - 2.5 * 0.02, -3.0 - 0.5 * last])


def test_bmc_is_dpo_where_nothing_differs_and_finds_a_change_in_a_long_response() -> None:
    same = of_ids([[1, 2], [1, 2]], [-1.0] * 4, [-2.0] * 4)
    assert DifferenceWeighted().token_weights(same.tokens.logp_T, same).tolist() == [1.0] * 4  # type: ignore[union-attr]
    long = [3, 4] * 150  # SequenceMatcher ignores tokens that are frequent in 200 or more, unless it is forbidden
    s = of_ids([[*long, 9], [*long, 8]], [-1.0] * 602, [-1.0] * 602)
    weights = DifferenceWeighted(delta=2.0).token_weights(s.tokens.logp_T, s)  # type: ignore[union-attr]
    assert [n for n, weight in enumerate(weights.tolist()) if weight != 1] == [300, 601]


def test_bmc_takes_losses_of_pairs_only() -> None:
    with pytest.raises(ValueError, match=r"a pair, which loss\.loss \(KTOLoss\) does not take"):
        TokenWeightedLoss(KTOLoss(), DifferenceWeighted())
    with pytest.raises(ValueError, match=r"loss\.weighing\.delta=0 weighs all tokens alike"):
        DifferenceWeighted(delta=0)
