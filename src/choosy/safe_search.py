"""Gives Optuna a sampler of settings that stays inside a safe region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from choosy.methods.safe_region import Proposal, propose, quality_of

Space = Mapping[str, BaseDistribution]
Settings = dict[str, Any]
DRAWS = 1000  # candidates from the whole space, and as many near the start and the best settings
APART = 0.3  # from each other lie choices that are no numbers; the ends of a range have the distance 1
DIGITS = 4  # of a number that is proposed


class SafeSampler(BaseSampler):
    """Samples the start, then what promises the most improvement for its cost inside the safe region.

    What a trial has cost stands in its user attribute `cost`, which is 1 where it is missing. The study maximises.

    Attributes:
        proposal: What was predicted of the latest settings; None of the start, which is not chosen.
        share_left: The share of the budget that is left: the less, the less a high cost matters.
    """

    def __init__(
        self, space: Space, start: Settings, *, allowed_loss: float, confidence: float = 0.8, seed: int | None = None
    ) -> None:
        self.space, self.start = dict(space), start
        self.allowed_loss, self.confidence = allowed_loss, confidence
        self.random = RandomSampler(seed)
        self.draw = np.random.default_rng(seed)
        self.proposal: Proposal | None = None
        self.share_left = 1.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All options are chosen together."""
        return self.space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Settings:
        """Choose the settings of the next trial."""
        self.proposal = None
        done = finished(study)
        if not any(one.params == self.start for one in done):
            return self.start
        point_ND, quality_N = self.observed(done)
        candidates = self.candidates(study, trial, [one.params for one in done], point_ND, quality_N)
        self.proposal = propose(
            point_ND,
            quality_N,
            np.array([float(one.user_attrs.get("cost", 1.0)) for one in done]),
            np.array([self.at(settings) for settings in candidates]),
            allowed_loss=self.allowed_loss,
            confidence=self.confidence,
            cost_power=self.share_left,
        )
        return candidates[self.proposal.index]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw an option by chance."""
        value = self.random.sample_independent(study, trial, param_name, param_distribution)
        short = rounded(value)
        return short if contains(param_distribution, short) else value

    def best(self, study: Study) -> tuple[Settings, float]:
        """The settings of the trial with the highest predicted quality, which one lucky run does not decide."""
        done = [one.params for one in finished(study)]
        quality = self.predicted(study, done)
        return done[int(quality.argmax())], float(quality.max())

    def predicted(self, study: Study, some: Sequence[Settings]) -> np.ndarray:
        """The predicted quality of settings."""
        point_ND, quality_N = self.observed(finished(study))
        posterior = quality_of(point_ND, quality_N, self.at(self.start), self.allowed_loss)
        return posterior.predict(np.array([self.at(settings) for settings in some]))[0]

    def observed(self, done: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
        """The settings of the trials as points, and their qualities."""
        return np.array([self.at(one.params) for one in done]), np.array([one.value for one in done])

    def candidates(
        self, study: Study, trial: FrozenTrial, tried: list[Settings], point_ND: np.ndarray, quality_N: np.ndarray
    ) -> list[Settings]:
        """The start, then what was not tried: draws from the whole space, draws that change an option or two of others.

        Settings that were played are left out: what they are expected to gain would be the noise of one run.
        """
        drawn = [
            {name: self.sample_independent(study, trial, name, one) for name, one in self.space.items()}
            for _ in range(DRAWS)
        ]
        near = []
        for other in drawn:
            settings = (self.start, tried[int(quality_N.argmax())])[int(self.draw.integers(2))]
            names = self.draw.choice(list(self.space), size=min(len(self.space), int(self.draw.integers(1, 3))))
            near.append({**settings, **{str(name): other[name] for name in names}})
        return [self.start, *(settings for settings in (*drawn, *near) if settings not in tried)]

    def at(self, settings: Settings) -> np.ndarray:
        """The coordinates of settings."""
        return np.concatenate([coordinates(settings[name], one) for name, one in self.space.items()])


def finished(study: Study) -> list[FrozenTrial]:
    """The trials whose quality is known."""
    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution, which may have steps, has a value; Optuna replaces any other by a random one."""
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def rounded(value: Any) -> Any:
    """A number with few digits, which can be typed."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def coordinates(value: Any, distribution: Any) -> list[float]:
    """A value of an option between 0 and 1, on a log scale where it is drawn from one.

    Choices that are numbers lie in their order, others at equal distances from each other.

    Example:
        >>> coordinates(4, CategoricalDistribution([1, 4, 64])), coordinates("b", CategoricalDistribution(["a", "b"]))
        ([0.5], [0.0, 0.21213203435596426])
    """
    if isinstance(distribution, CategoricalDistribution):
        choices: tuple[Any, ...] = tuple(distribution.choices)
        if all(is_number(choice) for choice in choices):
            ordered = sorted(float(choice) for choice in choices)
            return [ordered.index(float(value)) / max(1, len(ordered) - 1)]
        return [APART * math.sqrt(0.5) * (choice == value) for choice in choices]
    logarithmic = "Log" in type(distribution).__name__ or getattr(distribution, "log", False)  # Optuna 2, later ones
    low, high, at = (math.log(x) if logarithmic else float(x) for x in (distribution.low, distribution.high, value))
    return [(at - low) / (high - low) if high > low else 0.0]


def is_number(choice: Any) -> bool:
    """Whether a choice is a number, or one in quotes, and not true or false."""
    try:
        float(choice)
    except (TypeError, ValueError):
        return False
    return not isinstance(choice, bool)
