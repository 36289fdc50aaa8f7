"""Label the pairs whose rewards a head, fitted to the run's earlier labels, predicts to differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from callbacks.selector import PairChooser
from choosy.methods import predicted, selection
from choosy.rounds.context import Round
from choosy.rounds.learned_reward import without_length
from choosy.types import Candidates, seed_of


@dataclass(kw_only=True, eq=False)
class PredictedGap(PairChooser):
    """Labels the pairs with the largest predicted reward gap (see `LearnedReward`).

    With `per_prompt=1` a prompt's pair is its predicted best against its predicted worst response.

    Args:
        bonus: Standard deviations added for what is not known; above 0 it is DeltaUCB (arXiv 2603.09692).
        thompson: Predict with weights drawn from the head's posterior, a new draw each round.
        explore: Share of the labeled pairs that chance chooses.
        cold: What chooses while there are too few labels: `dissimilarity` of the embeddings, or chance (`random`).
    """

    bonus: float = 0.0
    thompson: bool = False
    explore: float = 0.0
    cold: Literal["dissimilarity", "random"] = "dissimilarity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bonus < 0 or not 0 <= self.explore <= 1 or self.cold not in ("dissimilarity", "random"):
            settings = f"bonus={self.bonus} explore={self.explore} cold={self.cold}"
            raise ValueError(f"{settings}: choose bonus >= 0, 0 <= explore <= 1, cold=dissimilarity or cold=random.")

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        head = at.learned.head(at)
        if head is None and self.cold == "random":
            return [[0.0] * len(selection.pair_positions(len(c.responses))) for c in candidates]
        embed_ND = at.learned.embed(candidates, at)
        if head is None:
            return [selection.dissimilarity(without_length(embed_nD)) for embed_nD in embed_ND]
        if self.thompson:
            head = head.drawn(seed_of(at.seed, "thompson", at.number))
        gaps = [predicted.predicted_gap(head.rewards(e), head.deviations(e), self.bonus) for e in embed_ND]
        return at.partly_by_chance(candidates, gaps, self.explore)
