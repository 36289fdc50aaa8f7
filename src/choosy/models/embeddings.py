"""Embeddings of responses, by the frozen policy, another language model or sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from choosy.models.locate import resolve_embedder, resolve_model
from choosy.models.logprobs import last_hidden
from choosy.models.policy import Policy
from choosy.models.rows import Group, packed, share_prompt
from choosy.types import Response

NAMES = {"minilm": "demo:minilm"}
MOST_ROWS, MOST_TOKENS = 32, 16_384  # of one forward pass of another model than the policy
LONGEST = 512  # tokens of a response that another language model embeds, as in REAL's code


def embed(responses: Sequence[Response], embedder: str, policy: Policy) -> Tensor:
    """Embeddings (N, D) of responses without their prompts.

    Args:
        responses: N responses.
        embedder: `policy` = the reference; `lm:NAME` = another language model; else a sentence-transformers model.
        policy: The policy; with sharded weights every rank must call this, also without responses.
    """
    if embedder == "policy":
        return policy_embeddings(responses, policy)
    if not responses:
        return torch.zeros(0, 0)
    if embedder.startswith("lm:"):
        return language_model_embeddings(responses, embedder.removeprefix("lm:"))
    return sentence_embeddings(responses, embedder)


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


@cache
def _language_model(name: str, device: str) -> tuple[Any, Any]:
    source = resolve_model(name)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source, dtype=dtype).eval().to(device)


@torch.no_grad()
def language_model_embeddings(responses: Sequence[Response], name: str) -> Tensor:
    """Embeddings (N, D) of the responses' texts by a frozen language model: last layer, mean over tokens.

    This is REAL's embedder (arXiv 2409.17169), where the model is the base model of the policy's family, before SFT.

    Args:
        responses: N responses; of longer texts the first 512 tokens count.
        name: `demo:smollm2`, a folder, or a hub id of a causal language model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = _language_model(name, device)
    nothing = [tokenizer.eos_token_id or 0]
    ids = [tokenizer(r.text, add_special_tokens=False).input_ids[:LONGEST] or nothing for r in responses]
    embed_ND = torch.zeros(len(ids), model.config.hidden_size)
    for batch in packed([Group(tuple(one), []) for one in ids], MOST_TOKENS):
        ids_BL = pad_sequence([torch.tensor(ids[n]) for n in batch], batch_first=True).to(device)
        length_B1 = torch.tensor([[len(ids[n])] for n in batch], device=device)
        own_BL = torch.arange(ids_BL.shape[1], device=device) < length_B1
        hidden_BLD = model(input_ids=ids_BL, attention_mask=own_BL.long()).last_hidden_state.float()
        embed_ND[batch] = ((hidden_BLD * own_BL[..., None]).sum(1) / length_B1).cpu()
    return embed_ND
