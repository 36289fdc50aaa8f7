"""The settings that all selectors share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import Callback

from choosy.methods.selection import Direction, orient, quota


@dataclass(kw_only=True, eq=False)
class Selector(Callback):
    """Spends a budget on the items with the largest utilities.

    Args:
        fraction: Share of the items to choose.
        count: Number of items to choose instead of a share.
        direction: Which utilities are spent on first: the `largest`, the `smallest`, the `middle` or both `tails`.
    """

    fraction: float | None = 0.5
    count: int | None = None
    direction: Direction = "largest"
    learns: ClassVar[bool] = False  # True in a class that calls `at.learned`: a missing embedder is refused early

    def __post_init__(self) -> None:
        quota(1, fraction=self.fraction, count=self.count)
        orient([], self.direction)


@dataclass(kw_only=True, eq=False)
class PromptChooser(Selector):
    """A selector of prompts that are sampled again (see `PromptSelector`).

    Args:
        warmup_rounds: Rounds that sample every prompt before this selector starts to choose.
        oversample: Prompts for each pair that the pair selector's `count` labels, instead of a share or a number.
    """

    warmup_rounds: int = 0
    oversample: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.oversample is None:
            return
        if self.oversample < 1 or self.fraction is not None or self.count is not None:
            raise ValueError(
                f"oversample={self.oversample} says how many prompts are sampled for each labeled pair: choose 1 or "
                "more, and set fraction and count of this selector to null."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(prompts=self)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self.oversample is None:
            return
        pairs = getattr(trainer.datamodule.run.pair_selector, "count", None)
        if pairs is None:
            raise ValueError(
                f"oversample={self.oversample} multiplies the pairs of a round: type the pair selector's count, "
                "such as callbacks.predicted_gap.count=64 callbacks.predicted_gap.fraction=null."
            )
        self.count = math.ceil(self.oversample * pairs)


@dataclass(kw_only=True, eq=False)
class PairChooser(Selector):
    """A selector of pairs that are labeled (see `PairSelector`).

    Args:
        fraction: Share of the pairs that `per_prompt` leaves: of a round's fresh responses, or of all given responses,
            of which each round labels an equal part.
        count: Number of labeled pairs each round instead of a share; ties and invalid verdicts are replaced.
        per_prompt: Most labeled pairs of one prompt's responses; None = any number.
    """

    per_prompt: int | None = 1
    score_all: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_prompt is not None and self.per_prompt < 1:
            raise ValueError(
                f"per_prompt={self.per_prompt} chooses no pair; choose per_prompt >= 1, or null for no cap."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(pairs=self)
