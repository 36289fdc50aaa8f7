"""How sure is sure enough: values by hand, and what the bound promises."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choosy.labeling.predictor.calibration import mistakes_at_most, sure_from


def test_no_mistake_among_n_by_hand() -> None:
    """(1 - share)^n = 1 - confidence."""
    assert mistakes_at_most(0, 10, confidence=0.9) == pytest.approx(1 - 0.1 ** (1 / 10))
    assert mistakes_at_most(0, 1, confidence=0.95) == pytest.approx(0.95)
    assert mistakes_at_most(3, 3, confidence=0.9) == 1
    assert mistakes_at_most(0, 0, confidence=0.9) == 1, "nothing seen, nothing excluded"
    assert mistakes_at_most(1, 10, confidence=0.95) == pytest.approx(0.39416, abs=1e-5), "a table's value"


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_bound_is_above_what_was_seen(seen: tuple[int, int]) -> None:
    answers, mistakes = seen
    bound = mistakes_at_most(mistakes, answers, confidence=0.9)
    assert mistakes / answers < bound <= 1 or mistakes == answers
    assert bound >= mistakes_at_most(max(mistakes - 1, 0), answers, confidence=0.9)


def test_many_answers_are_no_trouble() -> None:
    """Of 20,000 answers with 1,000 mistakes the bound is near 5 % + 1.28 standard errors of 0.154 %."""
    assert mistakes_at_most(1000, 20000, confidence=0.9) == pytest.approx(0.052, abs=2e-4)


def test_the_threshold_by_hand() -> None:
    """80 answers, the less sure half wrong every other time; the surer 40 without mistake: 1 - 0.025^(1/40) = 0.088."""
    sureness = [float(n) for n in range(80)]
    right = [n >= 40 or n % 2 == 0 for n in range(80)]
    assert sure_from(sureness, right, max_error=0.1) == 40
    assert sure_from(sureness, right, max_error=0.4) == 0
    assert sure_from(sureness, right, max_error=0.05) == math.inf, "it needs 72 without a mistake"
    assert sure_from([], [], max_error=0.1) == math.inf


def test_equally_sure_answers_are_answered_alike() -> None:
    assert sure_from([1.0] * 60, [True] * 60, max_error=0.1) == 1.0
    assert sure_from([1.0] * 60, [True] * 50 + [False] * 10, max_error=0.1) == math.inf


def test_the_promise_is_kept_nine_times_of_ten() -> None:
    """Answers that are right with a probability that grows with sureness: the true share of mistakes above the line."""
    draw = random.Random(0)
    broken = 0
    for _ in range(200):
        sureness = [draw.random() for _ in range(150)]
        right = [draw.random() < 0.5 + s / 2 for s in sureness]
        line = sure_from(sureness, right, max_error=0.15)
        broken += not math.isinf(line) and (1 - line) / 4 > 0.15  # the mean of (1 - s) / 2 above the line
    assert broken <= 20
