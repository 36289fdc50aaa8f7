"""Writes docs/evidence.md from what the arms of each task paid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from textwrap import fill
from typing import Any

from choosy.reporting.compare import as_share

INTRO = """\
Written by `make evidence` from `benchmarks/results/evidence.json`. Every arm buys the same number of labels, has the
learning rate that was best for it on other seeds, and sees the same prompts with the same seed. *Labels* is the share
of random choice's labels at which the arm has random choice's final reward, *seconds* and *tokens* the same for these
costs (seconds of choosing, sampling, scoring and training); intervals are 95 %, by a bootstrap over seeds and held-out
prompts; p is a sign-flip test of the final rewards."""
ABOUT = {
    "film": """\
A Llama of 1.2 million parameters, trained from scratch on sentences of film reviews, continues the first words of a
review; a classifier of sentiment (tf-idf, logistic regression) gives the reward. Four responses to each of 512 prompts,
64 pairs labeled in each of four rounds, trained from the start's weights on all labels; 512 held-out prompts."""
}
HEAD = """\
| arm | lr | labels | 95 % interval | final reward, difference | p | seconds | tokens |
|---|---|---|---|---|---|---|---|"""


def written(result: Mapping[str, Any]) -> str:
    """The page."""
    return "\n\n".join(["# Does choosing pay?", INTRO, *(of_task(name, task) for name, task in result.items())]) + "\n"


def of_task(name: str, task: Mapping[str, Any]) -> str:
    """The part of one task: what it is, its picture, its table, its sentence."""
    random = f"| random_pairs | {task['lr']['random_pairs']:g} | 100% | | | | 100% | 100% |"
    ranked = sorted(task["beside_random"].items(), key=lambda arm: arm[1]["labels"]["ratio"][0] or math.inf)
    table = "\n".join([HEAD, random, *(row(arm, task["lr"][arm], costs) for arm, costs in ranked)])
    tuned = ", ".join(map(str, task["tuned_on"]))
    rests = f"{task['seeds']} seeds, {task['comparisons']} comparisons; learning rates chosen on seed {tuned}."
    picture = f"![reward against costs](images/evidence_{name}.png)"
    return "\n\n".join([f"## {name}", ABOUT[name], picture, table, rests, fill(task["sentence"], 120)])


def share(ratio: float | None) -> str:
    """A ratio as a percentage; null stands for infinity."""
    return as_share(math.inf if ratio is None else ratio)


def row(arm: str, lr: float, costs: Mapping[str, Any]) -> str:
    """One arm's line."""
    found = costs["labels"]
    ratio, low, high = map(share, found["ratio"])
    cells = [arm, f"{lr:g}", ratio, f"{low} to {high}", f"{found['gain'][0]:+.2f}", f"{found['p']:.3f}"]
    cells += [share(costs[cost]["ratio"][0]) for cost in ("seconds", "tokens")]
    return f"| {' | '.join(cells)} |"
