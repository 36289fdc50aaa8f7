"""Pair weights: hand-worked values, the two readings of wDPO, normalisation, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from choosy.methods.weighting import Column, RewardGap, Uniform, Weighting, mean_weight

NOT_GIVEN = torch.full((3,), math.nan)
GAP_B = torch.tensor([0.0, 1.25, 4.0])


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Uniform(), [1.0, 1.0, 1.0]),
        (RewardGap(), [0.5, 0.777300, 0.982014]),  # 1 / (1 + e^-gap)
        (RewardGap(beta2=2.0), [0.5, 0.924142, 0.999665]),
        (RewardGap(form="linear", beta2=0.5), [0.0, 0.625, 2.0]),
        (RewardGap(form="linear", clip=3.0), [0.0, 1.25, 3.0]),
    ],
)
def test_weights_worked_by_hand(weighting: Weighting, expected: list[float]) -> None:
    assert weighting.weigh(GAP_B, NOT_GIVEN).tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_rewards_weigh_exactly_half() -> None:
    assert RewardGap(beta2=3.0).weigh(torch.zeros(2), torch.ones(2)).tolist() == [0.5, 0.5]


def test_the_column_is_taken_as_it_stands() -> None:
    given_B = torch.tensor([0.0, 2.5, 1.0])
    assert torch.equal(Column().weigh(NOT_GIVEN, given_B), given_B)


@pytest.mark.parametrize(("weighting", "needs"), [(Uniform(), "nothing"), (RewardGap(), "gap"), (Column(), "given")])
def test_what_a_weighting_needs_is_what_it_uses(weighting: Weighting, needs: str) -> None:
    assert weighting.needs == needs
    assert weighting.normalize is False
    without_gap = weighting.weigh(NOT_GIVEN, torch.ones(3)).isfinite().all()
    without_given = weighting.weigh(GAP_B, NOT_GIVEN).isfinite().all()
    assert (bool(without_gap), bool(without_given)) == (needs != "gap", needs != "given")


@pytest.mark.parametrize("form", ["sigmoid", "linear"])
def test_a_larger_gap_weighs_more(form: Any) -> None:
    weight_B = RewardGap(form=form).weigh(torch.linspace(0, 5, 11), torch.ones(11))
    assert (weight_B.diff() > 0).all()


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_weights_divided_by_their_mean_have_mean_one(weights: list[float]) -> None:
    weight_X = torch.tensor(weights, dtype=torch.float64)
    assert (weight_X / mean_weight(weight_X)).mean().item() == pytest.approx(1.0)


def test_weights_that_are_all_zero_or_none_are_divided_by_one() -> None:
    assert mean_weight(torch.zeros(3)) == mean_weight(torch.zeros(0)) == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"form": "square"}, "weighting.form='square' is none of sigmoid, linear"),
        ({"beta2": 0.0}, "weighting.beta2=0.0 weighs large gaps no more; choose beta2 > 0"),
        ({"beta2": -1.0}, "weighting.beta2=-1.0"),
        ({"clip": 0.0}, "weighting.clip=0.0 leaves no weight; choose clip > 0, or null"),
    ],
)
def test_reward_gap_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewardGap(**arguments)
