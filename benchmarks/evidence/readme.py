"""Writes the README's sentence and column about choosing from what the arms of the task film paid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from page import share

BEGIN, END = "<!-- evidence -->", "<!-- end of evidence -->"

FEW = 20  # seeds, below which a figure of the table says how many it has


def refreshed(text: str, task: Mapping[str, Any]) -> str:
    """The README with the newest figures: the sentence between the first markers, the last column between the others.

    Raises:
        ValueError: The markers are not there twice.
    """
    parts = re.split(f"({BEGIN}\n|{END})", text)
    if parts[1::2] != [f"{BEGIN}\n", END] * 2:
        raise ValueError(f"README.md must hold {BEGIN} and {END} twice: around a sentence, and around a table.")
    parts[2] = sentence(task) + "\n"
    head, rule, *rows = parts[6].splitlines()
    parts[6] = "\n".join([head, rule, *(with_figure(row, task) for row in rows)]) + "\n"
    return "".join(parts)


def sentence(task: Mapping[str, Any]) -> str:
    """What the best selector saved, and on how many seeds that rests."""
    best = task["best"]
    found = task["beside_random"][best]["labels"]
    ratio, low, high = map(share, found["ratio"])
    rests = f"95 % interval {low} to {high}, p = {found['p']:.2g}, {found['seeds']} seeds"
    kept = ("selector", "data.responses", "pairing", "learned_reward.embedder")
    typed = " ".join(word for word in task["typed"][best] if word.partition("=")[0] in kept)
    return (
        f"A Llama of 1.2 million parameters continues short film reviews, and a classifier of sentiment labels them:\n"
        f"`{typed}` reaches random choice's final reward with {ratio} of its labels\n"
        f"({rests}; [all selectors and tasks](docs/evidence.md))."
    )


def with_figure(row: str, task: Mapping[str, Any]) -> str:
    """A row of the table with its last cell replaced; empty for a selector that was not run."""
    cells = row.strip().strip("|").split("|")
    selectors = re.findall(r"`(\w+)`", cells[0])
    arms = task["beside_random"]
    known = ["100%"] if "random_pairs" in selectors else [figure(arms[s]["labels"]) for s in selectors if s in arms]
    return "|" + "|".join([*cells[:-1], f" {', '.join(known)} " if known else " "]) + "|"


def figure(found: Mapping[str, Any]) -> str:
    """A share with its interval, and its seeds if they are few."""
    ratio, low, high = map(share, found["ratio"])
    few = f"; {found['seeds']} seeds" if found["seeds"] < FEW else ""
    return f"{ratio} ({low} to {high}{few})"
