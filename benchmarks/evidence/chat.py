"""The task chat: SmolLM2-135M answers the prompts that come with Choosy, and VADER's sentiment is the labeler."""

from __future__ import annotations

from pathlib import Path


def prepare() -> Path:
    """All that it needs comes with Choosy."""
    return Path()


LINES = (
    "trainer=cpu",
    "data.limit=64",
    "labeler=vader",
    "weighting=uniform",
    "pairing=best_worst",
    "loss=sigmoid",
    "sampler=generate",
    "sampler.temperature=0.8",
    "sampler.top_p=1.0",
    "sampler.max_new_tokens=24",
    "rounds=3",
    "epochs_per_round=4",
    "reset_policy=each_round",
    "pool.keep=all",
    "batching.batch_size=8",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
)
