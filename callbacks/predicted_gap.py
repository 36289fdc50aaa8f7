"""Label the pairs whose rewards a head, fitted to the run's earlier labels, predicts to differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.selector import PairChooser
from choosy.methods import predicted, selection
from choosy.methods.reward_head import RewardHead
from choosy.parallel.ranks import gather_rows
from choosy.rounds.context import Round
from choosy.rounds.learned_reward import without_length
from choosy.types import Candidates, seed_of


@dataclass(kw_only=True, eq=False)
class PredictedGap(PairChooser):
    """Labels the pairs with the largest predicted reward gap (see `LearnedReward`).

    With `per_prompt=1` a prompt's pair is its predicted best against its predicted worst response. Where every prompt
    has a single response, the gap is that to an average one.

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
    learns: ClassVar[bool] = True

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
        head = self.predicting(head, at)
        gaps = [predicted.predicted_gap(head.rewards(e), head.deviations(e), self.bonus) for e in embed_ND]
        return at.partly_by_chance(candidates, gaps, self.explore)

    def response_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[float]:
        head = at.learned.head(at)
        if head is None and self.cold == "random":
            return [0.0] * len(candidates)
        embed_ND = at.learned.embed(candidates, at)
        if head is None:
            return unlike_the_others([without_length(embed_1D) for embed_1D in embed_ND], candidates, at)
        head = self.predicting(head, at)
        gaps = [
            predicted.gap_to_average(head.rewards(e), head.deviations(e), average=head.offset, bonus=self.bonus)
            for e in embed_ND
        ]
        return [gap for (gap,) in at.partly_by_chance(candidates, gaps, self.explore)]

    def predicting(self, head: RewardHead, at: Round) -> RewardHead:
        """The head that predicts: the fitted one, or a draw from its posterior."""
        return head.drawn(seed_of(at.seed, "thompson", at.number)) if self.thompson else head


def unlike_the_others(embed_1D: Sequence[Tensor], candidates: Sequence[Candidates], at: Round) -> list[float]:
    """How different each embedding is from the mean of all ranks': minus their cosine. Every rank must call this."""
    every_XD = gather_rows(torch.cat([torch.zeros(0), *embed_1D]), at.ranks)
    names = at.ranks.gather([c.prompt.id for c in candidates])
    order = sorted(range(len(names)), key=names.__getitem__)  # so that the sum is the same on any number of ranks
    mean_D = every_XD[order].double().mean(0)
    return [-F.cosine_similarity(one.double(), mean_D[None]).item() for one in embed_1D]
