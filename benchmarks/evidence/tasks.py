"""The tasks on which arms are compared: what is typed for each, and the arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import chat
import film
import harmless
import pools
from sources import Source, film_sentences, human_choices, scored_answers


@dataclass(frozen=True)
class Task:
    """What arms are run on.

    Attributes:
        source: Finds the data, of a file that is typed or of none.
        prepare: Makes the task's files of them, once, and returns their folder.
        lines: What is typed for every run; `{made}` stands for this folder.
        baseline: The arm that the others are compared with.
        arms: What is typed for each arm besides.
        grid: What is tried for each arm on the seeds for tuning; the best is kept. One point is taken as it is.
        seeds: How many seeds its figures rest on.
    """

    source: Callable[[Path | None], Source]
    prepare: Callable[[Source], Path]
    lines: Sequence[str]
    baseline: str
    arms: Mapping[str, Sequence[str]]
    grid: Sequence[Sequence[str]]
    seeds: int


def settings(rates: Sequence[float], betas: Sequence[float]) -> list[list[str]]:
    """A grid of learning rates and betas."""
    return [[f"lr={rate:g}", f"loss.beta={beta:g}"] for rate, beta in product(rates, betas)]


OWN = "learned_reward.embedder=policy"
ALL = "pairing=all"


def count(callback: str, number: int) -> list[str]:
    """What is typed for a selector that chooses so many."""
    return [f"callbacks.{callback}.fraction=null", f"callbacks.{callback}.count={number}"]


def choose_pairs(pairs: int, *names: str) -> dict[str, list[str]]:
    """Selectors that label so many pairs a round, each by a callback of its own name."""
    return {name: [f"selector={name}", *count(name, pairs)] for name in names}


def score_prompts(prompts: int) -> dict[str, list[str]]:
    """Those that score all responses to so many prompts a round, and train on best against worst or on all pairs."""
    first = "callbacks.spread.cold=random"
    by_chance = ["selector=few_prompts", *count("random_prompts", prompts)]
    spread = ["selector=spread", *count("spread", prompts), first]
    oversampled = ["selector=spread_oversampled", *count("spread", prompts), first]
    return {
        "best_against_worst": by_chance,
        "spread": spread,
        "spread_oversampled": oversampled,
        "spread_policy": [*spread, OWN],
        "spread_oversampled_policy": [*oversampled, OWN],
        "few_prompts": [*by_chance, ALL],
        "spread_all": [*spread, ALL],
        "spread_oversampled_all": [*oversampled, ALL],
        "spread_policy_all": [*spread, OWN, ALL],
        "spread_oversampled_policy_all": [*oversampled, OWN, ALL],
    }


def pair_arms(pairs: int, responses: int) -> dict[str, list[str]]:
    """The selectors of pairs, each of which labels so many pairs a round, and those that label whole prompts.

    A pair is two labels, so that as many labels score all responses of `2 * pairs / responses` prompts.
    """
    own = ("random_pairs", "certainty", "dissimilarity", "d_optimal", "predicted_gap", "length_matched")
    return {
        **choose_pairs(pairs, *own),
        "random_longer": [
            "selector=random_pairs",
            *count("random_pairs", pairs),
            "epochs_per_round=24",  # about as many steps as with all pairs of four responses
        ],
        "entropy_certainty": ["selector=entropy_certainty", *count("certainty", pairs)],
        "delta_ucb": ["selector=delta_ucb", *count("predicted_gap", pairs)],
        "predicted_gap_oversampled": ["selector=predicted_gap_oversampled", *count("predicted_gap", pairs)],
        "predicted_gap_policy": ["selector=predicted_gap", *count("predicted_gap", pairs), OWN],
        "dissimilarity_policy": [
            "selector=dissimilarity",
            *count("dissimilarity", pairs),
            "callbacks.dissimilarity.embedder=policy",
        ],
        "predicted_gap_random": [
            "selector=predicted_gap",
            *count("predicted_gap", pairs),
            "callbacks.predicted_gap.cold=random",
            OWN,
        ],
        "predicted_gap_8": ["selector=predicted_gap", *count("predicted_gap", pairs), OWN, "data.responses=8"],
        "few_prompts_8": [*score_prompts(pairs // 4)["few_prompts"], "data.responses=8"],
        **score_prompts(2 * pairs // responses),
    }


def chat_arms(pairs: int, responses: int) -> dict[str, list[str]]:
    """Those of `pair_arms` that a run of minutes can afford; random pairs are sampled for the prompts labeled alone."""
    alone = ["selector=few_prompts", *count("random_prompts", pairs)]
    arms = pair_arms(pairs, responses)
    kept = ("few_prompts", "best_against_worst", "spread_policy_all", "predicted_gap", "dissimilarity", "certainty")
    return {
        "random": [*alone, "data.responses=2"],
        **{name: [*arms[name], f"data.responses={responses}"] for name in kept},
        "few_prompts_24": [  # as many steps as `random`, each of four prompts and not of one
            *arms["few_prompts"],
            f"data.responses={responses}",
            "batching.batch_size=24",
        ],
        "few_prompts_8": [*arms["few_prompts_8"], "batching.batch_size=16"],  # about as many steps as `few_prompts`
    }


def default_arms() -> dict[str, list[str]]:
    """As many labels of as many responses, to many prompts or to few; all their pairs are trained on."""
    shares = {"random": (2, 0.5), "few_prompts": (4, 0.25), "few_prompts_8": (8, 0.125)}
    return {
        arm: ["selector=few_prompts", f"data.responses={responses}", f"callbacks.random_prompts.fraction={share}"]
        for arm, (responses, share) in shares.items()
    }


def given_arms(pairs: int, answers: int) -> dict[str, list[str]]:
    """Selectors of given pairs; `spread` labels all answers, of which a prompt has about so many."""
    own = ("random_pairs", "certainty", "dissimilarity", "similarity", "d_optimal", "predicted_gap", "length_matched")
    arms = choose_pairs(pairs, *own)
    arms["similarity"] = ["selector=similarity", *count("dissimilarity", pairs)]
    return arms | {"spread": score_prompts(2 * pairs // answers)["spread"]}


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
        "few_prompts": [  # half as many responses as `full`, to new prompts each round, and all their pairs
            *("selector=few_prompts", "weighting=uniform", "data.responses=4", ALL, "train_on=round"),
        ],
    }


def weighted_arms(prompts: int) -> dict[str, list[str]]:
    """The weightings of pairs, which all train on the same pairs in the first round."""
    by_chance = score_prompts(prompts)["best_against_worst"]
    names = ("uniform", "wdpo", "wdpo_linear", "wdpo_normalized", "inverse_gap")
    return {name: [*by_chance, f"weighting={name}"] for name in names}


def predictor_arms(pairs: int) -> dict[str, list[str]]:
    """Labels that are all bought, and labels that a small model gives where it is sure."""
    by_chance = choose_pairs(pairs, "random_pairs")["random_pairs"]
    paid = ["labeler=predictor", "labeler@labeler.paid=function", "labeler.paid.path=film.sentiment"]
    return {"paid": [*by_chance, *film.SCORED], "predictor": [*by_chance, *paid, *film.JUDGED_BY_SCORE]}


def of_pairs(*names: str, responses: int = 4) -> dict[str, list[str]]:
    """Some of the arms that label 64 pairs of a film review's continuations a round."""
    arms = pair_arms(64, responses)
    return {name: [*arms[name], f"data.responses={responses}"] for name in names}


CHAT = (chat.source, chat.prepare)
FILM = (film_sentences, film.prepare)
FILM_GRID = settings((1e-3,), (0.1, 0.4))  # 5e-4, 2e-3 and 3e-3, and beta 1, were worse for two arms on seed 101
COMPARING = (
    "random_pairs",
    "certainty",
    "entropy_certainty",
    "dissimilarity",
    "length_matched",
    "predicted_gap",
    "predicted_gap_random",
    "delta_ucb",
)
SCORING = ("random_pairs", "certainty", "dissimilarity", "predicted_gap", "few_prompts")


def film_pairs(labeler: Sequence[str], arms: Mapping[str, Sequence[str]], *, baseline: str = "random_pairs") -> Task:
    """The task film with another labeler or other arms, on 20 seeds."""
    return Task(*FILM, [*film.PAIRS, *labeler], baseline, arms, FILM_GRID, 20)


TASKS: Mapping[str, Task] = {
    "film": film_pairs(film.SCORED, pair_arms(64, 4)),
    "film_two": film_pairs(film.SCORED, of_pairs(*SCORING, responses=2)),
    "film_eight": film_pairs(film.SCORED, of_pairs(*SCORING, responses=8)),
    "film_verdicts": film_pairs([*film.COMPARED, *film.JUDGED_BY_SCORE], of_pairs(*COMPARING)),
    "film_wrong_verdicts": film_pairs([*film.OFTEN_WRONG, *film.JUDGED_BY_SCORE], of_pairs(*COMPARING)),
    "film_second_judge": film_pairs(
        [*film.SCORED, *film.JUDGED_BY_ANOTHER],
        of_pairs("random_pairs", "dissimilarity", "predicted_gap", "best_against_worst", "few_prompts"),
    ),
    "film_weights": film_pairs(film.SCORED, weighted_arms(32), baseline="uniform"),
    "film_predictor": Task(*FILM, film.PAIRS, "paid", predictor_arms(64), settings((1e-3,), (0.1,)), 10),
    "film_prompts": Task(
        *FILM,
        film.ONLINE,
        "full",
        prompt_arms(0.3),
        settings((3e-4,), (0.1,)),
        20,
    ),
    "chat": Task(
        *CHAT,
        chat.lines(prompts=128, rounds=4, passes=2),
        "random",
        chat_arms(32, 4),
        settings((5e-4,), (0.1,)),
        5,
    ),
    "chat_small": Task(
        *CHAT,
        chat.lines(prompts=64, rounds=3, passes=4),
        "random",
        chat_arms(16, 4),
        settings((5e-4,), (0.1,)),  # 2e-4, 1e-3 and beta 0.4 were worse for random on seed 101
        5,
    ),
    "chat_defaults": Task(*CHAT, chat.DEFAULTS, "random", default_arms(), settings((2e-4,), (0.1,)), 5),
    "pools": Task(
        scored_answers,
        pools.prepare,
        pools.LINES,
        "random_pairs",
        given_arms(32, 7),
        [["lr=1e-3", "loss.loss.beta=2"]],
        5,
    ),
    "harmless": Task(
        human_choices,
        harmless.prepare,
        harmless.LINES,
        "random_pairs",
        choose_pairs(64, "random_pairs", "certainty", "dissimilarity", "d_optimal", "predicted_gap", "length_matched"),
        settings((5e-4,), (0.1,)),
        5,
    ),
}


def chosen(only: str) -> Iterator[tuple[str, Task]]:
    """The tasks with these names, which have commas between them."""
    for name in only.split(","):
        if name not in TASKS:
            raise SystemExit(f"there is no task {name}; there are {', '.join(TASKS)}")
        yield name, TASKS[name]
