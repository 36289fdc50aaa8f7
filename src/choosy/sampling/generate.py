"""Sampling in this process: the prompt prefilled once for all its responses, finished rows leave the batch.

Each response draws from a stream of its own, so its text depends on its seed, not on its neighbours in the batch.

Axes: R rows (responses in flight), V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from choosy.logprobs import Ids, common_prefix
from choosy.policy import Policy
from choosy.sampling import Done, as_response, refuse_settings
from choosy.types import Response

log = logging.getLogger(__name__)


@dataclass
class _Row:
    """One response in flight."""

    prompt: int
    sample: int
    draws: list[float]
    ids: list[int] = field(default_factory=list)
    logp: float = 0.0


class Generate:
    """Samples with transformers' model and cache in this process.

    Args:
        temperature: 1 samples the policy itself; smaller is sharper; 0 takes the likeliest token.
        top_p: Smallest share of probability that the candidate tokens must reach; 1 = all tokens.
        top_k: Most candidate tokens; 0 = all.
        max_new_tokens: Longest response, end-of-sequence token included.
        batch_size: Responses in flight at once.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        batch_size: int = 64,
    ) -> None:
        refuse_settings(
            temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.sync_seconds = 0.0  # the policy itself is sampled

    def close(self) -> None: ...

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        plain: bool = False,
        done: Done = lambda ended: None,
    ) -> list[list[Response]]:
        """One response for each seed of each prompt (see `Sampler.sample`)."""
        shape = (1.0, 1.0, 0) if plain else (self.temperature, self.top_p, self.top_k)
        responses: list[list[Response]] = [[Response("")] * len(of_prompt) for of_prompt in seeds]
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))  # neighbours of like length
        with policy.for_sampling():
            while order:
                batch = [order.pop(0)]
                rows = len(seeds[batch[0]])
                while order and rows + len(seeds[order[0]]) <= self.batch_size:
                    rows += len(seeds[order[0]])
                    batch.append(order.pop(0))
                for row in self._fitting(policy, batch, prompts, seeds, shape):
                    responses[row.prompt][row.sample] = as_response(policy, row.ids, row.logp)
                done({p: responses[p] for p in batch})
        return responses

    def _fitting(
        self,
        policy: Policy,
        batch: Sequence[int],
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        shape: tuple[float, float, int],
    ) -> list[_Row]:
        """The batch, in halves where the memory does not hold it whole; later batches are then smaller, too."""
        try:
            return self._batch(policy, batch, prompts, seeds, shape)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1 or not policy.forwards_alone:
                raise ValueError(
                    f"Sampling {len(batch)} prompts at once does not fit into the memory of {policy.device}; choose a "
                    f"smaller sampler.max_new_tokens, data.responses, or sampler.batch_size. ({error})"
                ) from error
        self.batch_size = max(1, sum(len(seeds[p]) for p in batch) // 2)
        log.warning("Out of memory in sampling; going on with sampler.batch_size=%d.", self.batch_size)
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        halves = (batch[:middle], batch[middle:])
        return [row for half in halves for row in self._fitting(policy, half, prompts, seeds, shape)]

    def _batch(
        self,
        policy: Policy,
        batch: Sequence[int],
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        shape: tuple[float, float, int],
    ) -> list[_Row]:
        model, device = policy.causal_lm, policy.device
        logits_PV, cache, mask_PL = prefill(model, [prompts[p] for p in batch], device)
        copies = torch.tensor([len(seeds[p]) for p in batch], device=device)
        owner_R = torch.arange(len(batch), device=device).repeat_interleave(copies)
        cache.batch_select_indices(owner_R)
        logits_RV, mask_RL = logits_PV[owner_R], mask_PL[owner_R]
        flying = [_Row(p, n, uniforms(seed, self.max_new_tokens)) for p in batch for n, seed in enumerate(seeds[p])]
        done: list[_Row] = []
        alive = list(range(len(flying)))  # positions in the cache of the rows still flying
        for step in range(self.max_new_tokens):
            draw_R = torch.tensor([row.draws[step] for row in flying], device=device)
            token_R = choose_token(logits_RV, draw_R, *shape)
            logp_R = logits_RV.gather(-1, token_R[:, None]).squeeze(-1) - logits_RV.logsumexp(-1)
            for row, token, logp in zip(flying, token_R.tolist(), logp_R.tolist(), strict=True):
                row.ids.append(token)
                row.logp += logp
            alive = [r for r, row in enumerate(flying) if row.ids[-1] not in policy.stop_ids]
            done += [row for row in flying if row.ids[-1] in policy.stop_ids]
            if not alive or step + 1 == self.max_new_tokens:
                break
            if len(alive) < len(flying):
                keep_R = torch.tensor(alive, device=device)
                cache.batch_select_indices(keep_R)
                flying = [flying[r] for r in alive]
                token_R, mask_RL = token_R[keep_R], mask_RL[keep_R]
            position_R1 = mask_RL.sum(-1, keepdim=True)
            mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(mask_RL), 1)], dim=-1)
            logits_RV = (
                model(
                    input_ids=token_R[:, None], attention_mask=mask_RL, position_ids=position_R1, past_key_values=cache
                )
                .logits[:, -1]
                .float()
            )
        return done + [flying[r] for r in alive]


def prefill(
    model: PreTrainedModel, prompts: Sequence[Ids], device: torch.device
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Next-token logits (P, V), cache and mask (P, L) of left-padded prompts; their common prefix is computed once."""
    prefix = common_prefix(prompts)
    width = max(map(len, prompts)) - len(prefix)
    ids_PL = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_PL = torch.zeros(len(prompts), len(prefix) + width, dtype=torch.long)
    mask_PL[:, : len(prefix)] = 1
    for p, ids in enumerate(prompts):
        own = torch.tensor(ids[len(prefix) :])
        ids_PL[p, width - len(own) :] = own
        mask_PL[p, len(prefix) + width - len(own) :] = 1
    position_PL = (mask_PL.cumsum(-1) - 1)[:, len(prefix) :].clamp(min=0)
    prefix_P = torch.tensor(prefix, dtype=torch.long, device=device)
    cache = prefix_cache(model, prefix_P, len(prompts))
    logits_P1V = model(
        input_ids=ids_PL.to(device),
        attention_mask=mask_PL.to(device),
        position_ids=position_PL.to(device),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits
    return logits_P1V[:, -1].float(), cache, mask_PL.to(device)


def prefix_cache(model: PreTrainedModel, prefix_P: Tensor, copies: int) -> DynamicCache:
    """Keys and values of a prefix, computed once and seen by so many rows."""
    cache = DynamicCache(config=model.config)
    if len(prefix_P):
        model.get_decoder()(input_ids=prefix_P[None], past_key_values=cache, use_cache=True)  # type: ignore[no-untyped-call]
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.keys = layer.keys.expand(copies, -1, -1, -1)
            layer.values = layer.values.expand(copies, -1, -1, -1)
    return cache


def uniforms(seed: int, n: int) -> list[float]:
    """The n uniform draws in [0, 1) of one response."""
    draws: list[float] = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    return draws


def choose_token(logits_RV: Tensor, draw_R: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Tokens (R,) where each row's cumulative distribution passes its uniform draw.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -1e9, 0.0]] * 3)
        >>> choose_token(logits, torch.tensor([0.1, 0.5, 0.9]), 1.0)
        tensor([0, 1, 3])
    """
    if temperature == 0:
        return logits_RV.argmax(-1)
    logits_RV = logits_RV / temperature
    if top_k and top_k < logits_RV.shape[-1]:
        floor_R1 = logits_RV.topk(top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < floor_R1, -torch.inf)
    if top_p < 1:
        sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True)
        share_RV = sorted_RV.softmax(-1)
        beyond_RV = share_RV.cumsum(-1) - share_RV >= top_p  # the token that reaches top_p stays
        logits_RV = logits_RV.scatter(-1, order_RV, sorted_RV.masked_fill(beyond_RV, -torch.inf))
    reach_RV = logits_RV.softmax(-1).cumsum(-1)
    # scaled to the last sum, and strictly to the right: a token of probability zero is never hit
    goal_R1 = draw_R[:, None].to(reach_RV.dtype) * reach_RV[:, -1:]
    return torch.searchsorted(reach_RV, goal_R1, right=True).squeeze(-1).clamp(max=logits_RV.shape[-1] - 1)
