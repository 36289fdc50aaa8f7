"""REAL (arXiv 2409.17169): label the pairs whose responses mean the most different things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from callbacks.selector import PairChooser
from choosy.methods import selection
from choosy.models.embeddings import embed, refuse_embedder
from choosy.rounds.context import Round
from choosy.types import Candidates


@dataclass(kw_only=True, eq=False)
class Dissimilarity(PairChooser):
    """Labels the pairs with the least similar response embeddings: REAL's *easy* pairs; `smallest` are its *hard* ones.

    Args:
        embedder: `policy` = the mean of the reference's last layer; `lm:NAME` = that of another language model, such as
            REAL's base model; else a sentence-transformers model: `minilm` or a name.
        centroid: Take the pair nearest to the centres of a 2-means of each prompt's responses.
    """

    embedder: str = "minilm"
    centroid: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_embedder(self.embedder)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        embed_ND = embed([r for c in candidates for r in c.responses], self.embedder, at.policy)
        utilities_of = selection.centroid if self.centroid else selection.dissimilarity
        sizes = [len(c.responses) for c in candidates]
        return [utilities_of(embed_nD) for embed_nD in torch.split(embed_ND, sizes)]
