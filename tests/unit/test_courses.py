"""What an arm pays to reach what the baseline reached, on courses whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from choosy.reporting.courses import Course, cost_to, seeds_needed, sign_flip, versus

LABELS = (0.0, 100.0, 200.0, 400.0)


def linear(slope: float, *, wobble: float = 0.0) -> Course:
    """Quality that rises by so much a label."""
    return Course({"labels": LABELS}, tuple(slope * x + wobble for x in LABELS))


def test_an_arm_twice_as_good_a_label_needs_half_of_them() -> None:
    arm = {seed: linear(0.02, wobble=0.1 * seed) for seed in range(5)}
    baseline = {seed: linear(0.01, wobble=0.1 * seed) for seed in range(5)}
    found = versus(arm, baseline, "labels")
    assert (found.seeds, found.ratio, found.low, found.high) == pytest.approx((5, 0.5, 0.5, 0.5))
    assert found.gain == pytest.approx(4.0)
    assert found.p == pytest.approx(2 / 2**5)


def test_an_arm_that_never_gets_there_has_no_finite_ratio() -> None:
    found = versus({0: linear(0.005)}, {0: linear(0.01)}, "labels")
    assert math.isinf(found.ratio)
    assert found.gain < 0
    assert math.isnan(found.more_seeds)


@pytest.mark.slow
def test_the_interval_covers_the_true_ratio_of_noisy_seeds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        slopes = generator.normal(0.02, 0.004, 20)
        arm = {s: linear(float(slope)) for s, slope in enumerate(slopes)}
        baseline = {s: linear(0.01) for s in range(20)}
        found = versus(arm, baseline, "labels")
        covered += found.low <= 0.5 <= found.high
    assert 50 <= covered <= 60


def test_only_common_seeds_are_compared() -> None:
    found = versus({0: linear(0.02), 7: linear(9.0)}, {0: linear(0.01), 8: linear(9.0)}, "labels")
    assert (found.seeds, found.ratio) == pytest.approx((1, 0.5))
    with pytest.raises(ValueError, match="no seed in common"):
        versus({0: linear(0.02)}, {1: linear(0.01)}, "labels")


def test_a_course_that_falls_counts_as_what_it_had_reached() -> None:
    fallen = Course({"labels": (0.0, 10.0, 20.0)}, (0.0, 2.0, 1.0))
    assert cost_to([fallen], "labels", 1.5) == pytest.approx(7.5)
    assert cost_to([fallen], "labels", 0.0) == 0.0


def test_an_arm_beside_itself_needs_the_same_also_where_seeds_end_at_other_amounts() -> None:
    arm = {s: Course({"labels": (0.0, 100.0 + s, 200.0 + 2 * s)}, (0.0, 1.0, 2.0 + s)) for s in range(5)}
    found = versus(arm, arm, "labels")
    assert (found.ratio, found.low, found.high, found.gain) == pytest.approx((1.0, 1.0, 1.0, 0.0))


def test_a_run_that_was_cut_short_is_compared_as_far_as_it_came() -> None:
    whole, short = linear(0.01), Course({"labels": LABELS[:2]}, (0.0, 1.0))
    baseline = {0: whole, 1: whole}
    found = versus(baseline, {0: whole, 1: short}, "labels")
    assert (found.ratio, found.gain) == pytest.approx((1.0, 0.0))


def test_nothing_is_compared_where_the_baseline_learns_nothing() -> None:
    fallen = {s: Course({"labels": (0.0, 10.0)}, (1.0, 0.5)) for s in range(3)}
    further = {s: Course({"labels": (0.0, 10.0)}, (1.0, 0.1)) for s in range(3)}
    assert math.isnan(versus(further, fallen, "labels").ratio)


def test_a_difference_of_chance_is_seldom_called_one() -> None:
    generator = np.random.default_rng(1)
    found = [sign_flip(generator.normal(0, 1, 10), generator) for _ in range(300)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_seeds_needed() -> None:
    assert seeds_needed(np.array([1.0, -1.0])) == math.inf
    assert seeds_needed(np.array([0.9, 1.1, 1.0])) < 1
