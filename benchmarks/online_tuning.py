"""Does a search inside a safe region find better settings than random search at equal cost? A replay of real runs.

`python benchmarks/online_tuning.py` writes benchmarks/results/online_tuning.json in some minutes. No run is played:
the table is benchmarks/results/evidence/film.jsonl, the runs of the task film with 2 to 22 seeds of each arm. A trial
draws one of the seeds with its settings, and is shown that run's reward and labels round by round; a search that stops
runs pays for the rounds that it has seen. What a search recommends is judged by the mean over all seeds after four
rounds. All searches begin with the start. The sampler is that of experiment=online_tuning with its defaults, which were
tried out on the repeats from 1000 on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, save

from choosy.methods.safe_region import quality_of
from choosy.methods.stopping import falls_short
from choosy.reporting.courses import sign_flip
from choosy.safe_search import SafeSampler, Settings

OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "selector": ("random_pairs", "certainty", "dissimilarity", "predicted_gap", "few_prompts", "spread"),
    "pairing": ("best_worst", "all"),  # of few_prompts and spread, which score all responses of a prompt
    "learned_reward.embedder": ("minilm", "policy"),  # of predicted_gap and spread, which learn a reward
    "loss.beta": (0.1, 0.4),
}
START = {"selector": "random_pairs", "pairing": "best_worst", "learned_reward.embedder": "minilm", "loss.beta": 0.4}
EARLIER = ("random_pairs", "certainty", "dissimilarity")  # whose runs on the tuning seeds are an earlier sweep
SPACE = {name: CategoricalDistribution(choices) for name, choices in OPTIONS.items()}
ALLOWED_LOSS = 0.3
CONFIDENCE = 0.9
ROUNDS = 4
BUDGETS = (1280, 2560, 3840)  # labels; a run of four rounds takes 512
RANDOM = 1000  # random searches whose mean is compared with as well
Run = tuple[tuple[float, ...], tuple[float, ...]]  # quality and labels after each round


def arm_of(settings: Mapping[str, Any]) -> str:
    """The arm whose runs had these settings; options that a selector does not use make no difference to it."""
    selector = settings["selector"]
    policy = "_policy" if settings["learned_reward.embedder"] == "policy" else ""
    every = settings["pairing"] == "all"
    if selector == "few_prompts":
        return selector if every else "best_against_worst"
    if selector == "spread":
        return selector + policy + "_all" * every
    return selector + policy * (selector == "predicted_gap")


class Table:
    """The runs of each arm and beta, by seed."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, float], dict[int, Run]] = defaultdict(dict)
        for line in (RESULTS / "evidence" / "film.jsonl").read_text().splitlines():
            row = json.loads(line)
            beta = float(row["lines"][-1].removeprefix("loss.beta="))
            self.runs[row["arm"], beta][row["seed"]] = (tuple(row["quality"][1:]), tuple(row["labels"][1:]))

    def of(self, settings: Mapping[str, Any]) -> dict[int, Run]:
        """The runs with some settings."""
        return self.runs[arm_of(settings), settings["loss.beta"]]

    def truth(self, settings: Mapping[str, Any]) -> np.ndarray:
        """Their mean quality after each round."""
        found: np.ndarray = np.mean([quality for quality, _ in self.of(settings).values()], axis=0)
        return found


class ByChance(SafeSampler):
    """Draws settings by chance, and stops runs as the search inside the safe region does."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Settings:
        """Draw the settings of the next trial, and predict what comes of them."""
        drawn = super().sample_relative(study, trial, search_space)
        if self.proposal is None:
            return drawn
        drawn = {name: values[self.draw.integers(len(values))] for name, values in OPTIONS.items()}
        done = self.known(study)
        shown = self.shown(done)
        mean, variance = quality_of(shown, self.at(START), ALLOWED_LOSS).predict(self.at(drawn)[None])
        proposal = replace(self.proposal, index=1, quality=float(mean[0]), variance=float(variance[0]))
        self.least = self.least_quality(shown, proposal, self.forecast(done))
        return drawn


SEARCHES: Mapping[str, tuple[type[SafeSampler], bool, float]] = {  # what samples, whether it stops runs, confidence
    "random": (ByChance, False, CONFIDENCE),
    "random, by predicted quality": (ByChance, False, CONFIDENCE),
    "random, runs stopped": (ByChance, True, CONFIDENCE),
    "safe, runs not stopped": (SafeSampler, False, 0.6),
    "safe": (SafeSampler, True, CONFIDENCE),
    "safe, with earlier": (SafeSampler, True, CONFIDENCE),
}


@dataclass
class Played:
    """A search: what it had recommended once it had spent a budget, and the rounds that it had played.

    Attributes:
        spent: Labels after each of its runs.
        recommended: The mean quality of the settings that it then recommended.
        below: For each run, how far the mean quality of its settings is below the start's after each of its rounds.
    """

    spent: list[float] = field(default_factory=list)
    recommended: list[float] = field(default_factory=list)
    below: list[np.ndarray] = field(default_factory=list)

    def within(self, budget: float) -> int:
        """How many runs the budget pays."""
        return int(np.searchsorted(self.spent, budget, side="right"))


def search(table: Table, name: str, repeat: int) -> Played:
    """Play a search over the table."""
    draw = np.random.default_rng([repeat, 7])
    cls, stops, confidence = SEARCHES[name]
    sampler = cls(SPACE, START, allowed_loss=ALLOWED_LOSS, confidence=confidence, stops=stops, seed=repeat)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    if name.endswith("earlier"):
        add_earlier(study, table)
    found, spent = Played(), 0.0
    while spent < BUDGETS[-1]:
        sampler.share_left = 1 - spent / BUDGETS[-1]
        trial = study.ask(SPACE)
        runs = table.of(trial.params)
        quality, labels = runs[draw.choice(sorted(runs))]
        ends = [end for end in range(1, ROUNDS) if falls_short(quality[:end], sampler.least)]
        end = min([*ends, ROUNDS])
        for number in range(end):
            trial.report(quality[number], number + 1)
        trial.set_user_attr("cost", labels[end - 1])
        if end < ROUNDS:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, quality[-1])
        spent += labels[end - 1]
        found.spent.append(spent)
        found.below.append((table.truth(START) - table.truth(trial.params))[:end])
        best = study.best_trial.params if name == "random" else sampler.best(study)[0]
        found.recommended.append(float(table.truth(best)[-1]))
    return found


def add_earlier(study: optuna.Study, table: Table) -> None:
    """Let the runs of an earlier sweep count as played: three arms with two seeds, at both betas."""
    for arm, beta, seed in product(EARLIER, OPTIONS["loss.beta"], (101, 102)):
        settings = {**START, "selector": arm, "loss.beta": beta}
        quality, labels = table.of(settings)[seed]
        study.add_trial(
            optuna.trial.create_trial(
                params=settings,
                distributions=SPACE,
                value=quality[-1],
                intermediate_values=dict(enumerate(quality, 1)),
                user_attrs={"cost": labels[-1]},
            )
        )


def beside(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The mean difference over the repeats, with its 95 % interval and the p value of a sign-flip test."""
    gains = np.array(ours) - np.array(theirs)
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    half = float(student.ppf(0.975, len(gains) - 1)) * error
    mean = float(gains.mean())
    p = sign_flip(gains, np.random.default_rng(0))
    return {"difference": round(mean, 3), "interval": [round(mean - half, 3), round(mean + half, 3)], "p": p}


def shown(found: Mapping[str, Sequence[Played]], budget: int, repeats: int) -> dict[str, Any]:
    """What each search had recommended and risked when it had spent a budget."""
    of_random = [one.recommended[one.within(budget) - 1] for one in found["random"]]
    result: dict[str, Any] = {}
    for name, every in found.items():
        some = every[:repeats]
        ends = [one.within(budget) for one in some]
        best = [one.recommended[end - 1] for one, end in zip(some, ends, strict=True)]
        runs = [below for one, end in zip(some, ends, strict=True) for below in one.below[:end]]
        result[name] = {
            "recommended": round(float(np.mean(best)), 3),
            "runs": round(float(np.mean(ends)), 1),
            "rounds_of_a_run": round(float(np.mean([len(below) for below in runs])), 2),
            "runs_ending_worse_than_allowed": round(float(np.mean([b[-1] > ALLOWED_LOSS for b in runs])), 3),
            "rounds_worse_than_allowed": round(float(np.mean(np.concatenate(runs) > ALLOWED_LOSS)), 3),
        }
        if name != "random":
            result[name]["beside_random"] = beside(best, of_random[:repeats])
            result[name]["beside_mean_of_random"] = beside(best, [float(np.mean(of_random))] * repeats)
    return result


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--repeats", type=int, default=40, help="the first ten are shown apart")
    asked.add_argument("--first", type=int, default=0, help="the first repeat; from others nothing is written")
    typed = asked.parse_args()
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = Table()
    points = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
    truths = [float(table.truth(point)[-1]) for point in points]
    first, repeats = typed.first, typed.repeats
    found: dict[str, list[Played]] = {}
    for name in SEARCHES:
        times = RANDOM if name == "random" else repeats
        found[name] = [search(table, name, repeat) for repeat in range(first, first + times)]
        print(name, [round(one.recommended[-1], 2) for one in found[name][:repeats]], flush=True)
    results = {
        f"{some} repeats": {str(budget): shown(found, budget, some) for budget in BUDGETS}
        for some in sorted({min(10, repeats), repeats})
    }
    if first:
        print(json.dumps(results[f"{repeats} repeats"], indent=1))
        return
    save(
        "online_tuning",
        {
            "what": "a replay over the runs of the task film in benchmarks/results/evidence/film.jsonl",
            "repeats": repeats,
            "random_searches": RANDOM,
            "settings": len(points),
            "runs_in_table": sum(map(len, table.runs.values())),
            "start": {"settings": START, "quality": round(float(table.truth(START)[-1]), 3)},
            "best_of_table": {"settings": points[int(np.argmax(truths))], "quality": round(max(truths), 3)},
            "allowed_loss": ALLOWED_LOSS,
            "confidence": CONFIDENCE,
            "settings_worse_than_allowed": round(
                float(np.mean(np.array(truths) < table.truth(START)[-1] - ALLOWED_LOSS)), 3
            ),
            "at_labels": results,
        },
    )


if __name__ == "__main__":
    main()
