"""Does a search inside a safe region find better settings than random search at equal cost? A replay of real runs.

`python benchmarks/online_tuning.py` writes benchmarks/results/online_tuning.json in some minutes. No run is played:
the table is benchmarks/results/evidence/film.jsonl, the runs of the task film with 2 to 22 seeds of each arm. A trial
draws one of the seeds with its settings, and is shown that run's reward and labels. What a search recommends is judged
by the mean over all seeds. All searches begin with the start, and the sampler is that of experiment=online_tuning,
which was tried out on other repeats.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, save

from choosy.reporting.courses import sign_flip
from choosy.safe_search import SafeSampler

OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "selector": ("random_pairs", "certainty", "dissimilarity", "predicted_gap", "few_prompts", "spread"),
    "pairing": ("best_worst", "all"),  # of few_prompts and spread, which score all responses of a prompt
    "learned_reward.embedder": ("minilm", "policy"),  # of predicted_gap and spread, which learn a reward
    "loss.beta": (0.1, 0.4),
    "rounds": (1, 2, 3, 4),  # a run of four rounds is also one of fewer
}
START = {"selector": "random_pairs", "pairing": "best_worst", "learned_reward.embedder": "minilm"} | {
    "loss.beta": 0.4,
    "rounds": 2,
}
EARLIER = ("random_pairs", "certainty", "dissimilarity")  # whose runs on the tuning seeds are an earlier sweep
SPACE = {name: CategoricalDistribution(choices) for name, choices in OPTIONS.items()}
ALLOWED_LOSS = 0.3
BUDGETS = (1280, 2560, 3840)  # labels; a run of four rounds takes 512
Run = tuple[float, float]  # quality, labels


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
    """The runs of each arm, beta and number of rounds, by seed."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, float, int], dict[int, Run]] = defaultdict(dict)
        for line in (RESULTS / "evidence" / "film.jsonl").read_text().splitlines():
            row = json.loads(line)
            beta = float(row["lines"][-1].removeprefix("loss.beta="))
            for rounds in OPTIONS["rounds"]:
                self.runs[row["arm"], beta, rounds][row["seed"]] = (row["quality"][rounds], row["labels"][rounds])

    def of(self, settings: Mapping[str, Any]) -> dict[int, Run]:
        """The runs with some settings."""
        return self.runs[arm_of(settings), settings["loss.beta"], settings["rounds"]]

    def truth(self, settings: Mapping[str, Any]) -> float:
        """Their mean quality."""
        return float(np.mean([quality for quality, _ in self.of(settings).values()]))


@dataclass
class Played:
    """A search: what it had recommended once it had spent a budget, and the runs that it had played."""

    spent: list[float] = field(default_factory=list)
    recommended: list[float] = field(default_factory=list)
    played: list[float] = field(default_factory=list)

    def within(self, budget: float) -> int:
        """How many runs the budget pays."""
        return int(np.searchsorted(self.spent, budget, side="right"))


def search(table: Table, name: str, repeat: int) -> Played:
    """Play a search over the table."""
    draw = np.random.default_rng([repeat, 7])
    confidence = 0.7 if name == "safe, confidence 0.7" else 0.8
    safe = SafeSampler(SPACE, START, allowed_loss=ALLOWED_LOSS, confidence=confidence, seed=repeat)
    by_chance = name == "random"
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(repeat) if by_chance else safe
    )
    if name.endswith("earlier"):
        add_earlier(study, table)
    found, spent = Played(), 0.0
    while spent < BUDGETS[-1]:
        safe.share_left = 1 - spent / BUDGETS[-1]
        if not found.spent:
            study.enqueue_trial(START)
        trial = study.ask(SPACE)
        runs = table.of(trial.params)
        quality, cost = runs[draw.choice(sorted(runs))]
        trial.set_user_attr("cost", cost)
        study.tell(trial, quality)
        spent += cost
        found.spent.append(spent)
        found.played.append(table.truth(trial.params))
        best = study.best_trial.params if by_chance else safe.best(study)[0]
        found.recommended.append(table.truth(best))
    return found


def add_earlier(study: optuna.Study, table: Table) -> None:
    """Let the runs of an earlier sweep count as played: three arms with two seeds, at both betas."""
    for arm, beta, seed in product(EARLIER, OPTIONS["loss.beta"], (101, 102)):
        settings = {**START, "selector": arm, "loss.beta": beta, "rounds": 4}
        quality, cost = table.of(settings)[seed]
        study.add_trial(
            optuna.trial.create_trial(params=settings, distributions=SPACE, value=quality, user_attrs={"cost": cost})
        )


def beside(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The mean difference over the repeats, with its 95 % interval and the p value of a sign-flip test."""
    gains = np.array(ours) - np.array(theirs)
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    half = float(student.ppf(0.975, len(gains) - 1)) * error
    mean = float(gains.mean())
    p = sign_flip(gains, np.random.default_rng(0))
    return {"difference": round(mean, 3), "interval": [round(mean - half, 3), round(mean + half, 3)], "p": p}


def shown(table: Table, found: Mapping[str, Sequence[Played]], budget: int) -> dict[str, Any]:
    """What each search had recommended and risked when it had spent a budget."""
    least = table.truth(START) - ALLOWED_LOSS
    result: dict[str, Any] = {}
    for name, repeats in found.items():
        ends = [one.within(budget) for one in repeats]
        best = [one.recommended[end - 1] for one, end in zip(repeats, ends, strict=True)]
        played = [quality for one, end in zip(repeats, ends, strict=True) for quality in one.played[:end]]
        result[name] = {
            "recommended": round(float(np.mean(best)), 3),
            "runs": round(float(np.mean(ends)), 1),
            "mean_of_runs": round(float(np.mean(played)), 3),
            "worse_than_allowed": round(float(np.mean(np.array(played) < least)), 3),
        }
        if name != "random":
            random = [one.recommended[one.within(budget) - 1] for one in found["random"]]
            result[name]["beside_random"] = beside(best, random)
    return result


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--repeats", type=int, default=40, help="the first ten are shown apart")
    typed = asked.parse_args()
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = Table()
    points = [dict(zip(OPTIONS, values, strict=True)) for values in product(*OPTIONS.values())]
    truths = [table.truth(point) for point in points]
    found: dict[str, list[Played]] = {}
    for name in ("random", "safe", "safe, confidence 0.7", "safe, with earlier"):
        found[name] = [search(table, name, repeat) for repeat in range(typed.repeats)]
        print(name, [round(one.recommended[-1], 2) for one in found[name]], flush=True)
    save(
        "online_tuning",
        {
            "what": "a replay over the runs of the task film in benchmarks/results/evidence/film.jsonl",
            "repeats": typed.repeats,
            "settings": len(points),
            "runs_in_table": len({id(run) for runs in table.runs.values() for run in runs.values()}),
            "start": {"settings": START, "quality": round(table.truth(START), 3)},
            "best_of_table": {"settings": points[int(np.argmax(truths))], "quality": round(max(truths), 3)},
            "allowed_loss": ALLOWED_LOSS,
            "settings_worse_than_allowed": round(
                float(np.mean(np.array(truths) < table.truth(START) - ALLOWED_LOSS)), 3
            ),
            "at_labels": {
                f"{repeats} repeats": {
                    str(budget): shown(table, {name: one[:repeats] for name, one in found.items()}, budget)
                    for budget in BUDGETS
                }
                for repeats in sorted({min(10, typed.repeats), typed.repeats})
            },
        },
    )


if __name__ == "__main__":
    main()
