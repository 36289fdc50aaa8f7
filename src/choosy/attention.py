"""Attention for the CPU: query heads that share a key head are one matrix product.

On a CPU in bf16 the fused kernels of torch lose to plain matrix products for the short rows of preference pairs
(docs/log.md); this function is registered with transformers as `grouped`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask


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
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of H query heads over G key heads, in transformers' calling convention.

    Args:
        module: The attention layer; not needed.
        query_BHLK: Queries: batch, query heads, length, head width.
        key_BGSK: Keys: batch, key heads, length seen, head width.
        value_BGSK: Values.
        attention_mask: (B, 1, L, S): True where seen, or 0 there and -inf elsewhere.
        scaling: Factor on the scores; head width ** -0.5 if None.
        dropout: Must be 0: preference log-probs are computed without.
        softcap: Bound of the scores, for models that have one.
        s_aux: Attention sinks; not supported.
    """
    if s_aux is not None:
        raise ValueError("model.attention=grouped knows no attention sinks; choose model.attention=eager.")
    B, H, L, K = query_BHLK.shape
    G, S = key_BGSK.shape[1:3]
    scaling = K**-0.5 if scaling is None else scaling
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
