"""Which runs of a search are stopped, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from choosy.methods.safe_region import Proposal
from choosy.methods.stopping import growth, least_quality

GAIN = 1 / math.sqrt(2 * math.pi)  # expected of a normal draw over its own mean, in standard deviations


def least(forecast=((1.0,), (2.0,)), *, index: int = 1, rate: float = 0.0, confidence: float = 0.5) -> list[float]:
    """Of a run with the predicted quality 1 +- 1 and the noise 1, which costs 1; that of the start is 1."""
    proposal = Proposal(index, quality=1.0, variance=1.0, low=0.0, gain=0.0, rate=rate, cost=1.0, safe=2)
    given = {"best": 1.0, "start": 1.0, "allowed_loss": 0.5, "confidence": confidence}
    return [*least_quality(proposal, 1.0, tuple(map(np.array, forecast)), **given)]


def test_a_run_that_leaves_the_safe_region_is_stopped():
    # the forecast's variance is 2, so that a quarter of what it differs by counts: an end of -1 makes 1 into 0.5, which
    # is the least that is safe; after its first round such a run, which grows by 1, is at -2
    assert least() == pytest.approx([-2.0])
    # by then the variance is 0.75: to be sure at one standard deviation it has to be at 0.5 + 0.87
    assert least(confidence=0.8413447) == pytest.approx([1 + math.sqrt(0.75) / 0.25 - 2 - 1])
    # of four rounds, the second is half the way: there it may be 0.5 below, and so be 1 below at the end; then 2 / 3
    assert least(((3.0, 2.0, 1.0), (2.0, 2.0, 2.0))) == pytest.approx([-3 - 3, -5 / 3 - 2, -1 - 1])


def test_a_run_whose_rest_teaches_less_than_a_new_run_is_stopped():
    # the rest lowers the variance from 0.75 to 0.5; at the best quality that is worth half a GAIN, and costs a half
    assert least(rate=GAIN) == pytest.approx([1 - 1.0])
    assert least(rate=GAIN / 2)[0] < 0 < least(rate=2 * GAIN)[0]


def test_the_start_is_never_too_bad_and_nothing_is_stopped_before_it_is_known_how_runs_grow():
    assert least(index=0) == [-math.inf]
    assert least(growth([(1.0,)], 2, 1.0)) == []


def test_growth_is_that_of_runs_that_came_to_their_end():
    mean, variance = growth([(1.0, 2.0, 4.0), (2.0, 2.0, 3.0), (0.0, 0.1)], 3, 1.0)
    assert mean.tolist() == [2.0, 1.5]
    # three runs' worth of the assumed variance times the share that is left, a degree of freedom with 1 + 1 or with
    # 0.25 + 0.25, and the doubt of a mean of two
    assert variance.tolist() == pytest.approx([(3 * 2 / 3 + 2) / 4 * 1.5, (3 * 1 / 3 + 0.5) / 4 * 1.5])
