"""Embeddings of responses, alone or behind their prompts: by the reference, another model, sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from choosy.models.damaged import refusing_damaged
from choosy.models.locate import resolve_model
from choosy.models.logprobs import decoded, mean_states, text_config
from choosy.models.policy import Policy
from choosy.models.rows import Group, Ids, packed
from choosy.models.trust import loaded
from choosy.types import Candidates, Response

MOST_ROWS, MOST_TOKENS = 32, 16_384  # of one forward pass of another model than the policy
LONGEST = 512  # tokens of a response that another language model embeds, as in REAL's code
LONGEST_PROMPT = 400  # characters of a prompt that another embedder than the reference reads


def embed(responses: Sequence[Response], embedder: str, policy: Policy) -> Tensor:
    """Embeddings (N, D) of responses without their prompts.

    Args:
        embedder: `policy` = the reference; `lm:NAME` = another language model; else a sentence-transformers model.
        policy: With sharded weights every rank must call this, also without responses.
    """
    if embedder == "policy":
        return policy_embeddings(responses, policy)
    if not responses:
        return torch.zeros(0, 0)
    if embedder.startswith("lm:"):
        return language_model_embeddings(responses, embedder.removeprefix("lm:"), device_of(policy))
    return sentence_embeddings(responses, embedder, device_of(policy))


def embed_with_prompts(answered: Sequence[tuple[Candidates, Response]], embedder: str, policy: Policy) -> Tensor:
    """Embeddings (N, D) of responses behind their prompts.

    The reference reads the whole prompt, another embedder the end of its text: it cuts what is too long at its end, so
    that a long prompt would push the response out. The arguments are those of `embed`.
    """
    if embedder == "policy":
        return policy_embeddings_with_prompts(answered, policy)
    texts = [replace(r, text=f"{c.prompt.text[-LONGEST_PROMPT:]}\n{r.text}") for c, r in answered]
    return embed(texts, embedder, policy)


def device_of(policy: Policy | None = None) -> str:
    """Where embedders run: on the policy's GPU, else on the CPU; without a policy on any GPU."""
    if policy is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(policy.device) if policy.device.type == "cuda" else "cpu"


def refuse_embedder(name: str) -> None:
    """Refuse an embedder whose folder or package is not there."""
    if name.startswith("lm:"):
        resolve_model(name.removeprefix("lm:"))
    elif name != "policy":
        resolve_model("demo:minilm" if name == "minilm" else name, demo="demo:minilm")


@cache
def _encoder(name: str, device: str) -> Any:
    from sentence_transformers import SentenceTransformer  # seconds to import, and only some selectors embed

    source = resolve_model("demo:minilm" if name == "minilm" else name, demo="demo:minilm")
    with refusing_damaged(source):
        return loaded(SentenceTransformer, source, device=device)


def sentence_embeddings(responses: Sequence[Response], name: str, device: str) -> Tensor:
    """Embeddings (N, D) of the responses' texts by `minilm`, a folder, or a hub id of sentence-transformers."""
    encoder = _encoder(name, device)
    texts = [r.text for r in responses]
    rows = max(1, min(MOST_ROWS, MOST_TOKENS // (encoder.max_seq_length or MOST_TOKENS)))
    embed_ND: Tensor = encoder.encode(texts, batch_size=rows, convert_to_tensor=True, show_progress_bar=False)
    return embed_ND.detach().clone().cpu()


@torch.no_grad()
def policy_embeddings(responses: Sequence[Response], policy: Policy) -> Tensor:
    """Embeddings (N, D) of the responses by the reference: last layer, mean over the response's own tokens.

    A response is embedded without its prompt, as in REAL's code (arXiv 2409.17169). With sharded weights every rank
    must call this.
    """
    ids = [_ids(r, policy) for r in responses]
    with policy.states.as_reference(), policy.weights_gathered(), policy.precision():
        return _means(ids, policy.causal_lm, policy.compute.tokens_per_step)


@torch.no_grad()
def policy_embeddings_with_prompts(answered: Sequence[tuple[Candidates, Response]], policy: Policy) -> Tensor:
    """Embeddings (N, D) by the reference: last layer, mean over the places that predict the response's tokens.

    A prompt is computed once for all its responses. With sharded weights every rank must call this.
    """
    of_prompt: dict[Ids, list[int]] = {}
    for n, (c, _) in enumerate(answered):
        of_prompt.setdefault(c.prompt_ids, []).append(n)
    asked = [[answered[n][1] for n in own] for own in of_prompt.values()]
    groups = [
        Group(prompt_ids, [_ids(r, policy) for r in own], [r.mask for r in own])
        for prompt_ids, own in zip(of_prompt, asked, strict=True)
    ]
    embed_ND = torch.zeros(len(answered), text_config(policy.causal_lm).hidden_size)
    places = list(of_prompt.values())
    with policy.states.as_reference(), policy.weights_gathered(), policy.precision():
        share = policy.shares(groups)
        for batch in packed(groups, policy.compute.tokens_per_step, one_row=share and policy.one_row):
            embed_nD = mean_states(policy.causal_lm, [groups[g] for g in batch], share=share)
            embed_ND[[n for g in batch for n in places[g]]] = embed_nD.cpu()
    return embed_ND


def _ids(response: Response, policy: Policy) -> Ids:
    """The token ids of a response; of an empty one the end of the sequence."""
    return response.ids or (policy.tokens.tokenizer.eos_token_id,)


def _means(ids: Sequence[Ids], model: nn.Module, budget: int) -> Tensor:
    """Means (N, D) over the tokens of N texts of a model's last hidden states, in passes of `budget` tokens."""
    device = next(model.parameters()).device
    embed_ND = torch.zeros(len(ids), text_config(model).hidden_size)
    for batch in packed([Group(of_text, []) for of_text in ids], budget):
        rows = [torch.tensor(ids[n]) for n in batch]
        length_B1 = torch.tensor([[len(row)] for row in rows])
        ids_BL = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        own_BL = (torch.arange(ids_BL.shape[1]) < length_B1).to(device)
        hidden_BLD = decoded(model, ids_BL, own_BL.long()).float()
        embed_ND[batch] = (hidden_BLD * own_BL[..., None]).sum(1).cpu() / length_B1
    return embed_ND


@cache
def _language_model(name: str, device: str) -> tuple[Any, Any]:
    source = resolve_model(name)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with refusing_damaged(source):
        model = loaded(AutoModel.from_pretrained, source, dtype=dtype)
    return loaded(AutoTokenizer.from_pretrained, source), model.eval().to(device)


@torch.no_grad()
def language_model_embeddings(responses: Sequence[Response], name: str, device: str) -> Tensor:
    """Embeddings (N, D) of the responses' texts by a frozen language model: last layer, mean over 512 tokens at most.

    This is REAL's embedder (arXiv 2409.17169), where the model is the base model of the policy's family, before SFT.
    """
    tokenizer, model = _language_model(name, device)
    nothing = [tokenizer.eos_token_id or 0]
    ids = [tokenizer(r.text, add_special_tokens=False).input_ids[:LONGEST] or nothing for r in responses]
    return _means(ids, model, MOST_TOKENS)
