"""Score a response by how much its meaning resembles that of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from choosy.labeling.protocols import Terms
from choosy.models.embeddings import device_of, refuse_embedder, sentence_embeddings
from choosy.models.locate import contents_id
from choosy.types import Prompt, Response


class Relevance:
    """Scores a response by the cosine similarity of its embedding with its prompt's, from -1 to `enough`.

    It says whether a response stays with the subject, and nothing about its quality. So it is meant as a part of
    `labeler=weighted`, beside a reward that answers about something else could also earn. Of a conversation, only the
    last turn is compared. An embedder reads only the beginning of a long text.

    Args:
        embedder: `minilm`, or another sentence-transformers model by its hub id or its folder.
        enough: The highest score. A response that repeats the prompt is more similar to it than a good answer, and
            gains nothing above this limit; 1 = no limit.
    """

    def __init__(self, embedder: str = "minilm", *, enough: float = 0.7) -> None:
        if embedder == "policy" or embedder.startswith("lm:"):
            raise ValueError(
                f"labeler relevance compares sentences, and embedder={embedder} is a language model; type minilm, or "
                "the hub id or folder of a sentence-transformers model"
            )
        if not 0 < enough <= 1:
            raise ValueError(
                f"labeler relevance: enough={enough} is not a limit of a similarity; type a number in (0, 1]"
            )
        refuse_embedder(embedder)
        self.embedder, self.enough = embedder, enough
        self.terms = Terms(price=0.0, fingerprint=contents_id(embedder))
        self.name = f"relevance:{embedder}@{enough:g}"  # labels of another limit are not reused

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """Return the similarity of each response with its prompt, at most `enough`."""
        both = [(p.messages[-1].content if p.messages else p.text, response.text) for p, response in items]
        row_of = {text: n for n, text in enumerate(dict.fromkeys(text for texts in both for text in texts))}
        texts = [Response(text) for text in row_of]
        embed_ND = F.normalize(sentence_embeddings(texts, self.embedder, device_of()).float(), dim=-1)
        similar = [float(embed_ND[row_of[asked]] @ embed_ND[row_of[answer]]) for asked, answer in both]
        return [min(one, self.enough) for one in similar]
