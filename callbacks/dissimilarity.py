"""REAL (arXiv 2409.17169): label the pairs whose responses mean the most different things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from callbacks.selector import PairChooser
from choosy.methods import selection
from choosy.models.embeddings import policy_embeddings, sentence_embeddings
from choosy.rounds.context import Round
from choosy.types import Candidates


@dataclass(kw_only=True, eq=False)
class Dissimilarity(PairChooser):
    """Labels the pairs with the least similar response embeddings: REAL's *easy* pairs; `smallest` are its *hard* ones.

    Args:
        embedder: `policy` = the frozen policy's last layer; else a sentence-transformers model, `minilm` or a name.
        centroid: Take the pair nearest to the centres of a 2-means of each prompt's responses.
    """

    embedder: Literal["minilm", "policy"] | str = "minilm"
    centroid: bool = False

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        responses = [r for c in candidates for r in c.responses]
        if self.embedder == "policy":
            embed_ND = policy_embeddings(
                responses, at.policy
            )  # also without candidates: a sharded policy needs all ranks
        elif responses:
            embed_ND = sentence_embeddings(responses, self.embedder)
        if not responses:
            return []
        utilities_of = selection.centroid if self.centroid else selection.dissimilarity
        sizes = [len(c.responses) for c in candidates]
        return [utilities_of(embed_nD) for embed_nD in torch.split(embed_ND, sizes)]
