"""The task harmless: a chat model learns people's choices between two answers to a conversation.

A selector chooses which choices to read; the rest stay unseen. What counts is how often the tuned policy prefers, in
pairs of held-out conversations, the answer that people preferred.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from sources import Source, write_rows

CACHES = Path(__file__).parent / "cache"
WORDS = 100  # longer conversations are left out, so that a run takes minutes
HELDOUT = 200  # conversations


def prepare(data: Source) -> Path:
    """Write the conversations to train on and those held out; return their folder."""
    folder = CACHES / f"harmless{data.tag}"
    rows = [json.loads(line) for line in data.path.read_text().splitlines()]
    rows = [row for row in rows if max(len(row[side].split()) for side in ("chosen", "rejected")) <= WORDS]
    random.Random(0).shuffle(rows)
    write_rows(folder / "train.jsonl", rows[HELDOUT:])
    write_rows(folder / "pairs.jsonl", rows[:HELDOUT])
    print(f"harmless: {len(rows) - HELDOUT} conversations, {HELDOUT} held out", flush=True)
    return folder


LINES = (
    "trainer=cpu",
    "data=offline",
    "data.train={made}/train.jsonl",
    "data.heldout_pairs={made}/pairs.jsonl",
    "weighting=uniform",
    "loss=sigmoid",
    "rounds=3",
    "epochs_per_round=2",
    "reset_policy=each_round",
    "pool.keep=all",
    "batching.batch_size=8",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
)
