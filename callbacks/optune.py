"""OPTune (arXiv 2406.07657): fresh responses for the prompts whose stored responses score lowest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback

from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.types import Prompt


class OPTune(Callback):
    """Samples again the `fraction` of prompts with the lowest stored reward; the rest reuse their responses.

    Args:
        fraction: Share of the prompts to sample again.
        count: Number of prompts instead of a share.
        statistic: Which reward stands for a prompt: the `mean`, `best` or `worst` of its responses.
        warmup_rounds: Rounds that sample everything first; without them there is no reward to rank by.
    """

    def __init__(
        self,
        fraction: float | None = 0.5,
        *,
        count: int | None = None,
        statistic: selection.Statistic = "mean",
        warmup_rounds: int = 1,
    ) -> None:
        selection.quota(1, fraction=fraction, count=count)
        self.fraction = fraction
        self.count = count
        self.statistic: selection.Statistic = statistic
        self.warmup_rounds = warmup_rounds

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(prompts=self)

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        reward_PN, scored_PN, sampled_P = map(torch.from_numpy, at.pool.rewards([p.id for p in prompts]))
        return selection.optune(reward_PN, scored_PN, sampled_P, self.statistic)
