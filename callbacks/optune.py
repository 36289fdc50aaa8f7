"""OPTune (arXiv 2406.07657): fresh responses for the prompts whose stored responses score lowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from callbacks.selector import PromptChooser
from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.types import Prompt


@dataclass(kw_only=True, eq=False)
class OPTune(PromptChooser):
    """Samples again the prompts with the lowest stored reward; the others reuse their responses.

    Args:
        statistic: Which reward stands for a prompt: the `mean`, `best` or `worst` of its responses.
    """

    fraction: float | None = 0.3
    warmup_rounds: int = 1  # without one there is no reward to rank by
    statistic: selection.Statistic = "mean"

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        reward_PN, scored_PN, sampled_P = map(torch.from_numpy, at.pool.rewards([p.id for p in prompts]))
        score_P = selection.reward_statistic(reward_PN, scored_PN, self.statistic)
        return selection.optune(score_P, scored_PN.any(1), sampled_P, self.direction)
