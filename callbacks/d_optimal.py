"""Label the pairs that together tell most about a linear reward (ADPO, arXiv 2503.01076)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from callbacks.selector import PairChooser
from choosy.methods import predicted, selection
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
        embed_ND = at.learned.embed(candidates, at)
        mine = []
        for c, embed_nD in zip(candidates, embed_ND, strict=True):
            for i, j in selection.pair_positions(len(c.responses)):
                mine.append(((c.prompt.id, i, j), (embed_nD[i] - embed_nD[j]).tolist()))
        every = sorted(at.ranks.gather(mine), key=lambda pair: seed_of(at.seed, "design", at.number, *pair[0]))
        if not every:  # no prompt was sampled, as when the label budget is spent
            return [[] for _ in candidates]
        feature_XD = torch.tensor([feature for _, feature in every])
        prompts = [name[0] for name, _ in every]
        k = selection.quota(
            len(set(prompts)) * (self.per_prompt or len(every)), fraction=self.fraction, count=self.count
        )
        utilities = predicted.d_optimal(
            feature_XD, prompts, k, per_prompt=self.per_prompt, ridge=self.ridge, known_KD=at.learned.pairs()
        )
        of_pair = {name: utility for (name, _), utility in zip(every, utilities, strict=True)}
        return [[of_pair[c.prompt.id, i, j] for i, j in selection.pair_positions(len(c.responses))] for c in candidates]
