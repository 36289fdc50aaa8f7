"""Reads the prompts of a run with all their responses, as many as a page shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from choosy.reporting.choices import fresh_rows
from choosy.reporting.summary import RunSummary

COLUMNS = (
    *("split", "prompt_id", "prompt", "sampled_in", "prompt_utility", "responses", "rewards", "logps", "ref_logps"),
    *("finished", "pairs", "undecided", "outcome", "parts"),
)
MOST_PROMPTS = 500  # of each split
MOST_LETTERS = 4_000_000  # of prompts and responses, with
MARKUP = 250  # letters around each response
SPLITS = {"train": "trained on", "heldout": "held out"}


class Shown(NamedTuple):
    """One response of a prompt in a round: what it is called, its text, numbers and role."""

    name: str
    text: str
    reward: float | None
    logp: float | None
    ref_logp: float | None
    cut: bool
    role: str
    parts: str = ""


class Look(NamedTuple):
    """The responses to a prompt in one round, and what was chosen of them, in words."""

    round: int
    responses: tuple[Shown, ...]
    facts: tuple[str, ...]


@dataclass
class ShownPrompt:
    """A prompt of a page, with its rounds, the newest first."""

    split: str
    text: str
    looks: list[Look] = field(default_factory=list)
    gap: float | None = None
    utility: float | None = None
    reward: float | None = None

    def add(self, look: Look, row: Mapping[str, Any]) -> None:
        """Add an older round; its numbers count where a newer one has none."""
        self.looks.append(look)
        pairs = [pair for pair in row["pairs"] or () if pair["round"] == look.round]
        rewards = [reward for reward in row["rewards"] if reward is not None]
        utilities = [u for u in (*(pair["utility"] for pair in pairs), row["prompt_utility"]) if u is not None]
        if self.reward is None and rewards:
            self.reward = row["rewards"][0] if self.split == "heldout" else max(rewards)
        if self.utility is None and utilities:
            self.utility = utilities[0]
        gaps = [gap for pair in pairs if (gap := _gap(row, pair)) is not None]
        if self.gap is None and (gaps or (self.split == "heldout" and len(rewards) == 2)):
            self.gap = max(gaps) if gaps else rewards[0] - rewards[1]


def shown_prompts(
    run: RunSummary, *, most: int = MOST_PROMPTS, letters: int = MOST_LETTERS
) -> tuple[list[ShownPrompt], str]:
    """Return the prompts that a page shows, those of the newest rounds first, and what it leaves out, in words.

    Args:
        run: The run.
        most: Most prompts of each split.
        letters: Most letters of prompts and responses with their markup; no round is read after they are spent.
    """
    found: dict[tuple[str, str], ShownPrompt] = {}
    ids_of: dict[str, set[str]] = {split: set() for split in SPLITS}
    dropped: list[tuple[str, str]] = []
    for number in (played["round"] for played in reversed(run.rounds)):
        fresh = fresh_rows(run.folder, number, ("split", "prompt_id", "sampled_in", "pairs"), heldout=True)
        keys = [] if fresh is None else [*zip(*(fresh[of].to_pylist() for of in ("split", "prompt_id")), strict=True)]
        wanted = {key: None for key in keys if key in found}
        for split, ids in ids_of.items():
            room = most - sum(of == split for of, _ in found)
            new = dict.fromkeys(key for key in keys if key[0] == split and key[1] not in ids)
            wanted |= dict.fromkeys([*new][:room])
            ids.update(name for _, name in new)
        for row in _rows_of(run, number, {*wanted}) if letters >= 0 else ():
            letters -= len(row["prompt"]) + sum(len(text) + MARKUP for text in row["responses"])
            if letters < 0:
                break
            key = (row["split"], row["prompt_id"])
            shown = found.setdefault(key, ShownPrompt(row["split"], row["prompt"]))
            shown.add(look(row, number), row)
            wanted.pop(key, None)
        dropped += wanted
    every = sorted(found.values(), key=lambda prompt: [*SPLITS].index(prompt.split))
    total, older = sum(map(len, ids_of.values())), sum(key in found for key in dropped)
    left = [f"{total - len(found):,} of {total:,} prompts"] if len(found) < total else []
    left += [f"{older:,} older round{'s' * (older > 1)} of those that are shown"] if older else []
    return every, f"Left out: {' and '.join(left)}; rounds/*.parquet has them." if left else ""


def _rows_of(run: RunSummary, number: int, keys: Set[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of some prompts of a round, those that were trained on first."""
    table = fresh_rows(run.folder, number, COLUMNS, heldout=True, among={name for _, name in keys}) if keys else None
    rows = [] if table is None else table.to_pylist()
    return sorted(
        (row for row in rows if (row["split"], row["prompt_id"]) in keys), key=lambda row: [*SPLITS].index(row["split"])
    )


def look(row: Mapping[str, Any], number: int) -> Look:
    """Describe one row of a round's table."""
    heldout = row["split"] == "heldout"
    pairs = [pair for pair in row["pairs"] or () if pair["round"] == number]
    roles: dict[int, dict[str, None]] = {}
    for pair in pairs:
        for role in ("chosen", "rejected"):
            roles.setdefault(pair[role], {})[role] = None
    columns = ("rewards", "logps", "ref_logps", "finished", "parts")
    of_each = (row.get(name) or [None] * len(row["responses"]) for name in columns)
    responses = tuple(
        Shown(
            ("policy", "start")[n] if heldout else str(n + 1),
            text,
            reward,
            logp,
            ref_logp,
            finished is False,
            ", ".join(roles.get(n, ())),
            ", ".join(f"{name} {value:.3g}" for name, value in of_reward or ()),
        )
        for n, (text, reward, logp, ref_logp, finished, of_reward) in enumerate(
            zip(row["responses"], *of_each, strict=True)
        )
    )
    return Look(number, responses, tuple(_facts(row, pairs)))


def _facts(row: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if row["prompt_utility"] is not None:
        yield f"prompt chosen at utility {row['prompt_utility']:.3g}"
    for pair in pairs[:6]:
        words = [f"{pair['chosen'] + 1} over {pair['rejected'] + 1}"]
        if (gap := _gap(row, pair)) is not None:
            words.append(f"reward gap {gap:.3g}")
        words += [f"{name} {pair[name]:.3g}" for name in ("utility", "predicted_gap") if pair.get(name) is not None]
        words += [f"weight {pair['weight']:.3g}", f"by {pair['source']}" if pair["source"] else ""]
        yield ", ".join(filter(None, words)).replace("predicted_gap", "predicted gap")
    if len(pairs) > 6:
        yield f"and {len(pairs) - 6} more pairs"
    if row["undecided"]:
        yield "tied or invalid: " + ", ".join(f"{i + 1} and {j + 1}" for i, j in row["undecided"])
    if row["outcome"] is not None:
        yield {0.0: "the start's answer won", 0.5: "tied with the start", 1.0: "won against the start"}[row["outcome"]]


def _gap(row: Mapping[str, Any], pair: Mapping[str, Any]) -> float | None:
    chosen, rejected = (row["rewards"][pair[role]] for role in ("chosen", "rejected"))
    return None if chosen is None or rejected is None else chosen - rejected
