"""REAL (arXiv 2409.17169): label the pairs whose responses mean the most different things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback

from choosy.methods import selection
from choosy.models.embeddings import sentence_embeddings
from choosy.rounds.context import Round
from choosy.types import Candidates


class Dissimilarity(Callback):
    """Labels the pairs with the least similar response embeddings; prompts are not embedded.

    Args:
        fraction: Share of the competing pairs to label.
        count: Number of pairs instead of a share.
        per_prompt: Most pairs of one prompt; None = any number.
        direction: `largest` = most different first (REAL's *easy*); `smallest` = most similar (*hard*).
        embedder: `policy` = the frozen policy's last layer; else a sentence-transformers model, `minilm` or a name.
        centroid: Take the pair nearest to the centres of a 2-means of each prompt's responses.
    """

    def __init__(
        self,
        fraction: float | None = 0.5,
        *,
        count: int | None = None,
        per_prompt: int | None = 1,
        direction: selection.Direction = "largest",
        embedder: Literal["minilm", "policy"] | str = "minilm",
        centroid: bool = False,
    ) -> None:
        selection.quota(1, fraction=fraction, count=count)
        self.fraction = fraction
        self.count = count
        self.per_prompt = per_prompt
        self.direction: selection.Direction = direction
        self.embedder = embedder
        self.centroid = centroid

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(pairs=self)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        responses = [r for c in candidates for r in c.responses]
        if self.embedder == "policy":
            embed_ND = at.policy.embed(responses)  # also without candidates: a sharded policy needs all ranks
        elif responses:
            embed_ND = sentence_embeddings(responses, self.embedder)
        if not responses:
            return []
        utilities_of = selection.centroid if self.centroid else selection.dissimilarity
        sizes = [len(c.responses) for c in candidates]
        return [utilities_of(embed_nD) for embed_nD in torch.split(embed_ND, sizes)]
