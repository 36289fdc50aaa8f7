"""The task chat: SmolLM2-135M answers the prompts that come with Choosy, and VADER's sentiment is the labeler."""

from __future__ import annotations

from pathlib import Path

from sources import Source


def source(typed: Path | None = None) -> Source:
    """The prompts that come with Choosy, which are read by their name."""
    if typed is not None:
        raise SystemExit("chat reads the prompts that come with Choosy, and takes no --data")
    return Source(Path(), "the prompts that ship with Choosy", published=True)


def prepare(data: Source) -> Path:
    """All that it needs comes with Choosy."""
    return data.path


DEFAULTS = [
    "trainer=cpu",
    "data.limit=128",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
]


def lines(prompts: int, rounds: int, passes: int) -> list[str]:
    """What is typed for every run on the first so many prompts."""
    return [
        "trainer=cpu",
        f"data.limit={prompts}",
        "labeler=vader",
        "weighting=uniform",
        "pairing=best_worst",
        "loss=sigmoid",
        "sampler=generate",
        "sampler.temperature=0.8",
        "sampler.top_p=1.0",
        "sampler.max_new_tokens=24",
        f"rounds={rounds}",
        f"epochs_per_round={passes}",
        "reset_policy=each_round",
        "pool.keep=all",
        "batching.batch_size=8",
        "callbacks.report.console=false",
        "callbacks.checkpoint.every_n_steps=0",
    ]
