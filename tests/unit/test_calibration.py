"""Test the calibration of the predictor."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choosy.labeling.predictor.labeler import answer_threshold, error_rate_bound


def test_error_rate_bound_by_hand() -> None:
    """(1 - share)^n = 1 - confidence."""
    assert error_rate_bound(0, 10, confidence=0.9) == pytest.approx(1 - 0.1 ** (1 / 10))
    assert error_rate_bound(0, 1, confidence=0.95) == pytest.approx(0.95)
    assert error_rate_bound(3, 3, confidence=0.9) == 1
    assert error_rate_bound(0, 0, confidence=0.9) == 1, "no answers exclude nothing"
    assert error_rate_bound(1, 10, confidence=0.95) == pytest.approx(0.39416, abs=1e-5), "a table's value"


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_error_rate_bound_exceeds_the_observed_rate(seen: tuple[int, int]) -> None:
    answers, mistakes = seen
    bound = error_rate_bound(mistakes, answers, confidence=0.9)
    assert mistakes / answers < bound <= 1 or mistakes == answers
    assert bound >= error_rate_bound(max(mistakes - 1, 0), answers, confidence=0.9)


def test_error_rate_bound_with_many_answers() -> None:
    """Of 20,000 answers with 1,000 mistakes the bound is near 5 % + 1.28 standard errors of 0.154 %."""
    assert error_rate_bound(1000, 20000, confidence=0.9) == pytest.approx(0.052, abs=2e-4)


def test_answer_threshold_by_hand() -> None:
    """Of 80 answers, the 40 with small margins are wrong every other time, the rest never: 1 - 0.025^(1/40) = 0.088."""
    margins = [float(n) for n in range(80)]
    correct = [n >= 40 or n % 2 == 0 for n in range(80)]
    assert answer_threshold(margins, correct, max_error=0.1) == 40
    assert answer_threshold(margins, correct, max_error=0.4) == 0
    assert answer_threshold(margins, correct, max_error=0.05) == math.inf, "it needs 72 without a mistake"
    assert answer_threshold([], [], max_error=0.1) == math.inf


def test_equal_margins_are_treated_alike() -> None:
    assert answer_threshold([1.0] * 60, [True] * 60, max_error=0.1) == 1.0
    assert answer_threshold([1.0] * 60, [True] * 50 + [False] * 10, max_error=0.1) == math.inf


def test_the_error_rate_is_exceeded_at_most_one_time_in_ten() -> None:
    """Answers are right with a probability that grows with the margin; compare the true error rate with the bound."""
    draw = random.Random(0)
    broken = 0
    for _ in range(200):
        margins = [draw.random() for _ in range(150)]
        correct = [draw.random() < 0.5 + s / 2 for s in margins]
        threshold = answer_threshold(margins, correct, max_error=0.15)
        broken += (
            not math.isinf(threshold) and (1 - threshold) / 4 > 0.15
        )  # the mean of (1 - s) / 2 above the threshold
    assert broken <= 20
