"""What responses mean, as sentence-transformers sees it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from choosy.models.locate import resolve_embedder
from choosy.types import Response

NAMES = {"minilm": "demo:minilm"}


@cache
def _encoder(name: str, device: str) -> Any:
    from sentence_transformers import SentenceTransformer  # seconds to import, and only some selectors embed

    return SentenceTransformer(resolve_embedder(NAMES.get(name, name)), device=device)


def sentence_embeddings(responses: Sequence[Response], name: str) -> Tensor:
    """Embeddings (N, D) of the responses' texts, without their prompts.

    Args:
        responses: N responses.
        name: `minilm`, a folder, or a hub id of a sentence-transformers model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = [r.text for r in responses]
    embed_ND: Tensor = _encoder(name, device).encode(texts, convert_to_tensor=True, show_progress_bar=False)
    return embed_ND.detach().clone().cpu()
