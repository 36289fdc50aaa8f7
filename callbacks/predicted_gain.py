"""Sample again the prompts whose stored responses a learned reward predicts to differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from callbacks.selector import PromptChooser
from choosy.methods import predicted
from choosy.rounds.context import Round
from choosy.types import Prompt


@dataclass(kw_only=True, eq=False)
class PredictedGain(PromptChooser):
    """Samples the prompts with the largest predicted gap between the best and the worst of their stored responses."""

    fraction: float | None = 0.3
    warmup_rounds: int = 1  # without one there is no label to learn from
    learns: ClassVar[bool] = True

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        head = at.learned.head(at)
        if head is None:
            return [0.0] * len(prompts)

        def rewards_of(mine: list[Prompt]) -> list[Tensor | None]:
            rows = at.pool.newest([p.id for p in mine]).to_pylist()
            stored = at.pool.candidates([row for row in rows if row is not None])
            rewards = {c.prompt.id: head.rewards(e) for c, e in zip(stored, at.learned.embed(stored, at), strict=True)}
            return [rewards.get(p.id) for p in mine]

        return predicted.predicted_gain(at.each_on_one_rank(prompts, rewards_of))
