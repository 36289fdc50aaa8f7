"""Attention over a tree of segments, such as a prompt with its responses, without padding.

All groups of a pass are in one row, one after the other. A segment (the common prefix, a prompt, a response) attends
to its own past and to all of its ancestors: a few small dense products, which fit into the processor's cache; short
ones of similar size are computed together (docs/log.md). transformers knows it as `grouped`; with a mask instead of
segments it is plain attention in which query heads that share a key head are one matrix product.

Axes: H query heads, G key heads, R = H/G, N tokens of the row, X = N * H, Y = N * G, n blocks of a bundle, L queries
and S keys of a block, Z of them not seen by all, b = G * n, q = R * L, K head width, W that of values (mostly K).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

BLOCK = 256  # queries at a time: shorter wastes calls, longer computes more of what the causal mask hides
A_CALL = 4_096  # scores of one query head that take as long as the fixed cost of a bundle
A_BUNDLE = 2**19  # most scores of one query head in one product, which bounds the memory
KEPT = 3  # softmaxes of at most so many times the queries' size wait for the backward, larger ones are made again
KEYS = 16  # keys are padded to a multiple of this, for which products and softmax are faster


class Segment(NamedTuple):
    """Tokens start..end of a row that continue another segment; `parent` is its position, -1 for none."""

    start: int
    end: int
    parent: int


class Block(NamedTuple):
    """Queries start..end and the spans of keys they attend to, causally to the last end - start ones."""

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]

    @property
    def queries(self) -> int:
        return self.end - self.start

    @property
    def keys(self) -> int:
        return sum(end - start for start, end in self.spans)


def blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[Block]:
    """Cut a tree into products of at most `size` queries each.

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


class Bundle(NamedTuple):
    """Blocks that are computed as one product, padded to the longest.

    Attributes:
        query_GnRL: The row of each query among all (token, query head); a padded one repeats the block's first.
        key_GnS: The row of each key among all (token, key head), ancestors first; likewise.
        real_nL: 1 for a query, 0 for a padded one.
        hidden_nLZ: What is added to the scores of the last Z keys: -inf where a query does not attend to one, else 0.
            Every query attends to all keys before them.
    """

    query_GnRL: Tensor
    key_GnS: Tensor
    real_nL: Tensor
    hidden_nLZ: Tensor


def bundles(plan: Sequence[Block]) -> Iterator[list[Block]]:
    """Put blocks of similar size together, as long as the padding takes less time than separate calls.

    Example:
        >>> short, long = Block(0, 30, ((0, 30),)), Block(60, 316, ((60, 316),))
        >>> [len(bundle) for bundle in bundles([short, long, Block(30, 60, ((30, 60),))])]
        [2, 1]
    """
    together: list[Block] = []
    queries = keys = 0
    for block in sorted(plan, key=lambda block: (block.keys, block.queries)):
        most = max(queries, block.queries), max(keys, block.keys)
        apart = len(together) * queries * keys + block.queries * block.keys + A_CALL
        if together and (len(together) + 1) * most[0] * most[1] > min(apart, A_BUNDLE):
            yield together
            together, most = [], (block.queries, block.keys)
        together.append(block)
        queries, keys = most
    if together:
        yield together


class Tree:
    """What each token of a row attends to, laid out once for all layers."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.bundles = list(bundles(list(blocks(segments))))
        self.tokens = max(end for _, end, _ in segments)
        self._laid: dict[Any, tuple[list[Bundle], Tensor]] = {}

    def laid(self, heads: int, key_heads: int, like: Tensor) -> tuple[list[Bundle], Tensor]:
        """The bundles for a number of heads, and the place (X,) of each query in their results."""
        known = heads, key_heads, like.dtype, like.device
        if known not in self._laid:
            laid = [_laid(bundle, heads, key_heads) for bundle in self.bundles]
            place_X = torch.empty(self.tokens * heads, dtype=torch.long)
            at = 0
            for query_GnRL, _, real_nL, _ in laid:
                real_GnRL = real_nL.bool()[:, None].expand_as(query_GnRL)
                place_X[query_GnRL[real_GnRL]] = at + torch.arange(query_GnRL.numel()).view_as(query_GnRL)[real_GnRL]
                at += query_GnRL.numel()
            on = like.device
            moved = [Bundle(q.to(on), k.to(on), real.to(like), hidden.to(like)) for q, k, real, hidden in laid]
            self._laid[known] = moved, place_X.to(on)
        return self._laid[known]


def _laid(together: Sequence[Block], heads: int, key_heads: int) -> Bundle:
    R = heads // key_heads
    L = max(block.queries for block in together)
    S = -(-max(block.keys for block in together) // KEYS) * KEYS
    query_nL = torch.tensor([[*range(b.start, b.end), *[b.start] * (L - b.queries)] for b in together])
    key_nS = torch.tensor(
        [[*(at for span in b.spans for at in range(*span)), *[b.start] * (S - b.keys)] for b in together]
    )
    own_n1 = torch.tensor([[block.queries] for block in together])
    all_n1 = torch.tensor([[block.keys] for block in together])
    head_GR = torch.arange(heads).view(key_heads, R)
    first = min(block.keys - block.queries for block in together)
    seen_nL = torch.minimum(all_n1 - own_n1 + torch.arange(1, L + 1), all_n1)  # how many keys, from the first on
    return Bundle(
        query_nL[:, None] * heads + head_GR[:, None, :, None],
        key_nS * key_heads + torch.arange(key_heads)[:, None, None],
        (torch.arange(L) < own_n1).float(),
        torch.zeros(len(together), L, S - first).masked_fill_(torch.arange(first, S) >= seen_nL[..., None], -torch.inf),
    )


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _rows(x_XK: Tensor, at: Tensor) -> Tensor:
    """Select rows of a matrix by an index, whose first two axes become one, and its last two."""
    return x_XK.index_select(0, at.flatten()).view(at.shape[0] * at.shape[1], -1, x_XK.shape[-1])


def _shares(query_bqK: Tensor, key_bSK: Tensor, hidden_nLZ: Tensor) -> Tensor:
    """Softmax (b, q, S) of scaled queries against keys."""
    score_bqS = torch.bmm(query_bqK, key_bSK.transpose(1, 2))
    n, L, Z = hidden_nLZ.shape
    score_bqS.view(len(score_bqS) // n, n, -1, L, key_bSK.shape[1])[..., -Z:].add_(hidden_nLZ[:, None])
    return torch.softmax(score_bqS, dim=-1)


class TreeAttention(torch.autograd.Function):
    """Attention of a tree; the backward recomputes a large softmax, so that nothing of size L x S is stored."""

    @staticmethod
    def forward(ctx: Any, query_NHK: Tensor, key_NGK: Tensor, value_NGW: Tensor, tree: Tree, scaling: float) -> Tensor:
        N, H = query_NHK.shape[:2]
        query_XK, key_YK, value_YW = _flat(query_NHK), _flat(key_NGK), _flat(value_NGW)
        plan, place_X = tree.laid(H, key_NGK.shape[1], query_NHK)
        seen, kept = [], []
        scores = H * sum(bundle.real_nL.numel() * bundle.key_GnS.shape[-1] for bundle in plan)
        keeps = any(ctx.needs_input_grad) and scores <= KEPT * query_NHK.numel()
        for query_GnRL, key_GnS, _, hidden_nLZ in plan:
            share_bqS = _shares(_rows(query_XK, query_GnRL).mul_(scaling), _rows(key_YK, key_GnS), hidden_nLZ)
            seen.append(_flat(torch.bmm(share_bqS, _rows(value_YW, key_GnS))))
            kept += [share_bqS] if keeps else []
        seen_XW = torch.cat(seen).index_select(0, place_X)
        ctx.tree, ctx.scaling = tree, scaling
        ctx.save_for_backward(query_NHK, key_NGK, value_NGW, seen_XW, *kept)
        return seen_XW.view(N, H, -1)

    @staticmethod
    def backward(ctx: Any, grad_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_NHK, key_NGK, value_NGW, seen_XW, *kept = ctx.saved_tensors
        query_XK, key_YK, value_YW, grad_XW = map(_flat, (query_NHK, key_NGK, value_NGW, grad_NHW))
        plan, place_X = ctx.tree.laid(query_NHK.shape[1], key_NGK.shape[1], query_NHK)
        along_X1 = torch.linalg.vecdot(grad_XW, seen_XW).unsqueeze_(-1)
        grad_query: list[Tensor] = []
        grad_key_YK = torch.zeros_like(key_YK, dtype=torch.float32)
        grad_value_YW = torch.zeros_like(value_YW, dtype=torch.float32)
        for n, (query_GnRL, key_GnS, real_nL, hidden_nLZ) in enumerate(plan):
            query_bqK = _rows(query_XK, query_GnRL).mul_(ctx.scaling)
            key_bSK, value_bSW = _rows(key_YK, key_GnS), _rows(value_YW, key_GnS)
            real_bq1 = real_nL[:, None].expand(query_GnRL.shape).reshape(*query_bqK.shape[:2], 1)
            grad_bqW = _rows(grad_XW, query_GnRL).mul_(real_bq1)
            along_bq1 = _rows(along_X1, query_GnRL).mul_(real_bq1)
            share_bqS = kept[n] if kept else _shares(query_bqK, key_bSK, hidden_nLZ)
            key_y = key_GnS.flatten()
            grad_value_YW.index_add_(0, key_y, _flat(torch.bmm(share_bqS.transpose(1, 2), grad_bqW)).float())
            slope_bqS = torch.bmm(grad_bqW, value_bSW.transpose(1, 2)).sub_(along_bq1).mul_(share_bqS)
            grad_key_YK.index_add_(0, key_y, _flat(torch.bmm(slope_bqS.transpose(1, 2), query_bqK)).float())
            grad_query.append(_flat(torch.bmm(slope_bqS, key_bSK)))
        grad_query_XK = torch.cat(grad_query).index_select(0, place_X).mul_(ctx.scaling)
        return (
            grad_query_XK.view_as(query_NHK),
            grad_key_YK.to(key_YK.dtype).view_as(key_NGK),
            grad_value_YW.to(value_YW.dtype).view_as(value_NGW),
            None,
            None,
        )


def grouped_attention(
    module: nn.Module,
    query_BHLK: Tensor,
    key_BGSK: Tensor,
    value_BGSW: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: Tree | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of H query heads over G key heads, in transformers' calling convention.

    Args:
        attention_mask: (B, 1, L, S): True where there is attention, or 0 there and -inf elsewhere; without `tree`.
        scaling: Factor on the scores; head width ** -0.5 if None.
        dropout: Must be 0: preference log-probs are computed without.
        softcap: Bound of the scores, for models that have one; without `tree`.
        s_aux: Attention sinks; not supported.
        tree: Of the one row; instead of a mask.
    """
    if s_aux is not None:
        raise ValueError(
            "model.compute.attention=grouped supports no attention sinks; choose model.compute.attention=eager."
        )
    B, H, L, K = query_BHLK.shape
    G, S = key_BGSK.shape[1:3]
    scaling = K**-0.5 if scaling is None else scaling
    if tree is not None:
        assert B == 1, "a tree is one row"
        if softcap is not None:
            raise ValueError("model.compute.attention=grouped caps no scores in a shared prompt.")
        dtype = value_BGSW.dtype  # rotation may have left the others wider
        seen_NHW: Tensor = TreeAttention.apply(  # type: ignore[no-untyped-call]  # torch gives it no type
            query_BHLK[0].transpose(0, 1).contiguous().to(dtype),
            key_BGSK[0].transpose(0, 1).contiguous().to(dtype),
            value_BGSW[0].transpose(0, 1).contiguous(),
            tree,
            scaling,
        )
        return seen_NHW[None], None
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
    share_bqS = torch.softmax(score_BHLS, dim=-1).to(value_BGSW.dtype).view(B * G, H // G * L, S)
    seen_BHLW = torch.bmm(share_bqS, value_BGSW.reshape(B * G, S, -1)).view(B, H, L, -1)
    return seen_BHLW.transpose(1, 2).contiguous(), None


def register() -> None:
    """Register `attn_implementation="grouped"` with transformers."""
    AttentionInterface.register("grouped", grouped_attention)
    AttentionMaskInterface.register("grouped", eager_mask)
