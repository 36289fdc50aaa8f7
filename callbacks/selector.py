"""The settings that all selectors share."""

from __future__ import annotations

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

    def __post_init__(self) -> None:
        quota(1, fraction=self.fraction, count=self.count)
        orient([], self.direction)


@dataclass(kw_only=True, eq=False)
class PromptChooser(Selector):
    """A selector of prompts that are sampled again (see `PromptSelector`).

    Args:
        warmup_rounds: Rounds that sample every prompt before this selector starts to choose.
    """

    warmup_rounds: int = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(prompts=self)


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
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_prompt is not None and self.per_prompt < 1:
            raise ValueError(
                f"per_prompt={self.per_prompt} chooses no pair; choose per_prompt >= 1, or null for no cap."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(pairs=self)
