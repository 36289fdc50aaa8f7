"""Gives Optuna a sampler of settings that stays inside a safe region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from choosy.methods.safe_region import Proposal, Shown, propose, quality_of
from choosy.methods.stopping import growth, least_quality

Space = Mapping[str, BaseDistribution]
Settings = dict[str, Any]
DRAWS = 1000  # candidates from the whole space, and as many near the start and the best settings
APART = 0.3  # from each other lie choices that are no numbers; the ends of a range have the distance 1
DIGITS = 4  # of a number that is proposed


class SafeSampler(BaseSampler):
    """Samples the start, then what teaches the most for its cost inside the safe region.

    A trial may report its quality after each of its rounds, of which all have as many as the start; one that was
    stopped before the last of them has the state PRUNED. What a trial has cost stands in its user attribute `cost`,
    which is 1 where it is missing. The study maximises.

    Attributes:
        proposal: What was predicted of the latest settings; None of the start, which is not chosen.
        least: The quality after each of its rounds but the last below which the latest trial is to be stopped.
        share_left: The share of the budget that is left: the less, the less a high cost matters.
    """

    def __init__(
        self,
        space: Space,
        start: Settings,
        *,
        allowed_loss: float,
        confidence: float = 0.9,
        stops: bool = False,
        seed: int | None = None,
    ) -> None:
        """Keep what is searched.

        Args:
            space: The options and their ranges.
            start: The settings that are known to be good enough.
            allowed_loss: How much worse than the start a run may be.
            confidence: With which a run is predicted to keep to that.
            stops: Whether trials can be stopped after a round.
            seed: Of what is drawn.
        """
        self.space, self.start = dict(space), start
        self.allowed_loss, self.confidence, self.stops = allowed_loss, confidence, stops
        self.random = RandomSampler(seed)
        self.draw = np.random.default_rng(seed)
        self.proposal: Proposal | None = None
        self.least: tuple[float, ...] = ()
        self.share_left = 1.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All options are chosen together."""
        return self.space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Settings:
        """Choose the settings of the next trial."""
        self.proposal, self.least = None, ()
        done = self.known(study)
        if not any(one.params == self.start for one in done):
            return self.start
        shown, forecast = self.shown(done), self.forecast(done)
        best = done[int(shown.quality_N.argmax())].params
        candidates = self.candidates(study, trial, [one.params for one in done], best)
        self.proposal = propose(
            shown,
            np.array([self.at(settings) for settings in candidates]),
            allowed_loss=self.allowed_loss,
            confidence=self.confidence,
            rounds=len(forecast[0]) + 1,
            cost_power=self.share_left,
        )
        self.least = self.least_quality(shown, self.proposal, forecast)
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
        done = [one.params for one in self.known(study)]
        quality = self.predicted(study, done)
        return done[int(quality.argmax())], float(quality.max())

    def predicted(self, study: Study, some: Sequence[Settings]) -> np.ndarray:
        """The predicted quality of settings."""
        posterior = quality_of(self.shown(self.known(study)), self.at(self.start), self.allowed_loss)
        return posterior.predict(np.array([self.at(settings) for settings in some]))[0]

    def known(self, study: Study) -> list[FrozenTrial]:
        """The trials whose end is known or can be forecast."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        stopped = range(1, self.rounds(done))
        return [one for one in done if one.state == TrialState.COMPLETE or len(curve_of(one)) in stopped]

    def rounds(self, done: Sequence[FrozenTrial]) -> int:
        """After how many rounds, the last one included, a trial can be stopped: those of the start."""
        of_start = [one for one in done if self.stops and one.state == TrialState.COMPLETE and one.params == self.start]
        return max((len(curve_of(one)) for one in of_start), default=1)

    def shown(self, done: Sequence[FrozenTrial]) -> Shown:
        """What the trials have shown; one that was stopped counts with the forecast of its end."""
        curves, rounds = [curve_of(one) for one in done], self.rounds(done)
        growth_R, doubt_R = (np.append(each_R, 0.0) for each_R in self.forecast(done))
        at = [len(curve) - 1 if one.state == TrialState.PRUNED else -1 for one, curve in zip(done, curves, strict=True)]
        shares = [1.0 if last < 0 else (last + 1) / rounds for last in at]
        return Shown(
            np.array([self.at(one.params) for one in done]),
            np.array([curve[-1] for curve in curves]) + growth_R[at],
            doubt_R[at],
            np.array([float(one.user_attrs.get("cost", 1.0)) for one in done]) / shares,
        )

    def forecast(self, done: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
        """How much trials grow from each of their rounds but the last to their end, and the variance of that."""
        complete = [curve_of(one) for one in done if one.state == TrialState.COMPLETE]
        return growth(complete, self.rounds(done), 2 * self.allowed_loss)

    def least_quality(
        self, shown: Shown, proposal: Proposal, forecast: tuple[np.ndarray, np.ndarray]
    ) -> tuple[float, ...]:
        """The quality after each round but the last below which the proposed trial is to be stopped."""
        quality = quality_of(shown, self.at(self.start), self.allowed_loss)
        return least_quality(
            proposal,
            quality.noise,
            forecast,
            best=float(quality.predict(shown.point_ND)[0].max()),
            start=float(quality.predict(self.at(self.start)[None])[0][0]),
            allowed_loss=self.allowed_loss,
            confidence=self.confidence,
        )

    def candidates(self, study: Study, trial: FrozenTrial, tried: list[Settings], best: Settings) -> list[Settings]:
        """The start, then all settings where they are few; else what was tried, and two kinds of draws.

        One is from the whole space, the other changes an option or two of the start or of the best that was tried.
        """
        if (every := grid(self.space)) is not None:
            return [self.start, *(every[i] for i in self.draw.permutation(len(every)))]  # equal gains tie
        drawn = [
            {name: self.sample_independent(study, trial, name, one) for name, one in self.space.items()}
            for _ in range(DRAWS)
        ]
        near = []
        for other in drawn:
            settings = (self.start, best)[int(self.draw.integers(2))]
            names = self.draw.choice(list(self.space), size=min(len(self.space), int(self.draw.integers(1, 3))))
            near.append({**settings, **{str(name): other[name] for name in names}})
        return [self.start, *tried, *drawn, *near]

    def at(self, settings: Settings) -> np.ndarray:
        """The coordinates of settings."""
        return np.concatenate([coordinates(settings[name], one) for name, one in self.space.items()])


def curve_of(trial: FrozenTrial) -> tuple[float, ...]:
    """A trial's quality after each of its rounds; its value alone where it has reported nothing else."""
    reported: dict[int, Any] = trial.intermediate_values or {1: trial.value}
    return tuple(float(value) for _, value in sorted(reported.items()))


def grid(space: Space) -> list[Settings] | None:
    """All settings of a space; None if they are many or not countable."""
    choices: list[tuple[Any, ...]] = [getattr(one, "choices", ()) for one in space.values()]
    if not 0 < math.prod(map(len, choices)) <= DRAWS:
        return None
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


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
