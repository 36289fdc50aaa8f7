"""OPTune (arXiv 2406.07657): fresh responses for the prompts whose stored responses score lowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from callbacks.selector import PromptChooser
from choosy.labeling.protocols import labelers_able_to
from choosy.methods import selection
from choosy.methods.shrinkage import shrunk_means
from choosy.rounds.context import Round
from choosy.types import Prompt


@dataclass(kw_only=True, eq=False)
class OPTune(PromptChooser):
    """Samples again the prompts with the lowest stored reward; the others reuse their responses.

    Args:
        statistic: Which reward stands for a prompt: the `mean`, `best` or `worst` of its newest responses, or `shrunk`:
            the mean of all rewards that it ever had, drawn towards the mean of all prompts by as much as it is noise.
    """

    fraction: float | None = 0.3
    warmup_rounds: int = 1  # without one there is no reward to rank by
    statistic: selection.Statistic | Literal["shrunk"] = "mean"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not (labels := trainer.datamodule.run.labels).scores:
            raise ValueError(
                f"OPTune ranks prompts by their rewards, and labeler {labels.labeler.name} gives none; it only "
                f"compares. Type selector=certainty, selector=entropy or selector=random, or another labeler: "
                f"{labelers_able_to('score')}."
            )

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        reward_PN, scored_PN, sampled_P = map(torch.from_numpy, at.pool.rewards([p.id for p in prompts], at.neutral))
        if self.statistic == "shrunk":
            count_P, mean_P, m2_P = map(torch.from_numpy, at.pool.reward_moments([p.id for p in prompts]))
            score_P, scored_P = shrunk_means(count_P, mean_P, m2_P), count_P > 0
        else:
            score_P, scored_P = selection.reward_statistic(reward_PN, scored_PN, self.statistic), scored_PN.any(1)
        return selection.optune(score_P, scored_P, sampled_P, self.direction)
