"""The control of every experiment: prompts or pairs at random, at the same budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.types import Candidates, Prompt


class RandomPrompts(Callback):
    """Samples a random share of the prompts again; every prompt is as useful, and ties are drawn by the seed.

    Args:
        fraction: Share of the prompts to sample again.
        count: Number of prompts instead of a share.
        warmup_rounds: Rounds that sample everything first.
    """

    def __init__(self, fraction: float | None = 0.5, *, count: int | None = None, warmup_rounds: int = 1) -> None:
        selection.quota(1, fraction=fraction, count=count)
        self.fraction = fraction
        self.count = count
        self.warmup_rounds = warmup_rounds

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(prompts=self)

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        return [0.0] * len(prompts)


class RandomPairs(Callback):
    """Labels a random share of the pairs.

    Args:
        fraction: Share of the competing pairs to label.
        count: Number of pairs instead of a share.
        per_prompt: Most pairs of one prompt; None = any number.
    """

    direction: selection.Direction = "largest"

    def __init__(self, fraction: float | None = 0.5, *, count: int | None = None, per_prompt: int | None = 1) -> None:
        selection.quota(1, fraction=fraction, count=count)
        self.fraction = fraction
        self.count = count
        self.per_prompt = per_prompt

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(pairs=self)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        return [[0.0] * len(selection.pair_positions(len(c.responses))) for c in candidates]
