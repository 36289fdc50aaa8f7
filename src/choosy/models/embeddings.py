"""Embeddings of responses, by the frozen policy or by sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from choosy.models.locate import resolve_embedder
from choosy.models.logprobs import last_hidden
from choosy.models.policy import Policy
from choosy.models.rows import Group, packed, share_prompt
from choosy.types import Response

NAMES = {"minilm": "demo:minilm"}
MOST_ROWS, MOST_TOKENS = 32, 16_384  # of one forward pass of a sentence-transformers model


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
    encoder = _encoder(name, "cuda" if torch.cuda.is_available() else "cpu")
    texts = [r.text for r in responses]
    rows = max(1, min(MOST_ROWS, MOST_TOKENS // (encoder.max_seq_length or MOST_TOKENS)))
    embed_ND: Tensor = encoder.encode(texts, batch_size=rows, convert_to_tensor=True, show_progress_bar=False)
    return embed_ND.detach().clone().cpu()


@torch.no_grad()
def policy_embeddings(responses: Sequence[Response], policy: Policy) -> Tensor:
    """Embeddings (N, D) of the responses by the reference: last layer, mean over the response's own tokens.

    A response is embedded without its prompt, as in REAL's code (arXiv 2409.17169). Forward passes hold
    `tokens_per_step` tokens, padding included.

    Args:
        responses: N responses.
        policy: Its reference embeds; with sharded weights every rank must call this.
    """
    groups = [Group(r.ids or (policy.tokens.tokenizer.eos_token_id,), []) for r in responses]
    embed_ND = torch.zeros(len(responses), policy.causal_lm.config.hidden_size)
    with policy.states.as_reference(), policy.weights_gathered(), policy.precision():
        for batch in packed(groups, policy.compute.tokens_per_step):
            hidden_BLD = last_hidden(policy.causal_lm, share_prompt([groups[n] for n in batch]).to(policy.device))
            length_B1 = torch.tensor([[groups[n].tokens] for n in batch], device=policy.device)
            own_BL = torch.arange(hidden_BLD.shape[1], device=policy.device) < length_B1
            embed_ND[batch] = ((hidden_BLD.float() * own_BL[..., None]).sum(1) / length_B1).cpu()
    return embed_ND
