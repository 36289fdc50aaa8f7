"""The task pools: a chat model learns from other models' answers to instructions, scored by GPT-4.

Each prompt has up to ten answers. A selector chooses which of their pairs to label; the rest of the scores stay unseen.
What counts is how often the tuned policy prefers, in pairs of held-out prompts, the answer that GPT-4 prefers.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from sources import Source, write_rows

CACHES = Path(__file__).parent / "cache"
WORDS = 40  # longer answers are left out, so that a run takes minutes
FEWEST = 4  # answers of a prompt
HELDOUT = 60  # prompts
POINT = 1e-6  # smaller shares of wins count as this one


def prepare(data: Source) -> Path:
    """Write the prompts to train on and the held-out pairs; return their folder."""
    folder = CACHES / f"pools{data.tag}"
    rows = [short(json.loads(line)) for line in data.path.read_text().splitlines()]
    rows = [row for row in rows if len(row["responses"]) >= FEWEST]
    random.Random(0).shuffle(rows)
    pairs = [pair for row in rows[:HELDOUT] for pair in pairs_of(row)]
    write_rows(folder / "train.jsonl", rows[HELDOUT:])
    write_rows(folder / "pairs.jsonl", pairs)
    print(f"pools: {len(rows) - HELDOUT} prompts, {len(pairs)} held-out pairs", flush=True)
    return folder


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt with its short answers, each scored by the power of ten of GPT-4's share of wins."""
    answers = [
        {"text": answer["text"], "score": round(math.log10(max(answer["score"], POINT)), 3)}
        for answer in row["responses"]
        if 0 < len(answer["text"].split()) <= WORDS
    ]
    return {"prompt": row["prompt"], "responses": answers}


def pairs_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """The best against the worst answer, the second best against the second worst and so on, a point or more apart."""
    ranked = sorted(row["responses"], key=lambda answer: -answer["score"])
    pairs = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
    return [
        {"prompt": row["prompt"], "chosen": better["text"], "rejected": worse["text"]}
        for better, worse in pairs
        if better["score"] - worse["score"] >= 1
    ]


LINES = (
    "trainer=cpu",
    "data=offline",
    "data.train={made}/train.jsonl",
    "data.heldout_pairs={made}/pairs.jsonl",
    "weighting=uniform",
    "pairing=best_worst",
    "loss=sigmoid",
    "rounds=3",
    "epochs_per_round=4",
    "reset_policy=each_round",
    "pool.keep=all",
    "batching.batch_size=8",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
)
