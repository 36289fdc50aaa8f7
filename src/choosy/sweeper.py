"""Searches for better settings with Hydra's -m: one run after another, inside a safe region."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

import choosy.start as start
from choosy.files import replacing
from choosy.terminal import say

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

    from choosy.reporting.courses import Course
    from choosy.safe_search import SafeSampler

OF_ONE_SEARCH = ("seed", "objective", "target_win_rate", "experiment")  # what may differ between comparable runs
STOPS = "callbacks.least_quality"  # ends a run below the least quality that the search writes behind it
AFTER = f"{STOPS}.after"
NEEDS_OPTUNA = "A search needs Optuna: pip install 'choosy-tuning[cluster]'"


def register() -> None:
    """Let Hydra find the sweeper, in the only package of which it takes any, and our launchers without a warning."""
    warnings.filterwarnings("ignore", message=r"\s+'hydra/launcher/submitit_\w+' is validated against ConfigStore")
    Plugins.instance().register(SafeSweeper)
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))  # there is none without the extra
    sys.modules[SafeSweeper.__module__] = sys.modules[__name__]


@dataclass
class Search:
    """What a search is about, and what it has come to.

    Attributes:
        fixed: What was typed for every run.
        space: The options that are searched.
        sampler: Chooses their values.
        study: The runs.
        spent: What they have cost, without those of earlier sweeps.
        poor: How many of the latest were expected to gain too little.
        stopped: How many were stopped before their last round.
    """

    fixed: list[str]
    space: Mapping[str, BaseDistribution]
    sampler: SafeSampler
    study: Study
    spent: float = 0.0
    poor: int = 0
    stopped: int = 0


class SafeSweeper(Sweeper):
    """Plays the start, then what promises the most for its cost among the settings that are safe.

    Args:
        params: The options that are searched, as Hydra writes sweeps.
        allowed_loss: How much lower than the start's a run's quality may be.
        confidence: With which a run is predicted to keep to that.
        n_trials: Most runs.
        budget: Most that they may cost together; None = no limit.
        label_price: What a label costs.
        hour_price: What an hour of the machine costs.
        least_gain: An expected improvement below it does not count.
        patience: Runs one after another that are expected to gain less, after which the search stops.
        earlier: Files that `choosy compare` has written on earlier sweeps; their runs count as played.
    """

    __module__ = "hydra_plugins.choosy"

    def __init__(
        self,
        params: Mapping[str, Any] | None,
        allowed_loss: float,
        confidence: float,
        n_trials: int,
        budget: float | None,
        label_price: float,
        hour_price: float,
        least_gain: float,
        patience: int,
        earlier: Sequence[str],
    ) -> None:
        if not allowed_loss > 0:
            raise ValueError(f"hydra.sweeper.allowed_loss={allowed_loss:g}: with no loss allowed nothing can be tried.")
        if not 0.5 <= confidence < 1:
            raise ValueError(f"hydra.sweeper.confidence={confidence:g} is not in the range from 0.5 to below 1.")
        if not all(0 <= price < math.inf for price in (label_price, hour_price)) or label_price == hour_price == 0:
            raise ValueError("Type what a run costs: hydra.sweeper.label_price=... or hydra.sweeper.hour_price=...")
        self.params, self.allowed_loss, self.confidence = params or {}, allowed_loss, confidence
        self.n_trials, self.budget, self.prices = n_trials, budget, (label_price, hour_price)
        self.least_gain, self.patience, self.earlier = least_gain, patience, earlier

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra has composed."""
        self.composition, self.loader = config, hydra_context.config_loader
        self.starts: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Play runs until none promises enough, or the budget is spent."""
        logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna imports it, and it tells of its parts
        try:
            import optuna
        except ModuleNotFoundError:
            raise ValueError(NEEDS_OPTUNA) from None
        optuna.logging.set_verbosity(logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of add_trial, which Optuna 3 has kept
        search = self.begin(arguments)
        number = 0
        while not (why := self.reason_to_stop(search, number)):
            trial = self.ask(search, number)
            if why := self.reason_not_to_play(search):
                break
            self.play(search, trial, number)
            number += 1
        self.end(search, number, why)

    def begin(self, arguments: Sequence[str]) -> Search:
        """Read what is searched, from where, and what earlier sweeps have shown."""
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override as distribution

        from choosy.safe_search import SafeSampler

        parser = OverridesParser.create(config_loader=self.loader)
        typed, params = map(parser.parse_overrides, ([*arguments], [f"{n}={v}" for n, v in self.params.items()]))
        space = {one.get_key_element(): distribution(one) for one in [*params, *typed] if one.is_sweep_override()}
        if not space:
            raise ValueError("Nothing is searched: type such as 'hydra.sweeper.params={lr:\"interval(1e-5,1e-3)\"}'")
        if isinstance(self.composition.seed, str) or "seed" in space:
            raise ValueError("The search gives each run a seed of its own: type one seed, which is the first.")
        last = {one.get_key_element(): str(one.input_line) for one in typed if not one.is_sweep_override()}
        fixed = [*last.values()]  # an arm's words are sorted: none may stand twice
        here = self.composed(fixed)
        if here.objective != "quality":
            raise ValueError(f"This search maximises the quality, not objective={here.objective}: leave that out.")
        sampler = SafeSampler(
            space,
            settings_in(here, space),
            allowed_loss=self.allowed_loss,
            confidence=self.confidence,
            stops="rounds" not in space and bool(here.callbacks.get("least_quality")),
            seed=int(here.seed),
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        search = Search(fixed, space, sampler, study)
        for path in self.earlier:
            self.add_earlier(search, path)
        return search

    def composed(self, words: Sequence[str]) -> DictConfig:
        """The configuration of a run for which some words are typed."""
        name = self.composition.hydra.job.config_name
        folders = [word for word in self.composition.hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
        cfg = self.loader.load_configuration(name, [*folders, *words], run_mode=RunMode.RUN)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        start.without_nulls(cfg)
        start.without_replaced(cfg, words)
        return cfg

    def add_earlier(self, search: Search, path: str) -> None:
        """Let the runs of an earlier sweep that differ in the searched options alone count as played.

        Raises:
            ValueError: There is none.
        """
        import optuna

        from choosy.methods.stopping import falls_short
        from choosy.reporting.earlier import read_compared

        listed = read_compared(path)
        found = [run for run in listed if run.course.finished]  # the quality of others is that of fewer rounds
        unfinished = f"; unfinished, and left out: {len(listed) - len(found)}" if len(found) < len(listed) else ""
        here = named_leaves(self.composed([*search.fixed, *typed_as(search.sampler.start)]))
        kept, others = 0, set[str]()
        arms: dict[tuple[str, ...], tuple[dict[str, Any], list[str]]] = {}
        for run in found:
            if run.words not in arms:
                arms[run.words] = self.compared_with(here, run.words, search)
            settings, differing = arms[run.words]
            others |= {*differing}
            if differing:
                continue
            curve = run.course.quality[1:]
            stopped = falls_short(curve, least_of(run.words))
            search.study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE,
                    params=settings,
                    distributions=dict(search.space),
                    value=curve[-1],
                    intermediate_values=dict(enumerate(curve, 1)),
                    user_attrs={"cost": self.cost_of(run.course)},
                )
            )
            kept += 1
        differ = f"differ in {', '.join(sorted(others))}" if others else ""
        if not kept:
            raise ValueError(f"No run of {path} is one of this search: they {differ or 'are none'}{unfinished}.")
        left = f"; {len(found) - kept} others {differ}" if others else ""
        say(f"{kept} runs of {path} count as played{left}{unfinished}")

    def compared_with(
        self, here: Mapping[str, Any], words: tuple[str, ...], search: Search
    ) -> tuple[dict[str, Any], list[str]]:
        """The searched options of a run for which some words were typed, and the names of others that differ."""
        settings = settings_in(self.composed(words), search.space, strict=False)
        if missing := [name for name, value in settings.items() if value is None]:
            return settings, missing
        rest = [word for word in words if word.lstrip("+").partition("=")[0] not in search.space]
        there = named_leaves(self.composed([*rest, *typed_as(search.sampler.start)]))
        return settings, sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))

    def ask(self, search: Search, number: int) -> Trial:
        """The next run; one that was begun or played before a kill has the settings that it had."""
        from choosy.reporting.sweeps import words_of

        total = self.budget or self.n_trials
        search.sampler.share_left = max(0.0, 1 - (search.spent if self.budget else number) / total)
        if words := words_of(self.folder(number)):
            found = dict(word.partition("=")[::2] for word in words)
            settings = {name: taken(found.get(name, ""), one) for name, one in search.space.items()}
            if None in settings.values():
                raise ValueError(
                    f"{self.folder(number)} is a run of another search: type such as hydra.sweep.dir=multirun/mine."
                )
            search.study.enqueue_trial(settings)
        trial = search.study.ask(dict(search.space))
        proposal = search.sampler.proposal
        search.poor = search.poor + 1 if proposal and proposal.gain < self.least_gain else 0
        if words:
            search.sampler.proposal, search.sampler.least = None, least_of(words)  # others were made, and not taken
        return trial

    def play(self, search: Search, trial: Trial, number: int) -> None:
        """Play a run, and keep what it has reached and cost."""
        from optuna.trial import TrialState

        from choosy.methods.stopping import falls_short
        from choosy.reporting.summary import read_run
        from choosy.reporting.sweeps import course

        if proposal := search.sampler.proposal:
            say(f"Predicted: quality {proposal.quality:.3g}, likely above {proposal.low:.3g}, cost {proposal.cost:.4g}")
        words = [word for word in search.fixed if not word.startswith("seed=")]
        words += [*typed_as(trial.params), f"seed={int(self.composition.seed) + number}"]
        if least := search.sampler.least:
            words.append(f"{AFTER}=[{','.join(f'{one:.4g}' for one in least)}]")
        (job,) = self.starts.launch([words], initial_job_idx=number)
        job.return_value  # noqa: B018  # raises what the job has raised
        found = course(read_run(self.folder(number)))
        trial.set_user_attr("cost", cost := self.cost_of(found))
        for played, quality in enumerate(curve := found.quality[1:], 1):
            trial.report(quality, played)
        if falls_short(curve, least_of(words)):
            search.stopped += 1
            search.study.tell(trial, state=TrialState.PRUNED)
        else:
            search.study.tell(trial, curve[-1])
        search.spent += cost

    def folder(self, number: int) -> Path:
        """Where a run is played."""
        return Path(self.composition.hydra.sweep.dir) / str(number)

    def cost_of(self, run: Course) -> float:
        """What a run has cost."""
        from choosy.reporting.compare import UnitPrices, with_money

        return with_money(run, UnitPrices(*self.prices)).spent["money"][-1]

    def reason_to_stop(self, search: Search, number: int) -> str:
        """Why no further run is chosen; "" if one is."""
        if number >= self.n_trials:
            return f"hydra.sweeper.n_trials={self.n_trials} are played"
        if self.budget is not None and search.spent >= self.budget:
            return f"hydra.sweeper.budget={self.budget:g} is spent"
        if search.poor >= self.patience:
            return f"no safe settings were expected to gain {self.least_gain:g} in the last {search.poor} runs"
        return ""

    def reason_not_to_play(self, search: Search) -> str:
        """Why the run that was chosen is not played; "" if it is."""
        proposal = search.sampler.proposal
        if proposal and self.budget is not None and search.spent + proposal.cost > self.budget:
            return f"the next run would exceed hydra.sweeper.budget={self.budget:g}"
        return ""

    def end(self, search: Search, played: int, why: str) -> None:
        """Print and write the best settings."""
        settings, quality = search.sampler.best(search.study)
        at_start = float(search.sampler.predicted(search.study, [search.sampler.start])[0])
        result = {
            "name": "choosy",
            "best_params": settings,
            "best_value": quality,
            "start_params": search.sampler.start,
            "start_value": at_start,
            "trials": played,
            "trials_stopped": search.stopped,
            "cost": search.spent,
            "stopped": why,
        }
        with replacing(Path(self.composition.hydra.sweep.dir) / "optimization_results.yaml") as unfinished:
            unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(result)), encoding="utf-8")
        stopped = f", {search.stopped} of them stopped early," if search.stopped else ""
        say(
            f"Best: {' '.join(typed_as(settings))}, whose quality is predicted to be {quality:.3g}; the start's is "
            f"{at_start:.3g}. {played} runs{stopped} cost {search.spent:.4g}; {why}."
        )


def typed_as(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are typed."""
    return [f"{name}={value}" for name, value in settings.items()]


def least_of(words: Iterable[str]) -> tuple[float, ...]:
    """The least quality after each round that was typed for a run; none if it could not be stopped.

    Example:
        >>> least_of(["lr=1e-4", "callbacks.least_quality.after=[-inf,0.25]"]), least_of(["lr=1e-4"])
        ((-inf, 0.25), ())
    """
    after = dict(word.partition("=")[::2] for word in words).get(AFTER, "").strip("[]")
    return tuple(float(one) for one in after.split(",") if one)


def named_leaves(cfg: DictConfig) -> dict[str, Any]:
    """The options of a run that have to be the same in comparable runs, with interpolations as they are written."""
    from choosy.options.parts import leaves
    from choosy.reporting.sweeps import OF_ONE_RUN

    own = (*OF_ONE_RUN, *OF_ONE_SEARCH)
    found = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    return {name: value for name, value in found.items() if name not in own and not name.startswith(STOPS)}


def settings_in(cfg: DictConfig, space: Mapping[str, BaseDistribution], *, strict: bool = True) -> dict[str, Any]:
    """The values of the searched options in a configuration; None for one that is not in its range.

    Raises:
        ValueError: There is such an option, where a strict reading is wanted.
    """
    from choosy.reporting.sweeps import value_in

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    values = {name: value_in(config, name) for name in space}
    settings = {name: taken(values[name], one) for name, one in space.items()}
    if strict and (outside := [name for name, value in settings.items() if value is None]):
        name = outside[0]
        raise ValueError(
            f"The search starts from {name}={values[name]}, which hydra.sweeper.params.{name} does not contain: type "
            f"another {name}=..., or a search that contains it."
        )
    return settings


def taken(text: str, distribution: Any) -> Any:
    """The value of an option that a text stands for; None if there is no such value."""
    from choosy.safe_search import contains, is_number

    number = float(text) if is_number(text) else math.nan
    if choices := getattr(distribution, "choices", ()):
        numbers = {float(one): one for one in choices if is_number(one)}
        return {str(one): one for one in choices}.get(text, numbers.get(number))
    if not distribution.low <= number <= distribution.high:
        return None
    value = type(distribution.low)(number)
    return value if value == number and contains(distribution, value) else None
