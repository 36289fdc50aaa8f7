"""The tasks on which arms are compared: what is typed for each, and the arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import film
from common import DATA


@dataclass(frozen=True)
class Task:
    """What arms are run on.

    Attributes:
        prepare: Makes the task's files, once, and returns their folder.
        lines: What is typed for every run; `{made}` stands for this folder.
        baseline: The arm that the others are compared with.
        arms: What is typed for each arm besides.
        grid: What is tried for each arm on the seeds for tuning; the best is kept.
        seeds: How many seeds its figures rest on.
    """

    prepare: Callable[[], Path]
    lines: Sequence[str]
    baseline: str
    arms: Mapping[str, Sequence[str]]
    grid: Sequence[Sequence[str]]
    seeds: int


def settings(rates: Sequence[float], betas: Sequence[float]) -> list[list[str]]:
    """A grid of learning rates and betas."""
    return [[f"lr={rate:g}", f"loss.beta={beta:g}"] for rate, beta in product(rates, betas)]


def count(callback: str, number: int) -> list[str]:
    """What is typed for a selector that chooses so many."""
    return [f"callbacks.{callback}.fraction=null", f"callbacks.{callback}.count={number}"]


def pair_arms(pairs: int, responses: int) -> dict[str, list[str]]:
    """The selectors of pairs, each of which labels so many pairs a round, and those that label whole prompts.

    A pair is two labels, so that as many labels score all responses of `2 * pairs / responses` prompts.
    """
    prompts = 2 * pairs // responses
    alone = ("random_pairs", "certainty", "dissimilarity", "d_optimal", "predicted_gap", "length_matched")
    return {
        **{name: [f"selector={name}", *count(name, pairs)] for name in alone},
        "entropy_certainty": ["selector=entropy_certainty", *count("certainty", pairs)],
        "delta_ucb": ["selector=delta_ucb", *count("predicted_gap", pairs)],
        "best_against_worst": [
            "selector=random",
            *count("random_prompts", prompts),
            "callbacks.random_prompts.warmup_rounds=0",
        ],
        "spread": ["selector=spread", *count("spread", prompts), "callbacks.spread.cold=random"],
        "spread_oversampled": [
            "selector=spread_oversampled",
            *count("spread", prompts),
            "callbacks.spread.cold=random",
        ],
        "spread_policy": [
            "selector=spread",
            *count("spread", prompts),
            "callbacks.spread.cold=random",
            "learned_reward.embedder=policy",
        ],
    }


def prompt_arms(share: float) -> dict[str, list[str]]:
    """The selectors of prompts, each of which samples this share of them again in a round."""

    def again(selector: str, callback: str, *more: str) -> list[str]:
        return [f"selector={selector}", f"callbacks.{callback}.fraction={share}", *(more or ["weighting=uniform"])]

    return {
        "full": ["selector=none", "weighting=uniform"],
        "random": again("random", "random_prompts"),
        "optune": again("optune", "optune"),
        "optune_wdpo": again("optune", "optune", "weighting=wdpo"),
        "optune_shrunk": again("optune", "optune", "weighting=uniform", "callbacks.optune.statistic=shrunk"),
        "optune_highest": again("optune", "optune", "weighting=uniform", "callbacks.optune.direction=smallest"),
        "predicted_gain": again("predicted_gain", "predicted_gain"),
    }


TASKS: Mapping[str, Task] = {
    "film": Task(
        lambda: film.prepare(DATA / "movie_sentences.jsonl"),
        film.PAIRS,
        "random_pairs",
        pair_arms(64, 4),
        settings((1e-3,), (0.1, 0.4)),  # 5e-4, 2e-3 and 3e-3, and beta 1, were worse for two arms on seed 101
        20,
    ),
    "film_prompts": Task(
        lambda: film.prepare(DATA / "movie_sentences.jsonl"),
        film.ONLINE,
        "full",
        prompt_arms(0.3),
        settings((1e-4, 3e-4), (0.1, 0.4)),
        20,
    ),
}


def chosen(only: str) -> Iterator[tuple[str, Task]]:
    """The tasks with these names, which have commas between them."""
    for name in only.split(","):
        if name not in TASKS:
            raise SystemExit(f"there is no task {name}; there are {', '.join(TASKS)}")
        yield name, TASKS[name]
