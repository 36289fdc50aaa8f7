"""The key-value cache that sampling starts from, each prompt computed once for all its responses.

Where the attention takes a tree of segments, all prompts are in one row without padding; else they are padded on the
left. Either way their common prefix, such as a system prompt, is computed once.

Axes: P prompts, R rows (responses in flight), G key heads, N tokens of a row of all prompts, L keys of a row, K head
width, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from choosy.models.fast.tree_attention import Segment
from choosy.models.logprobs import last_hidden, needs_no_mask
from choosy.models.policy import Policy
from choosy.models.rows import Group, Ids, common_prefix, share_prompt


class Prefilled(NamedTuple):
    """What the first token of each response is drawn from."""

    logits_RV: Tensor
    cache: DynamicCache  # padded on the left
    mask_RL: Tensor  # 1 for a key, 0 for padding


ROOM = 32  # the number of keys is rounded up to a multiple: room for the next ones, and a fast width on a CPU


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer with spare room: new ones are written into it, where other layers copy everything.

    The room is part of what attention sees, and hidden by its mask, as with a static cache.
    """

    keys: Tensor  # never None here
    values: Tensor

    def __init__(self, key_RGLK: Tensor, value_RGLK: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers gives it no type
        self.lazy_initialization(key_RGLK, value_RGLK)
        self.length = key_RGLK.shape[-2]
        self.keys, self.values = (_with_room(states, self.length + 1) for states in (key_RGLK, value_RGLK))

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys for the next queries, room included, and where these start."""
        return max(self.keys.shape[-2], _rounded(self.length + query_length)), 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.keys.shape[-2]:
            self.keys, self.values = (_with_room(held, self.length) for held in (self.keys, self.values))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows; only those that change their place are moved."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().flatten()
        for held in (self.keys, self.values):
            held[moved] = held[beam_idx[moved]]
        self.keys, self.values = self.keys[: len(beam_idx)], self.values[: len(beam_idx)]


def _rounded(length: int) -> int:
    return -(-length // ROOM) * ROOM


def _with_room(states_RGLK: Tensor, length: int) -> Tensor:
    R, G, L, K = states_RGLK.shape
    held_RGMK = states_RGLK.new_zeros(R, G, _rounded(length), K)  # the mask hides numbers, and not nan
    held_RGMK[:, :, :L] = states_RGLK
    return held_RGMK


def prefill(policy: Policy, prompts: Sequence[Ids], copies: Sequence[int]) -> Prefilled:
    """Compute the prompts once, inside `Policy.for_sampling`, and copy keys and values for so many responses each."""
    model, device = policy.causal_lm, policy.device
    owner_R = torch.arange(len(prompts)).repeat_interleave(torch.tensor(list(copies)))
    # attention that counts keys instead of using the mask (ALiBi, GPT-Neo's window) allows neither padding nor room
    by_mask = policy.shares_prompts and not hasattr(model.config, "window_size")
    keeps_all = [type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers]  # no window
    if by_mask and all(keeps_all) and fit_one_row(policy, prompts):
        return _from_tree(model, prompts, owner_R, device)
    # the padding is between the prefix and the rest, where a sliding window would count it
    prefix = common_prefix(prompts) if by_mask and all(keeps_all) else []
    logits_PV, cache, mask_PL = _padded(model, prompts, prefix, device)
    layers: list[Any] = cache.layers
    for n, layer in enumerate(layers):  # one after the other, so that only one is held twice
        layer.reorder_cache(owner_R.to(device))  # the one selection that every kind of layer has
        if by_mask and keeps_all[n]:
            layers[n] = RoomyLayer(layer.keys, layer.values)
    return Prefilled(logits_PV[owner_R], cache, mask_PL[owner_R])


def fit_one_row(policy: Policy, prompts: Sequence[Ids]) -> bool:
    """Whether the prompts fit into one row, and its mask is not too large: flex attention's is square."""
    small = sum(map(len, prompts)) <= policy.compute.tokens_per_step or needs_no_mask(policy.causal_lm)
    return small and policy.one_row and policy.shares([Group(ids, []) for ids in prompts])


def _from_tree(model: PreTrainedModel, prompts: Sequence[Ids], owner_R: Tensor, device: torch.device) -> Prefilled:
    """Compute all prompts in one row, whose keys are then copied for each response."""
    laid = share_prompt([Group(ids, []) for ids in prompts], one_row=True)
    cache = DynamicCache()
    hidden_1ND = last_hidden(model, laid.to(device), cache)
    segments = laid.segments[0]
    own = segments[-len(prompts) :]  # behind the common prefix, if there is one
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers gives it no type
    logits_PV = head(hidden_1ND[0, [segment.end - 1 for segment in own]]).float()
    token_PL, mask_PL = _left_padded([_path(segments, segment) for segment in own])
    token_RL = token_PL[owner_R].to(device)
    layers: list[Any] = cache.layers
    cache.layers = [
        RoomyLayer(*(states[0][:, token_RL].transpose(0, 1) for states in (layer.keys, layer.values)))
        for layer in layers
    ]
    return Prefilled(logits_PV[owner_R], cache, mask_PL[owner_R].to(device))


def _path(segments: Sequence[Segment], segment: Segment) -> list[int]:
    """The positions of a segment's tokens and of its ancestors', in their order."""
    above = _path(segments, segments[segment.parent]) if segment.parent >= 0 else []
    return [*above, *range(segment.start, segment.end)]


def _left_padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Rows of integers (P, L), padded on the left with 0, and where they are (P, L)."""
    value_PL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask_PL = torch.zeros_like(value_PL)
    for p, row in enumerate(rows):
        value_PL[p, -len(row) :] = torch.tensor(row)
        mask_PL[p, -len(row) :] = 1
    return value_PL, mask_PL


def _padded(
    model: PreTrainedModel, prompts: Sequence[Ids], prefix: Ids, device: torch.device
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Compute next-token logits (P, V), cache and mask (P, L) of left-padded prompts; their prefix once."""
    ids_PL, own_PL = _left_padded([ids[len(prefix) :] for ids in prompts])
    mask_PL = torch.cat([own_PL.new_ones(len(prompts), len(prefix)), own_PL], dim=-1)
    position_PL = (mask_PL.cumsum(-1) - 1)[:, len(prefix) :].clamp(min=0)
    cache = DynamicCache(config=model.config)
    if prefix:
        prefix_1L = torch.tensor([prefix], device=device)
        model.get_decoder()(input_ids=prefix_1L, past_key_values=cache, use_cache=True)  # type: ignore[no-untyped-call]  # transformers gives it no type
        cache.batch_repeat_interleave(len(prompts))
    logits_P1V = model(
        input_ids=ids_PL.to(device),
        attention_mask=mask_PL.to(device),
        position_ids=position_PL.to(device),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits
    return logits_P1V[:, -1].float(), cache, mask_PL.to(device)
