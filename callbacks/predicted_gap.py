"""Label the pairs whose rewards a head, fitted to the run's earlier labels, predicts to differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from callbacks.selector import PairChooser
from choosy.labeling.protocols import labelers_able_to
from choosy.methods import predicted, selection
from choosy.rounds.context import Round
from choosy.types import Candidates, seed_of


@dataclass(kw_only=True, eq=False)
class PredictedGap(PairChooser):
    """Labels the pairs with the largest predicted reward gap (see `LearnedReward`).

    Args:
        bonus: Standard deviations added for what is not known; above 0 it is DeltaUCB (arXiv 2603.09692).
        thompson: Predict with weights drawn from the head's posterior, a new draw each round.
        explore: Share of the labeled pairs that chance chooses.
        cold: What chooses while there are too few labels: `dissimilarity` of the embeddings, or chance (`random`).
        score_all: Score all responses of a chosen pair's prompt, and pair the best with the worst.
    """

    bonus: float = 0.0
    thompson: bool = False
    explore: float = 0.0
    cold: Literal["dissimilarity", "random"] = "dissimilarity"
    score_all: bool = False  # type: ignore[misc]  # the other pair selectors never do

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cold not in ("dissimilarity", "random"):
            raise ValueError(f"callbacks.predicted_gap.cold={self.cold} is none of dissimilarity, random.")
        if self.bonus < 0:
            raise ValueError(f"callbacks.predicted_gap.bonus={self.bonus} is negative; choose 0 or more.")
        if self.score_all and self.per_prompt != 1:
            raise ValueError("callbacks.predicted_gap.score_all=true makes one pair a prompt; choose per_prompt=1.")
        predicted.explored({}, self.explore, seed=0)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.score_all and not (labels := trainer.datamodule.run.labels).scores:
            raise ValueError(
                f"callbacks.predicted_gap.score_all=true buys scores, and labeler {labels.labeler.name} only compares: "
                f"type {labelers_able_to('score')}, or selector=predicted_gap."
            )

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        head = at.learned.head(at)
        embed_ND = at.learned.embed(candidates, at)
        if head is None:
            if self.cold == "random":
                return [[0.0] * len(selection.pair_positions(len(c.responses))) for c in candidates]
            return [selection.dissimilarity(embed_nD) for embed_nD in embed_ND]
        if self.thompson:
            head = head.drawn(seed_of(at.seed, "thompson", at.number))
        gaps = [predicted.predicted_gap(head.rewards(e), head.deviations(e), self.bonus) for e in embed_ND]
        return self._explored(gaps, candidates, at)

    def _explored(self, gaps: list[list[float]], candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        names = [[f"{c.prompt.id}:{i}-{j}" for i, j in selection.pair_positions(len(c.responses))] for c in candidates]
        mine = zip(
            (n for of_prompt in names for n in of_prompt), (g for of_prompt in gaps for g in of_prompt), strict=True
        )
        mixed = predicted.explored(dict(at.ranks.gather(list(mine))), self.explore, seed=seed_of(at.seed, at.number))
        return [[mixed[name] for name in of_prompt] for of_prompt in names]
