"""Attention over a tree of segments: a prompt and its responses without padding and without the masked-out products.

All groups of a pass lie one behind the other in one row. A segment (the common prefix, a prompt, a response) sees
itself causally and its ancestors wholly, so attention is a few small dense products a segment. They stay in the
processor's cache, where one masked product over padded rows does not (docs/log.md). Registered with transformers
as `grouped`; with a mask instead of segments it is plain attention in which query heads that share a key head are
one matrix product.

Axes: H query heads, G key heads, R = H/G, N tokens of the row, n = N * R, L queries and S keys of a block, q = L * R,
K head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

BLOCK = 256  # queries at a time: shorter wastes calls, longer computes more of what the causal mask hides


class Segment(NamedTuple):
    """Tokens start..end of a row that continue another segment of it; `parent` is its position, -1 for none."""

    start: int
    end: int
    parent: int


class Block(NamedTuple):
    """Queries start..end and the spans of keys they see; the last end - start keys are seen causally."""

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]


def blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[Block]:
    """The products of a tree, at most `size` queries each.

    Example:
        >>> list(blocks([Segment(0, 2, -1), Segment(2, 5, 0), Segment(5, 6, 0)]))  # prompt, two responses
        [Block(start=0, end=2, spans=((0, 2),)), Block(start=2, end=5, spans=((0, 5),)), \
Block(start=5, end=6, spans=((0, 2), (5, 6)))]
    """
    for start, end, parent in segments:
        above: list[tuple[int, int]] = []
        while parent >= 0:
            above.insert(0, segments[parent][:2])
            parent = segments[parent].parent
        for at in range(start, end, size):
            upto = min(at + size, end)
            spans: list[tuple[int, int]] = []
            for one, other in [*above, (start, upto)]:
                if spans and spans[-1][1] == one:
                    spans[-1] = (spans[-1][0], other)
                elif other > one:
                    spans.append((one, other))
            yield Block(at, upto, tuple(spans))


def _gathered(x_GNK: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    parts = [x_GNK[:, one:other] for one, other in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _spread(total_GNK: Tensor, part_GSK: Tensor, spans: Sequence[tuple[int, int]]) -> None:
    at = 0
    for one, other in spans:
        total_GNK[:, one:other] += part_GSK[:, at : at + other - one]
        at += other - one


def _causal(length: int, heads: int, like: Tensor) -> Tensor:
    """What is added to the scores of `length` queries, each with its heads, against their own keys: (q, l)."""
    hidden_ll = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)
    return hidden_ll.repeat_interleave(heads, dim=0)


def _shares(query_GqK: Tensor, key_GSK: Tensor, causal_ql: Tensor) -> Tensor:
    """Softmax (G, q, S) of scaled queries against keys, the last of which are their own and seen causally."""
    score_GqS = torch.bmm(query_GqK, key_GSK.transpose(1, 2))
    score_GqS[..., -causal_ql.shape[1] :] += causal_ql
    return torch.softmax(score_GqS, dim=-1)


class TreeAttention(torch.autograd.Function):
    """Attention of a tree; the backward recomputes the softmax, so that nothing of size L x S is kept.

    The heads that share a key head lie side by side, (G, N * H/G, K), so that the queries of a block are a slice.
    """

    @staticmethod
    def forward(
        ctx: Any, query_NHK: Tensor, key_GNK: Tensor, value_GNK: Tensor, segments: Sequence[Segment], scaling: float
    ) -> Tensor:
        N, H, K = query_NHK.shape
        G, R = len(key_GNK), H // len(key_GNK)
        query_GnK = (query_NHK * scaling).view(N, G, R * K).transpose(0, 1).reshape(G, N * R, K)
        seen_GnK = torch.empty_like(query_GnK)
        plan = list(blocks(segments))
        causal_ql = _causal(max(end - start for start, end, _ in plan), R, query_GnK)
        for start, end, spans in plan:
            share_GqS = _shares(
                query_GnK[:, start * R : end * R],
                _gathered(key_GNK, spans),
                causal_ql[: (end - start) * R, : end - start],
            )
            seen_GnK[:, start * R : end * R] = torch.bmm(share_GqS, _gathered(value_GNK, spans))
        ctx.plan, ctx.scaling = plan, scaling
        ctx.save_for_backward(query_GnK, key_GNK, value_GNK, seen_GnK)
        return seen_GnK.view(G, N, R * K).transpose(0, 1).reshape(N, H, K)

    @staticmethod
    def backward(ctx: Any, grad_NHK: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_GnK, key_GNK, value_GNK, seen_GnK = ctx.saved_tensors
        N, H, K = grad_NHK.shape
        G, R = len(key_GNK), H // len(key_GNK)
        grad_GnK = grad_NHK.reshape(N, G, R * K).transpose(0, 1).reshape(G, N * R, K)
        along_Gn1 = torch.linalg.vecdot(grad_GnK, seen_GnK).unsqueeze_(-1)
        grad_query_GnK = torch.empty_like(query_GnK)
        grad_key_GNK = torch.zeros_like(key_GNK, dtype=torch.float32)
        grad_value_GNK = torch.zeros_like(value_GNK, dtype=torch.float32)
        causal_ql = _causal(max(end - start for start, end, _ in ctx.plan), R, query_GnK)
        for start, end, spans in ctx.plan:
            own = slice(start * R, end * R)
            query_GqK, grad_GqK = query_GnK[:, own], grad_GnK[:, own]
            key_GSK, value_GSK = _gathered(key_GNK, spans), _gathered(value_GNK, spans)
            share_GqS = _shares(query_GqK, key_GSK, causal_ql[: (end - start) * R, : end - start])
            _spread(grad_value_GNK, torch.bmm(share_GqS.transpose(1, 2), grad_GqK), spans)
            slope_GqS = torch.bmm(grad_GqK, value_GSK.transpose(1, 2)).sub_(along_Gn1[:, own]).mul_(share_GqS)
            _spread(grad_key_GNK, torch.bmm(slope_GqS.transpose(1, 2), query_GqK), spans)
            grad_query_GnK[:, own] = torch.bmm(slope_GqS, key_GSK)
        grad_query_NHK = grad_query_GnK.mul_(ctx.scaling).view(G, N, R * K).transpose(0, 1).reshape(N, H, K)
        return grad_query_NHK, grad_key_GNK.to(key_GNK.dtype), grad_value_GNK.to(value_GNK.dtype), None, None


def grouped_attention(
    module: nn.Module,
    query_BHLK: Tensor,
    key_BGSK: Tensor,
    value_BGSK: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Sequence[Segment] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of H query heads over G key heads, in transformers' calling convention.

    Args:
        module: The attention layer; not needed.
        query_BHLK: Queries: batch, query heads, length, head width.
        key_BGSK: Keys: batch, key heads, length seen, head width.
        value_BGSK: Values.
        attention_mask: (B, 1, L, S): True where seen, or 0 there and -inf elsewhere; without `segments`.
        scaling: Factor on the scores; head width ** -0.5 if None.
        dropout: Must be 0: preference log-probs are computed without.
        softcap: Bound of the scores, for models that have one; without `segments`.
        s_aux: Attention sinks; not supported.
        segments: The tree that the one row holds; instead of a mask.
    """
    if s_aux is not None:
        raise ValueError("model.attention=grouped knows no attention sinks; choose model.attention=eager.")
    B, H, L, K = query_BHLK.shape
    G, S = key_BGSK.shape[1:3]
    scaling = K**-0.5 if scaling is None else scaling
    if segments is not None:
        assert B == 1, "a tree is one row"
        if softcap is not None:
            raise ValueError("model.attention=grouped caps no scores in a shared prompt.")
        dtype = value_BGSK.dtype  # rotation may have left the others wider
        seen_NHK: Tensor = TreeAttention.apply(  # type: ignore[no-untyped-call]
            query_BHLK[0].transpose(0, 1).contiguous().to(dtype),
            key_BGSK[0].contiguous().to(dtype),
            value_BGSK[0].contiguous(),
            segments,
            scaling,
        )
        return seen_NHK[None], None
    query_bqK = (query_BHLK * scaling).reshape(B * G, H // G * L, K)
    score_bqS = torch.bmm(query_bqK, key_BGSK.reshape(B * G, S, K).transpose(1, 2))
    if softcap is not None:
        score_bqS = softcap * torch.tanh(score_bqS / softcap)
    score_BHLS = score_bqS.view(B, H, L, S)
    if attention_mask is not None:
        mask_B1LS = attention_mask[..., :S]
        if mask_B1LS.dtype == torch.bool:
            score_BHLS = score_BHLS.masked_fill(~mask_B1LS, torch.finfo(score_BHLS.dtype).min)
        else:
            score_BHLS = score_BHLS + mask_B1LS
    share_bqS = torch.softmax(score_BHLS, dim=-1).to(value_BGSK.dtype).view(B * G, H // G * L, S)
    seen_BHLK = torch.bmm(share_bqS, value_BGSK.reshape(B * G, S, K)).view(B, H, L, K)
    return seen_BHLK.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `attn_implementation="grouped"` known to transformers."""
    AttentionInterface.register("grouped", grouped_attention)
    AttentionMaskInterface.register("grouped", eager_mask)
