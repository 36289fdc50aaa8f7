"""What an arm pays to reach what the baseline reached, on courses whose answer is known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from choosy.reporting.courses import (
    Course,
    area_weights,
    cost_to,
    drawn_quality,
    each_course,
    seeds_needed,
    sign_flip,
    versus,
)

LABELS = (0.0, 100.0, 200.0, 400.0)


def linear(slope: float, *, wobble: float = 0.0) -> Course:
    """Quality that rises by so much a label."""
    return Course({"labels": LABELS}, tuple(slope * x + wobble for x in LABELS))


def test_an_arm_twice_as_good_a_label_needs_half_of_them() -> None:
    arm = {seed: linear(0.02, wobble=0.1 * seed) for seed in range(5)}
    baseline = {seed: linear(0.01, wobble=0.1 * seed) for seed in range(5)}
    found = versus(arm, baseline, "labels")
    assert found.seeds == 5
    assert found.ratio == pytest.approx((0.5, 0.5, 0.5))
    assert found.paid == pytest.approx((200.0, 200.0, 200.0))
    assert found.gain == pytest.approx((4.0, 4.0, 4.0))
    assert found.area == pytest.approx((2.0, 2.0, 2.0)), "half of the final difference, on straight lines"
    assert all(map(math.isnan, found.at_kl))
    assert found.p == pytest.approx(2 / 2**5)


def test_an_arm_that_never_gets_there_has_no_finite_ratio() -> None:
    found = versus({0: linear(0.005)}, {0: linear(0.01)}, "labels")
    assert math.isinf(found.paid.value)
    assert math.isinf(found.ratio.value)
    assert found.gain.value < 0
    assert math.isnan(found.gain.low), "one seed says nothing of chance"
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
        covered += found.ratio.low <= 0.5 <= found.ratio.high
    assert 50 <= covered <= 60


def test_only_common_seeds_are_compared() -> None:
    found = versus({0: linear(0.02), 7: linear(9.0)}, {0: linear(0.01), 8: linear(9.0)}, "labels")
    assert (found.seeds, found.ratio.value) == pytest.approx((1, 0.5))
    with pytest.raises(ValueError, match="no seed in common"):
        versus({0: linear(0.02)}, {1: linear(0.01)}, "labels")


def test_a_course_that_falls_counts_as_what_it_had_reached() -> None:
    fallen = Course({"labels": (0.0, 10.0, 20.0)}, (0.0, 2.0, 1.0))
    assert cost_to([fallen], "labels", 1.5) == pytest.approx(7.5)
    assert cost_to([fallen], "labels", 0.0) == 0.0


def test_an_arm_beside_itself_needs_the_same_also_where_seeds_end_at_other_amounts() -> None:
    arm = {s: Course({"labels": (0.0, 100.0 + s, 200.0 + 2 * s)}, (0.0, 1.0, 2.0 + s)) for s in range(5)}
    found = versus(arm, arm, "labels")
    assert found.ratio == pytest.approx((1.0, 1.0, 1.0))
    assert found.gain == found.area == pytest.approx((0.0, 0.0, 0.0))


def test_a_run_that_was_cut_short_is_compared_as_far_as_it_came() -> None:
    whole, short = linear(0.01), Course({"labels": LABELS[:2]}, (0.0, 1.0), finished=False)
    baseline = {0: whole, 1: whole}
    found = versus(baseline, {0: whole, 1: short}, "labels")
    assert (found.ratio.value, found.gain.value) == pytest.approx((1.0, 0.0))


def test_nothing_is_compared_where_the_baseline_learns_nothing() -> None:
    fallen = {s: Course({"labels": (0.0, 10.0)}, (1.0, 0.5)) for s in range(3)}
    further = {s: Course({"labels": (0.0, 10.0)}, (1.0, 0.1)) for s in range(3)}
    assert math.isnan(versus(further, fallen, "labels").ratio.value)


def test_a_draw_in_which_the_baseline_does_not_rise_counts_as_no_saving() -> None:
    """One of four seeds learns, so that three draws in ten have none of it; an arm that starts lower never saves."""
    baseline = {s: linear(0.01 if s == 0 else 0.0) for s in range(4)}
    found = versus({s: linear(0.02) for s in range(4)}, baseline, "labels").ratio
    assert (found.value, found.low, found.high) == pytest.approx((0.125, 0.125, 1.0))
    assert math.isinf(versus({s: linear(0.02, wobble=-1.0) for s in range(4)}, baseline, "labels").ratio.high)


def test_the_quality_at_equal_kl_is_that_where_the_arm_is_as_far_as_the_baseline_ends() -> None:
    arm = {0: Course({"labels": (0.0, 1.0, 2.0)}, (0.0, 2.0, 3.0), kl=(0.0, 4.0, 8.0))}
    baseline = {0: Course({"labels": (0.0, 1.0, 2.0)}, (0.0, 1.0, 1.5), kl=(0.0, 3.0, 6.0))}
    assert versus(arm, baseline, "labels").at_kl.value == pytest.approx(2.5 - 1.5)
    assert versus(baseline, arm, "labels").at_kl.value == pytest.approx(1.5 - 3.0), "it ends before"


def test_the_interval_knows_of_few_heldout_prompts() -> None:
    """Two seeds agree, and the prompts do not: half of them gain 4 and half lose 2."""

    def of(rewards: list[float]) -> Course:
        answers = {f"p{n}": (0.0, reward) for n, reward in enumerate(rewards)}
        return Course({"labels": (0.0, 10.0)}, (0.0, float(np.mean(rewards))), answers=answers)

    arm, baseline = {s: of([5.0, -1.0] * 4) for s in (0, 1)}, {s: of([1.0] * 8) for s in (0, 1)}
    found = versus(arm, baseline, "labels").gain
    assert found.value == pytest.approx(1.0)
    assert found.low < 0 < 2 < found.high
    unknown = {s: Course(c.spent, c.quality) for s, c in arm.items()}
    assert versus(unknown, baseline, "labels").gain == pytest.approx((1.0, 1.0, 1.0))


def test_a_prompt_without_an_answer_counts_where_it_has_one() -> None:
    course = Course({"labels": (0.0, 1.0)}, (0.0, 3.0), answers={"a": (0.0, 3.0), "b": (0.0, math.nan)})
    (drawn,) = drawn_quality([course], np.random.default_rng(0), draws=5)
    assert drawn[:, 1] == pytest.approx([3.0] * 6)


def test_twenty_seeds_of_many_prompts_take_a_moment() -> None:
    generator = np.random.default_rng(0)

    def arm() -> dict[int, Course]:
        values = generator.normal(size=(20, 5, 512))
        answers = [{f"p{n}": tuple(each) for n, each in enumerate(of_run.T)} for of_run in values]
        return {s: Course({"labels": tuple(range(5))}, tuple(values[s].mean(1)), answers=answers[s]) for s in range(20)}

    one, other = arm(), arm()
    began = time.process_time()
    versus(one, other, "labels")
    assert time.process_time() - began < 2


def test_a_difference_of_chance_is_seldom_called_one() -> None:
    generator = np.random.default_rng(1)
    found = [sign_flip(generator.normal(0, 1, 10), generator) for _ in range(300)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_seeds_needed() -> None:
    assert seeds_needed(np.array([1.0, -1.0])) == math.inf
    clear = np.array([0.9, 1.1, 1.0])
    assert seeds_needed(clear) == 6, "of five the least p is 1/16"
    assert seeds_needed(clear, 4) == 8, "2/256 times four is below 0.05, 2/128 is not"


def test_no_difference_is_impossible_by_chance() -> None:
    assert sign_flip(np.ones(20), np.random.default_rng(0)) == pytest.approx(1 / 20_001)


def test_of_two_finished_runs_each_counts_with_its_own_end() -> None:
    """An arm that stopped early has ended: it keeps its last quality, and the baseline its own."""
    early, whole = Course({"labels": (0, 10)}, (0.0, 0.5)), Course({"labels": (0, 10, 20)}, (0.0, 0.4, 0.8))
    found = versus({0: early}, {0: whole}, "labels")
    assert found.gain.value == pytest.approx(-0.3)
    assert found.paid.value == math.inf


def test_what_is_reached_after_the_budget_is_spent_costs_the_whole_budget() -> None:
    spent = Course({"labels": (0, 50, 100, 100, 100)}, (0.0, 0.2, 0.3, 0.6, 0.9))
    assert cost_to([spent], "labels", 0.25) == pytest.approx(75)
    assert cost_to([spent], "labels", 0.3) == pytest.approx(100)
    assert cost_to([spent], "labels", 0.5) == 100
    amount_G, quality_SG = each_course([spent, Course({"labels": (0, 100)}, (0.0, 1.0))], "labels")
    assert amount_G.tolist() == [0, 50, 100, 100]
    assert quality_SG.mean(axis=0) == pytest.approx([0.0, 0.35, 0.65, 0.95])
    assert area_weights(spent.spent["labels"], 100.0) @ np.array(spent.quality) == pytest.approx((0.1 + 0.25) / 2)


def test_large_differences_are_no_less_likely_than_small_ones() -> None:
    """Of three that are all positive, two patterns of eight are as far from 0, in whatever unit they are."""
    ones = np.array([0.1, 0.7, 0.3])
    for unit in (1.0, 1e5, 1e9):
        assert sign_flip(ones * unit, np.random.default_rng(0)) == 0.25
