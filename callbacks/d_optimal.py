"""Label the pairs that together tell most about a linear reward (ADPO, arXiv 2503.01076)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from callbacks.selector import PairChooser
from choosy.methods import predicted, selection
from choosy.parallel.ranks import gather_rows
from choosy.rounds.context import Round
from choosy.types import Candidates, seed_of


@dataclass(kw_only=True, eq=False)
class DOptimal(PairChooser):
    """Labels a D-optimal design of pairs: differences of embeddings that those labeled before do not span.

    Args:
        ridge: How much is known before the first label, as a share of a pair's mean squared length.
    """

    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise ValueError(f"callbacks.d_optimal.ridge={self.ridge} leaves no start; choose ridge > 0.")

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        at.learned.head(at)
        embeds = at.learned.embed(candidates, at)
        mine = [(c.prompt.id, i, j) for c in candidates for i, j in selection.pair_positions(len(c.responses))]
        feature_XD = gather_rows(torch.cat([torch.zeros(0), *map(predicted.pair_features, embeds)]), at.ranks)
        every = at.ranks.gather(mine)
        order = sorted(range(len(every)), key=lambda x: seed_of(at.seed, "design", at.number, *every[x]))
        prompts = [every[x][0] for x in order]
        most = len(set(prompts)) * (self.per_prompt or len(every))
        k = selection.quota(most, fraction=self.fraction, count=self.count)
        if not every:  # no prompt was sampled, as when the label budget is spent
            return [[] for _ in candidates]
        utilities = predicted.d_optimal(
            feature_XD[order], prompts, k, per_prompt=self.per_prompt, ridge=self.ridge, known_KD=at.learned.pairs()
        )
        of_pair = {every[x]: utility for x, utility in zip(order, utilities, strict=True)}
        return [[of_pair[c.prompt.id, i, j] for i, j in selection.pair_positions(len(c.responses))] for c in candidates]
