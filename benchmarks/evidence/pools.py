"""The task pools: a small language model learns from other models' answers to instructions, scored by GPT-4.

Each prompt has up to ten answers. A selector chooses which of their pairs to label; the rest of the scores stay unseen.
What counts is how often the tuned policy prefers, in pairs of held-out prompts, the answer that GPT-4 prefers. The
policy is a Llama of 1.2 million parameters, trained here on the answers to the prompts that are not held out, once, in
minutes. It prefers by the mean of its tokens' log-ratios: by their sum it prefers the shorter answer (see docs/log.md).
"""

from __future__ import annotations

import json
import math
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import film
from sources import Source, write_rows

CACHES = Path(__file__).parent / "cache"
WORDS = 100  # longer answers and prompts are left out, so that a run takes minutes
LONGEST = 320  # tokens of a prompt and its answer
FEWEST = 4  # answers of a prompt
PAIRS_A_PROMPT = 3  # held out
POINT = 1e-6  # smaller shares of wins count as this one


def prepare(data: Source) -> Path:
    """Make the policy, the prompts to train on and the held-out pairs, unless they are there; return their folder."""
    folder = CACHES / f"pools{data.tag}"
    if (folder / "done").exists():
        return folder
    rows = [short(json.loads(line)) for line in data.path.read_text().splitlines()]
    rows = [row for row in rows if len(row["responses"]) >= FEWEST and len(row["prompt"].split()) <= WORDS]
    random.Random(0).shuffle(rows)
    train, heldout = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    pairs = [pair for row in heldout for pair in pairs_of(row)]
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "pairs.jsonl", pairs)
    print(f"pools: {len(train)} prompts, {len(pairs)} held-out pairs", flush=True)
    texts = [row["prompt"] + answer["text"] for row in train for answer in row["responses"]]
    film.make_policy(folder, texts, longest=LONGEST, epochs=8, size=16, task="pools")
    (folder / "done").touch()
    return folder


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A prompt with its short answers, each scored by the power of ten of GPT-4's share of wins."""
    answers = [
        {"text": answer["text"], "score": round(math.log10(max(answer["score"], POINT)), 3)}
        for answer in row["responses"]
        if 0 < len(answer["text"].split()) <= WORDS
    ]
    return {"prompt": row["prompt"].strip() + "\n\n", "responses": answers}


def pairs_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """Some pairs of a prompt's answers, drawn by lot from those a point or more apart."""
    ranked = sorted(row["responses"], key=lambda answer: -answer["score"])
    pairs = [(a, b) for a, b in combinations(ranked, 2) if a["score"] - b["score"] >= 1]
    drawn = random.Random(row["prompt"]).sample(pairs, min(PAIRS_A_PROMPT, len(pairs)))
    return [{"prompt": row["prompt"], "chosen": better["text"], "rejected": worse["text"]} for better, worse in drawn]


LINES = (
    "trainer=cpu",
    "model=smollm2_full",
    "model.name={made}/policy",
    "model.dtype=float32",
    "data=offline",
    "data.train={made}/train.jsonl",
    "data.heldout_pairs={made}/pairs.jsonl",
    "data.reader.as_chat=false",
    "weighting=uniform",
    "pairing=best_worst",
    "loss=sigmoid_averaged",
    "rounds=3",
    "epochs_per_round=8",
    "reset_policy=each_round",
    "pool.keep=all",
    "batching.batch_size=16",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
)
