"""The reward head recovers linear rewards, knows how sure it is, and its leave-one-out figures are the true ones."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.d_optimal import DOptimal
from callbacks.predicted_gap import PredictedGap
from callbacks.spread import Spread
from choosy.methods.predicted import d_optimal, explored, predicted_gain, predicted_gap
from choosy.methods.reward_head import STRENGTHS, TUNED_ON, RewardHead, fit_scores, fit_verdicts, left_out_gaps
from choosy.methods.selection import pair_positions


def toy(n: int, width: int, *, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (N, D), their noisy linear scores (N,), and the weights (D,)."""
    generator = torch.Generator().manual_seed(seed)
    embed_ND, weight_D, noise_N = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((n, width), (width,), (n,))
    )
    return embed_ND, embed_ND @ weight_D + 3 + noise * noise_N, weight_D


def verdicts(embed_ND: Tensor, reward_N: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Chosen and rejected embeddings of consecutive rows, drawn by Bradley-Terry."""
    generator = torch.Generator().manual_seed(seed)
    gap_M = reward_N[::2] - reward_N[1::2]
    first_M1 = (torch.rand(len(gap_M), generator=generator, dtype=torch.float64) < gap_M.sigmoid())[:, None]
    return embed_ND[::2].where(first_M1, embed_ND[1::2]), embed_ND[1::2].where(first_M1, embed_ND[::2])


def test_fit_scores_recovers_a_linear_reward_without_noise() -> None:
    embed_ND, score_N, _ = toy(50, 5)
    head = fit_scores(embed_ND, score_N, strengths=(1e-9,))
    torch.testing.assert_close(head.rewards(embed_ND), score_N, rtol=0, atol=1e-6)


def test_fit_scores_equals_ridge_regression_by_its_normal_equations() -> None:
    embed_ND, score_N, _ = toy(30, 8, noise=1.0)
    head = fit_scores(embed_ND, score_N, strengths=(2.0,))
    centred_ND, target_N = embed_ND - embed_ND.mean(0), score_N - score_N.mean()
    scale = centred_ND.square().sum(1).mean().sqrt()
    gram_DD = (centred_ND / scale).T @ (centred_ND / scale) + 2 * torch.eye(8, dtype=torch.float64)
    expected_D = torch.linalg.solve(gram_DD, (centred_ND / scale).T @ target_N)
    torch.testing.assert_close(head.weight_D, expected_D)
    variance = head.root_DD @ head.root_DD.T @ gram_DD  # covariance = error variance * inverse of this matrix
    torch.testing.assert_close(variance, variance[0, 0] * torch.eye(8, dtype=torch.float64))


def test_fit_scores_leave_one_out_is_that_of_n_separate_fits() -> None:
    embed_ND, score_N, _ = toy(12, 3, noise=1.0)
    scale, errors = fit_scores(embed_ND, score_N, strengths=(0.5,)).scale, []
    for out in range(12):
        rest = [n for n in range(12) if n != out]
        centre_D, offset = embed_ND[rest].mean(0), score_N[rest].mean()
        feature_ND = (embed_ND[rest] - centre_D) / scale
        gram_DD = feature_ND.T @ feature_ND + 0.5 * torch.eye(3, dtype=torch.float64)
        weight_D = torch.linalg.solve(gram_DD, feature_ND.T @ (score_N[rest] - offset))
        errors.append(score_N[out] - offset - (embed_ND[out] - centre_D) / scale @ weight_D)
    head = fit_scores(embed_ND, score_N, strengths=(0.5,))
    feature_ND = head.features(embed_ND)
    gram_DD = feature_ND.T @ feature_ND + 0.5 * torch.eye(3, dtype=torch.float64)
    variance_DD = head.root_DD @ head.root_DD.T @ gram_DD  # error variance * identity
    torch.testing.assert_close(variance_DD[0, 0], torch.stack(errors).square().mean())


def test_fit_scores_chooses_a_stronger_prior_where_there_is_more_noise() -> None:
    quiet, loud = (fit_scores(*toy(60, 40, noise=noise)[:2]) for noise in (0.01, 30.0))
    true_D = toy(60, 40)[2]
    assert torch.dist(quiet.weight_D / quiet.scale, true_D) < 0.2
    assert loud.weight_D.norm() < 0.5 * fit_scores(*toy(60, 40, noise=30.0)[:2], strengths=(0.01,)).weight_D.norm()


def test_fit_verdicts_predicts_unseen_comparisons() -> None:
    embed_ND, reward_N, weight_D = toy(2000, 10)
    head = fit_verdicts(*verdicts(embed_ND, reward_N))
    unseen_ND, unseen_N, _ = toy(500, 10, seed=1)
    unseen_N = unseen_ND @ weight_D
    assert torch.corrcoef(torch.stack([head.rewards(unseen_ND), unseen_N]))[0, 1] > 0.98


def test_fit_verdicts_is_at_the_mode_of_the_penalised_likelihood() -> None:
    embed_ND, reward_N, _ = toy(80, 6)
    chosen_MD, rejected_MD = verdicts(embed_ND, reward_N)
    head = fit_verdicts(chosen_MD, rejected_MD, strengths=(0.7,))
    weight_D = head.weight_D.clone().requires_grad_()
    loss = -F.logsigmoid((chosen_MD - rejected_MD) / head.scale @ weight_D).sum() + 0.35 * weight_D.square().sum()
    (gradient_D,) = torch.autograd.grad(loss, weight_D)
    assert gradient_D.abs().max() < 1e-6
    hessian_DD = torch.autograd.functional.hessian(
        lambda w: -F.logsigmoid((chosen_MD - rejected_MD) / head.scale @ w).sum() + 0.35 * w.square().sum(),
        head.weight_D,
    )
    torch.testing.assert_close(head.root_DD @ head.root_DD.T @ hessian_DD, torch.eye(6, dtype=torch.float64))


def test_fit_verdicts_chooses_the_prior_under_which_left_out_verdicts_are_most_probable() -> None:
    embed_ND, reward_N, _ = toy(60, 3, noise=1.0)
    chosen_MD, rejected_MD = verdicts(embed_ND, reward_N)
    strengths = (0.01, 1.0, 100.0)

    def left_out(strength: float) -> float:
        total = 0.0
        for out in range(30):
            rest = [m for m in range(30) if m != out]
            head = fit_verdicts(chosen_MD[rest], rejected_MD[rest], strengths=(strength,))
            gap = head.rewards(chosen_MD[out : out + 1]) - head.rewards(rejected_MD[out : out + 1])
            total += F.logsigmoid(gap).item()
        return total

    best = fit_verdicts(chosen_MD, rejected_MD, strengths=(max(strengths, key=left_out),))
    torch.testing.assert_close(fit_verdicts(chosen_MD, rejected_MD, strengths=strengths).weight_D, best.weight_D)


def test_a_left_out_gap_is_that_of_the_fit_to_the_other_verdicts() -> None:
    """RDO: of 40 verdicts one is turned round, and the others say so; its own verdict has no say."""
    embed_ND, reward_N, _ = toy(80, 3)
    chosen_MD, rejected_MD = verdicts(embed_ND, 3 * reward_N)
    chosen_MD[0], rejected_MD[0] = rejected_MD[0].clone(), chosen_MD[0].clone()
    gap_M = left_out_gaps(chosen_MD, rejected_MD, strengths=(1.0,))
    refitted = []
    for out in range(40):
        rest = [m for m in range(40) if m != out]
        head = fit_verdicts(chosen_MD[rest], rejected_MD[rest], strengths=(1.0,))
        one_1, other_1 = (head.rewards(some_MD[out : out + 1]) for some_MD in (chosen_MD, rejected_MD))
        refitted.append(one_1 - other_1)
    torch.testing.assert_close(gap_M, torch.cat(refitted), rtol=0.1, atol=0.1)
    assert gap_M[0] < 0 < gap_M.median()
    turned_M = left_out_gaps(
        torch.cat([rejected_MD[:1], chosen_MD[1:]]), torch.cat([chosen_MD[:1], rejected_MD[1:]]), strengths=(1.0,)
    )
    torch.testing.assert_close(turned_M[0], -gap_M[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("fit", [fit_scores, lambda x, y: fit_verdicts(x[::2], x[1::2])], ids=["scores", "verdicts"])
def test_a_response_far_from_the_labeled_ones_is_less_certain(fit: object) -> None:
    embed_ND, score_N, _ = toy(40, 4, noise=0.5)
    head: RewardHead = fit(embed_ND, score_N)  # type: ignore[operator]
    near, far = head.deviations(torch.stack([head.centre_D, head.centre_D + 100]))
    assert near < 1e-9 < 1 < far


def test_draws_scatter_as_the_posterior_says() -> None:
    embed_ND, score_N, _ = toy(40, 4, noise=0.5)
    head = fit_scores(embed_ND, score_N)
    drawn_SN = torch.stack([head.drawn(seed).rewards(embed_ND[:5]) for seed in range(4000)])
    torch.testing.assert_close(drawn_SN.std(0), head.deviations(embed_ND[:5]), rtol=0.05, atol=0)
    torch.testing.assert_close(drawn_SN.mean(0), head.rewards(embed_ND[:5]), rtol=0, atol=0.05)
    assert torch.equal(head.drawn(3).weight_D, head.drawn(3).weight_D)


def test_the_intervals_of_a_well_specified_reward_cover_it() -> None:
    weight_D = torch.randn(20, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inside = []
    for seed in range(20):
        embed_ND, _, _ = toy(200, 20, seed=seed)
        noise_N = torch.randn(200, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        head = fit_scores(embed_ND, embed_ND @ weight_D + 2 * noise_N)
        unseen_ND, _, _ = toy(100, 20, seed=1000 + seed)
        apart_N = (head.rewards(unseen_ND) - unseen_ND @ weight_D - head.offset + (embed_ND @ weight_D).mean()).abs()
        inside.append((apart_N < 1.96 * head.deviations(unseen_ND)).double().mean())
    assert 0.9 < torch.stack(inside).mean() < 0.99


@pytest.mark.parametrize("fit", [fit_scores, fit_verdicts])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(fit: object, broken: float) -> None:
    embed_ND, score_N, _ = toy(4, 2)
    embed_ND[1, 1] = broken
    with pytest.raises(ValueError, match="finite"):
        fit(embed_ND, score_N if fit is fit_scores else embed_ND)  # type: ignore[operator]


def test_equal_embeddings_or_scores_predict_no_gap() -> None:
    for embed_ND, score_N in ((torch.ones(6, 3), torch.arange(6.0)), (torch.rand(6, 3), torch.ones(6))):
        rewards_N = fit_scores(embed_ND, score_N).rewards(embed_ND)
        assert predicted_gap(rewards_N) == pytest.approx([0.0] * 15, abs=1e-9)


@pytest.mark.slow
def test_ten_thousand_labels_are_fitted_in_seconds() -> None:
    embed_ND, score_N, _ = toy(10_000, 384, noise=5.0)
    began = time.process_time()
    fit_scores(embed_ND, score_N)
    assert time.process_time() - began < 5  # 0.4 s on a quiet machine
    began = time.process_time()
    fit_verdicts(*verdicts(*toy(20_000, 384, noise=5.0)[:2]))
    assert time.process_time() - began < 5  # 0.9 s


def test_verdicts_that_do_not_choose_the_prior_are_learned_too() -> None:
    """The head of many verdicts is the one that all of them make under the prior that some of them have chosen."""
    chosen_MD, rejected_MD = verdicts(*toy(4 * TUNED_ON + 2, 8, noise=2.0)[:2])
    head = fit_verdicts(chosen_MD, rejected_MD)
    same = [fit_verdicts(chosen_MD, rejected_MD, [strength]).weight_D for strength in STRENGTHS]
    assert any(torch.allclose(head.weight_D, weight_D, rtol=1e-4, atol=1e-6) for weight_D in same)


# -- utilities -------------------------------------------------------------------------------------------------


def test_predicted_gap_with_a_bonus_is_upper_bound_minus_lower_bound() -> None:
    reward_N, sd_N = torch.tensor([0.3, -1.0, 0.8, 0.1]), torch.tensor([0.1, 0.5, 0.0, 2.0])
    upper_N, lower_N = reward_N + 0.7 * sd_N, reward_N - 0.7 * sd_N
    expected = [max(upper_N[i] - lower_N[j], upper_N[j] - lower_N[i]).item() for i, j in pair_positions(4)]
    assert predicted_gap(reward_N, sd_N, 0.7) == pytest.approx(expected)


def test_predicted_gain_ranks_a_prompt_never_sampled_as_an_average_one() -> None:
    assert predicted_gain([None, None]) == [0.0, 0.0]
    assert predicted_gain([torch.tensor([0.0, 3.0]), None, torch.tensor([2.0])]) == [3.0, 1.5, 0.0]


def test_about_the_given_share_of_the_chosen_was_chosen_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    scale_P1 = torch.randn(2000, 1, generator=generator).exp()
    utilities = {f"p{n}": u for n, u in enumerate((scale_P1 * torch.rand(2000, 6, generator=generator)).tolist())}
    mixed = explored(utilities, 0.25, seed=1)
    best = sorted(mixed, key=lambda name: max(mixed[name]), reverse=True)[:300]
    by_chance = sum(mixed[name] != utilities[name] for name in best) / 300
    assert 0.18 < by_chance < 0.32
    assert explored(dict(reversed(utilities.items())), 0.25, seed=1) == mixed


@pytest.mark.parametrize("wrong", [{"bonus": -1.0}, {"explore": 1.5}, {"cold": "warm"}])
def test_predicted_gap_refuses_settings_that_mean_nothing(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}={wrong[name]}.*choose bonus"):
        PredictedGap(**wrong)
    with pytest.raises(ValueError, match="choose per_prompt=1"):
        Spread(per_prompt=2)
    with pytest.raises(ValueError, match="choose ridge > 0"):
        DOptimal(ridge=0.0)


def greedy(feature_XD: Tensor, prompts: list[int], k: int, per_prompt: int | None, ridge: float) -> list[int]:
    """D-optimal choice with a new inverse for every pair."""
    matrix_DD = ridge * torch.eye(feature_XD.shape[1], dtype=torch.float64)
    taken: list[int] = []
    while len(taken) < k:
        left = [
            x
            for x in range(len(prompts))
            if x not in taken and (per_prompt is None or [prompts[t] for t in taken].count(prompts[x]) < per_prompt)
        ]
        if not left:
            break
        values = {x: (feature_XD[x] @ torch.linalg.solve(matrix_DD, feature_XD[x])).item() for x in left}
        taken.append(max(left, key=values.__getitem__))
        matrix_DD = matrix_DD + torch.outer(feature_XD[taken[-1]], feature_XD[taken[-1]])
    return taken


@pytest.mark.parametrize("per_prompt", [1, 2, None])
def test_d_optimal_takes_the_pairs_that_a_greedy_choice_with_inverses_takes(per_prompt: int | None) -> None:
    feature_XD = toy(120, 5)[0]
    prompts = [x // 3 for x in range(120)]
    utilities = d_optimal(feature_XD, prompts, 20, per_prompt=per_prompt, ridge=0.1)
    taken = greedy(feature_XD, prompts, 20, per_prompt, 0.1 * feature_XD.square().sum(1).mean().item())
    ranked, count = [], dict.fromkeys(prompts, 0)
    for x in sorted(range(120), key=utilities.__getitem__, reverse=True):
        if per_prompt is None or count[prompts[x]] < per_prompt:
            count[prompts[x]] += 1
            ranked.append(x)
    assert ranked[: len(taken)] == taken
