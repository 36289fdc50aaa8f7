"""Label the pairs that together tell most about a linear reward (ADPO, arXiv 2503.01076)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from callbacks.selector import PairChooser
from choosy.methods import predicted, selection
from choosy.parallel.ranks import gather_rows
from choosy.rounds.context import Round
from choosy.types import Candidates, seed_of

Place = tuple[str, int, int]  # a prompt's id, and the positions of two responses, or 0 and 0 of its only one


@dataclass(kw_only=True, eq=False)
class DOptimal(PairChooser):
    """Labels a D-optimal design of pairs: differences of embeddings that those labeled before do not span.

    Where every prompt has a single response, the design is of their embeddings: each time the response is taken whose
    reward is least certain.

    Args:
        ridge: How much is known before the first label, as a share of a pair's mean squared length.
    """

    ridge: float = 0.1
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise ValueError(f"callbacks.d_optimal.ridge={self.ridge} leaves no start; choose ridge > 0.")

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        at.learned.head(at)
        features = [predicted.pair_features(embed_ND) for embed_ND in at.learned.embed(candidates, at)]
        mine = [(c.prompt.id, i, j) for c in candidates for i, j in selection.pair_positions(len(c.responses))]
        of_pair = self.design(mine, features, at, known_KD=at.learned.pairs())
        return [[of_pair[c.prompt.id, i, j] for i, j in selection.pair_positions(len(c.responses))] for c in candidates]

    def response_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[float]:
        at.learned.head(at)
        mine = [(c.prompt.id, 0, 0) for c in candidates]
        of_response = self.design(mine, at.learned.embed(candidates, at), at, known_KD=at.learned.scored())
        return [of_response[name] for name in mine]

    def design(
        self, mine: Sequence[Place], features: Sequence[Tensor], at: Round, *, known_KD: Tensor
    ) -> dict[Place, float]:
        """The utilities of all ranks' pairs or single responses; every rank must call this.

        Args:
            mine: This rank's.
            features: Their features, prompt by prompt.
            at: The context of the round.
            known_KD: Features of those that are labeled already.
        """
        feature_XD = gather_rows(torch.cat([torch.zeros(0), *features]), at.ranks)
        every = at.ranks.gather(mine)
        order = sorted(range(len(every)), key=lambda x: seed_of(at.seed, "design", at.number, *every[x]))
        prompts = [every[x][0] for x in order]
        most = len(set(prompts)) * (self.per_prompt or len(every))
        k = selection.quota(most, fraction=self.fraction, count=self.count)
        if not every:  # no prompt was sampled, as when the label budget is spent
            return {}
        utilities = predicted.d_optimal(
            feature_XD[order], prompts, k, per_prompt=self.per_prompt, ridge=self.ridge, known_KD=known_KD
        )
        return {every[x]: utility for x, utility in zip(order, utilities, strict=True)}
