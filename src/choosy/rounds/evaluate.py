"""Held-out answers judged against the start policy's: win rate with ties, reward, KL, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from choosy.data.pool import SCHEMA, from_row, to_row
from choosy.data.table_files import write_table
from choosy.labeling.buyer import LabelBuyer
from choosy.types import MIRRORED, Candidates, Prompt, Verdict, seed_of

OUTCOME: Mapping[Verdict, float | None] = {"first": 1.0, "tie": 0.5, "second": 0.0, "invalid": None}


@dataclass(frozen=True)
class Evaluation:
    """One round's held-out result: metrics to log, and the rows of its table."""

    metrics: dict[str, float | None]
    rows: list[dict[str, Any]]


def evaluate(answers: Sequence[Candidates], start: Mapping[str, Candidates], judge: LabelBuyer | None) -> Evaluation:
    """Judge each answer against the start policy's answer to the same prompt.

    Args:
        answers: One response a prompt, log-probs under policy and reference known.
        start: The start policy's answers by prompt id.
        judge: Buys the judgements; a labeler that scores decides by its scores, and equal scores tie. None = nobody
            judges, and what needs no judge is left: KL and length.
    """
    both = [replace(c, responses=(c.responses[0], start[c.prompt.id].responses[0])) for c in answers]
    verdicts: list[Verdict | None]
    if judge is None:
        verdicts = [None] * len(both)
    elif judge.scores:
        both = judge.score(both, purpose="evaluate")
        verdicts = [*map(by_reward, both)]
    else:
        turned = [seed_of("shown", c.prompt.id) % 2 == 1 for c in both]  # judges tend to favour a place
        asked = [(c.prompt, *c.responses[:: -1 if turn else 1]) for c, turn in zip(both, turned, strict=True)]
        told = [verdict or "invalid" for verdict in judge.compare(asked, purpose="evaluate")]  # type: ignore[arg-type]
        verdicts = [MIRRORED[verdict] if turn else verdict for verdict, turn in zip(told, turned, strict=True)]
    outcomes = [OUTCOME[verdict] if verdict else None for verdict in verdicts]
    judged = [outcome for outcome in outcomes if outcome is not None]
    now = [c.responses[0] for c in both]
    rewards = [r.reward for r in now if r.reward is not None]
    metrics = {
        "reward": fmean(rewards) if rewards else None,
        "win_rate": fmean(judged) if judged else None,
        "ties": verdicts.count("tie") / len(verdicts) if judge else None,
        "invalid": verdicts.count("invalid") / len(verdicts) if judge else None,
        "kl": fmean(r.logp - r.logp_ref for r in now),  # one sample a prompt, summed over tokens
        "length": fmean(len(r.ids) for r in now),
    }
    rows = [
        to_row(c, origin="heldout", split="heldout", outcome=outcome) for c, outcome in zip(both, outcomes, strict=True)
    ]
    return Evaluation(metrics, rows)


def by_reward(c: Candidates) -> Verdict:
    """The verdict of two rewards."""
    now, start = (r.reward for r in c.responses)
    assert now is not None
    assert start is not None
    return "tie" if now == start else "first" if now > start else "second"


def start_file(folder: Path) -> Path:
    """Where the start policy's answers are kept."""
    return folder / "start.parquet"


def write_start(folder: Path, answers: Sequence[Candidates], about: Mapping[str, Any]) -> None:
    """Keep the start policy's answers, once for the run."""
    rewards = [r.reward for c in answers for r in c.responses if r.reward is not None]
    known = {
        "reward": fmean(rewards) if rewards else None,
        "length": fmean(len(c.responses[0].ids) for c in answers),
    }
    rows = [to_row(c, origin="heldout", split="heldout") for c in answers]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_table(table, start_file(folder), {**about, "round": -1, "evaluation": known})


def read_start(folder: Path, prompts: Sequence[Prompt]) -> list[Candidates]:
    """The start policy's answers to these prompts.

    Raises:
        ValueError: There is none for some prompt: the held-out prompts have changed since.
    """
    kept = {row["prompt_id"]: from_row(row) for row in pq.read_table(start_file(folder)).to_pylist()}
    lost = [p.id for p in prompts if p.id not in kept]
    if lost:
        raise ValueError(
            f"{start_file(folder)} has no start answer to held-out prompt {lost[0]} ({len(lost)} lack one); "
            "the held-out prompts of a run must stay the same. Resume with the old ones, or choose another name=..."
        )
    return [kept[p.id] for p in prompts]
