"""Optuna's sampler inside a safe region: what it proposes, and what it leaves alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from choosy.methods.safe_region import Shown, propose

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Optuna 2 calls SQLAlchemy by an old name
    optuna = pytest.importorskip("optuna")

from optuna.distributions import (
    CategoricalDistribution,
    DiscreteUniformDistribution,
    IntUniformDistribution,
    LogUniformDistribution,
    UniformDistribution,
)

from choosy.safe_search import SafeSampler, contains, coordinates
from choosy.sweeper import taken

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {"lr": LogUniformDistribution(1e-5, 1e-1), "epochs": CategoricalDistribution(["1", "2", "4", "8"])}
START = {"lr": 1e-4, "epochs": "2"}


def quality(settings: dict[str, Any]) -> float:
    """Falls on both sides of a learning rate of 1e-3."""
    return 2.0 - (math.log10(settings["lr"]) + 3) ** 2


def search(trials: int, seed: int = 0, **more: Any) -> tuple[SafeSampler, Any]:
    sampler = SafeSampler(SPACE, START, allowed_loss=0.5, seed=seed, **more)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    noise = np.random.default_rng(seed)
    for number in range(trials):
        sampler.share_left = 1 - number / trials
        trial = study.ask(SPACE)
        trial.set_user_attr("cost", float(trial.params["epochs"]))
        study.tell(trial, quality(trial.params) + 0.05 * noise.normal())
    return sampler, study


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_start_comes_first_and_what_is_found_is_better():
    sampler, study = search(14)
    assert study.trials[0].params == START
    assert len({str(trial.params) for trial in study.trials}) > 5
    settings, predicted = sampler.best(study)
    assert quality(settings) > quality(START) + 0.7
    assert predicted == pytest.approx(quality(settings), abs=0.3)


def test_proposals_are_predicted_to_be_no_worse_than_the_start_by_more_than_is_allowed():
    for seed in range(3):
        sampler = SafeSampler(SPACE, START, allowed_loss=0.5, seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(8):
            trial = study.ask(SPACE)
            if sampler.proposal is not None and trial.params != START:
                start = float(sampler.predicted(study, [START])[0])
                assert sampler.proposal.low >= start - 0.5 - 1e-6
            study.tell(trial, quality(trial.params))


def test_fewer_settings_are_far_below_the_start_than_by_chance():
    def far_below(study: Any) -> float:
        return float(np.mean([quality(trial.params) < quality(START) - 0.5 for trial in study.trials]))

    safe = np.mean([far_below(search(14, seed)[1]) for seed in range(3)])
    chance = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(100):
        chance.tell(chance.ask(SPACE), 0.0)
    assert safe < 0.7 * far_below(chance)


def shown(point_ND: np.ndarray, quality_N: np.ndarray, cost_N: np.ndarray) -> Shown:
    return Shown(point_ND, quality_N, np.zeros_like(quality_N), cost_N)


def test_the_start_is_proposed_again_where_nothing_else_is_safe():
    candidates = np.array([[0.5], [0.0], [1.0]])
    found = propose(shown(candidates[:1], np.ones(1), np.ones(1)), candidates, allowed_loss=0.1, confidence=0.99)
    assert (found.index, found.safe) == (0, 1)


def test_the_same_gain_for_less_is_proposed_first_and_cost_matters_less_at_the_end():
    point_ND = np.array([[0.5, 0.5], [0.5, 0.0], [0.5, 1.0]])
    ends = np.array([[0.5, 0.5], [0.6, 0.1], [0.6, 0.9]])  # the second is cheap
    runs = shown(point_ND, np.array([1.0, 1.0, 1.05]), np.array([2.0, 1.0, 4.0]))

    def index(power: float) -> int:
        return propose(runs, ends, allowed_loss=9.0, confidence=0.5, cost_power=power).index

    assert (index(1.0), index(0.0)) == (1, 2)


def test_runs_of_an_earlier_sweep_count():
    sampler = SafeSampler(SPACE, START, allowed_loss=0.5, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for rate in (1e-5, 1e-4, 1e-3, 1e-2):
        for epochs in ("2", "8"):
            settings = {"lr": rate, "epochs": epochs}
            study.add_trial(optuna.trial.create_trial(params=settings, distributions=SPACE, value=quality(settings)))
    trial = study.ask(SPACE)  # the start is among them, and is not played again
    assert sampler.proposal is not None
    assert trial.params["lr"] > 1e-4


@pytest.mark.parametrize(
    ("value", "distribution", "wanted"),
    [
        (1e-3, LogUniformDistribution(1e-5, 1e-1), [0.5]),
        ("8", CategoricalDistribution(["1", "2", "8"]), [1.0]),
        (True, CategoricalDistribution([True, False]), [0.3 * math.sqrt(0.5), 0.0]),
        ("x", CategoricalDistribution(["x"]), [0.3 * math.sqrt(0.5)]),
        (1.0, CategoricalDistribution([1.0]), [0.0]),
    ],
)
def test_coordinates(value, distribution, wanted):
    assert coordinates(value, distribution) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "distribution", "wanted"),
    [
        ("4", IntUniformDistribution(1, 9, step=2), None),
        ("5", IntUniformDistribution(1, 9, step=2), 5),
        ("5.0", IntUniformDistribution(1, 9), 5),
        ("2.5", IntUniformDistribution(1, 9), None),
        ("10", IntUniformDistribution(1, 9), None),
        ("0.1", DiscreteUniformDistribution(0.05, 0.45, 0.1), None),
        ("0.15", DiscreteUniformDistribution(0.05, 0.45, 0.1), 0.15),
        ("0.15000000000000002", DiscreteUniformDistribution(0.05, 0.45, 0.1), 0.15000000000000002),
        ("1.7", UniformDistribution(1, 2), 1.7),
        ("nan", UniformDistribution(1, 2), None),
        ("auto", UniformDistribution(1, 2), None),
    ],
)
def test_a_typed_value_is_taken_where_it_can_be_drawn(text, distribution, wanted):
    assert taken(text, distribution) == wanted


@pytest.mark.parametrize(
    "distribution", [DiscreteUniformDistribution(0.12345, 0.92345, 0.1), UniformDistribution(0.123456, 0.123464)]
)
def test_what_is_drawn_stays_in_its_range_with_few_digits(distribution):
    sampler = SafeSampler({"beta": distribution}, {"beta": distribution.low}, allowed_loss=0.5, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.tell(study.ask(sampler.space), 0.0)
    for _ in range(5):
        drawn = sampler.sample_independent(study, study.trials[0], "beta", distribution)
        assert contains(distribution, drawn), drawn
