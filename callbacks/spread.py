"""Score all responses to the prompts with the largest predicted gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from callbacks.predicted_gap import PredictedGap
from choosy.labeling.protocols import labelers_able_to


@dataclass(kw_only=True, eq=False)
class Spread(PredictedGap):
    """Labels whole prompts: the predicted gap chooses them, and bought scores choose the pair (see `PredictedGap`)."""

    score_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_prompt != 1:
            raise ValueError(f"per_prompt={self.per_prompt}: all its responses are scored; choose per_prompt=1.")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not (labels := trainer.datamodule.run.labels).scores:
            raise ValueError(
                "selector=spread buys a score of every response, and labeler "
                f"{labels.labeler.name} only compares: type selector=predicted_gap or selector=certainty "
                "(in a comparison selector=predicted_gap,dissimilarity,random_pairs), or another labeler: "
                f"{labelers_able_to('score')}."
            )
