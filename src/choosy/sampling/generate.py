"""Sampling with transformers' model in this process.

A prompt is computed once for all its responses, and finished rows leave the batch. Each response has its own stream of
random numbers, so that its text depends on its seed and not on its neighbours in the batch.

Axes: R rows (responses in flight), N tokens of a response, T tries of a draw, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.models.fast.fused import packed_linears
from choosy.parallel.sharding import is_sharded
from choosy.sampling.prefill import prefill
from choosy.sampling.protocol import OnComplete, Request, Sampler, as_response, check_engine
from choosy.terminal import logger
from choosy.types import Response

log = logger(__name__)

TRIES = 4  # draws for a token, of which top_p = 0.9 needs the second in one of ten cases


class _Sampled(NamedTuple):
    """One response: its place (its prompt's position, which of the prompt's samples), its tokens and its log-prob."""

    place: tuple[int, int]
    ids: list[int]
    logp: float


@dataclass(kw_only=True, eq=False)
class Generate(Sampler):
    """Samples with transformers' model and cache in this process; for its arguments see `Sampler`."""

    origin: str = field(default="sampler=generate", init=False)
    _checked: bool = field(default=False, init=False, repr=False)  # whether this engine samples the policy

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, settings = request
        refuse_deterministic(policy.device)
        if not self._checked and any(seeds) and not is_sharded(policy):
            self._checked = True
            brief = replace(settings, max_new_tokens=min(settings.max_new_tokens, 16))
            prompt, seed = next((ids, of_prompt[0]) for ids, of_prompt in zip(prompts, seeds, strict=True) if of_prompt)
            ((first,),) = self._sample(Request(policy, [prompt], [[seed]], brief), done=lambda ended: None)
            check_engine("generate", policy, prompt, first)
        return self._sample(request, done)

    def _sample(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, _ = request
        responses = request.blank
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))  # prompts of similar length together
        packed = packed_linears(policy.causal_lm, self.batch_size) if policy.compute.packed else nullcontext()
        with policy.for_sampling(), packed:
            while order:
                batch = [order.pop(0)]
                rows = len(seeds[batch[0]])
                while order and rows + len(seeds[order[0]]) <= self.batch_size:
                    rows += len(seeds[order[0]])
                    batch.append(order.pop(0))
                for (p, n), ids, logp in self._fitting(request, batch):
                    responses[p][n] = as_response(policy, ids, logp)
                done({p: responses[p] for p in batch})
        return responses

    def _fitting(self, request: Request, batch: Sequence[int]) -> list[_Sampled]:
        """Sample a batch, in halves if it does not fit into the memory; later batches are then smaller too."""
        policy = request.policy
        try:
            return _sample_batch(request, batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1 or not policy.is_gathered:
                raise ValueError(
                    f"Sampling {len(batch)} prompts at once does not fit into the memory of {policy.device}; choose a "
                    f"smaller sampler.max_new_tokens, data.responses, or sampler.batch_size. ({error})"
                ) from error
        self.batch_size = max(1, sum(len(request.seeds[p]) for p in batch) // 2)
        log.warning("Out of memory in sampling; it continues with sampler.batch_size=%d.", self.batch_size)
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return [row for half in (batch[:middle], batch[middle:]) for row in self._fitting(request, half)]


def refuse_deterministic(device: torch.device) -> None:
    """Refuse what makes torch refuse the sums by which tokens are chosen on a GPU."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and device.type == "cuda":
        raise ValueError(
            "+trainer.deterministic=true lets torch do nothing on a GPU that it cannot repeat to the bit, and the sums "
            "by which tokens are chosen are not; type +trainer.deterministic=warn."
        )


def _sample_batch(request: Request, batch: Sequence[int]) -> list[_Sampled]:
    policy, prompts, seeds, settings = request
    model, device, last = policy.causal_lm, policy.device, settings.max_new_tokens
    logits_RV, cache, mask_RL = prefill(policy, [prompts[p] for p in batch], [len(seeds[p]) for p in batch])
    places = [(p, n) for p in batch for n in range(len(seeds[p]))]  # of each row: its prompt and sample
    draw_RNT = torch.stack([uniforms(seed, last) for p in batch for seed in seeds[p]]).to(device)
    ids_RN = torch.zeros(len(places), last, dtype=torch.long, device=device)
    exact = torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs have not
    logp_R = torch.zeros(len(places), dtype=exact, device=device)
    stop_S = torch.tensor(sorted(policy.tokens.stop_ids), dtype=torch.long, device=device)
    done: list[_Sampled] = []
    for n in range(last):
        logp_RV = logits_RV.log_softmax(-1)
        token_R = choose_token(logits_RV, draw_RNT[:, n], settings.temperature, settings.top_p, settings.top_k)
        ids_RN[:, n] = token_R
        logp_R += logp_RV.gather(-1, token_R[:, None]).squeeze(-1)
        refuse_nan(logp_R, n)
        ended_R = torch.isin(token_R, stop_S) if n + 1 < last else torch.ones_like(token_R, dtype=torch.bool)
        if ended_R.any():
            rows = ended_R.nonzero().flatten().tolist()
            ended = zip(rows, ids_RN[rows, : n + 1].tolist(), logp_R[rows].tolist(), strict=True)
            done += [_Sampled(places[row], ids, logp) for row, ids, logp in ended]
            if len(rows) == len(places):
                break
            alive = closed_up((~ended_R).nonzero().flatten().tolist())
            keep_R = torch.tensor(alive, device=device)
            cache.reorder_cache(keep_R)  # type: ignore[arg-type]  # any integers, whatever it says
            places = [places[row] for row in alive]
            token_R, mask_RL, draw_RNT, ids_RN, logp_R = (
                rows_R[keep_R] for rows_R in (token_R, mask_RL, draw_RNT, ids_RN, logp_R)
            )
        position_R1 = mask_RL.sum(-1, keepdim=True)
        mask_RL = torch.cat([mask_RL, mask_RL.new_ones(len(mask_RL), 1)], dim=-1)
        found = model(
            input_ids=token_R[:, None], attention_mask=mask_RL, position_ids=position_R1, past_key_values=cache
        )
        logits_RV = found.logits[:, -1].float()
    return done


def refuse_nan(logp_R: Tensor, step: int) -> None:
    """Refuse to sample from logits that are no numbers."""
    if logp_R.isnan().any():
        raise ValueError(
            f"The policy's logits are no numbers (nan) at token {step + 1} of a response: nothing can be sampled. "
            "Resume from an earlier checkpoint with a smaller lr, or check the model's weights."
        )


def closed_up(alive: Sequence[int]) -> list[int]:
    """Order places so that as few as possible move: later ones fill the gaps.

    Example:
        >>> closed_up([0, 2, 3, 5])
        [0, 5, 2, 3]
    """
    staying = {place for place in alive if place < len(alive)}
    movers = (place for place in reversed(alive) if place >= len(alive))
    return [place if place in staying else next(movers) for place in range(len(alive))]


def uniforms(seed: int, n: int) -> Tensor:
    """Draw the uniform numbers (N, T) in [0, 1) of one response: for each of its n tokens one, and some more tries."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(TRIES, n, generator=generator, dtype=torch.float64).T.float()


def choose_token(logits_RV: Tensor, draw_RT: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Find the tokens (R,) at which each row's cumulative distribution passes its uniform draw.

    Args:
        logits_RV: Logits of the next token.
        draw_RT: Uniform draws; those after the first are for `top_p`, where a token may be drawn again.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Smallest share of probability that the candidate tokens must reach.
        top_k: Most candidate tokens; 0 = all.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -1e9, 0.0]] * 3)
        >>> choose_token(logits, torch.tensor([[0.1], [0.5], [0.9]]), 1.0)
        tensor([0, 1, 3])
    """
    if temperature == 0:
        return logits_RV.argmax(-1)
    if temperature != 1:
        logits_RV = logits_RV / temperature
    if top_k and top_k < logits_RV.shape[-1]:
        floor_R1 = logits_RV.topk(top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < floor_R1, -torch.inf)
    share_RV = logits_RV.softmax(-1)
    return _hit(share_RV, draw_RT[:, 0]) if top_p == 1 else _hit_nucleus(share_RV, draw_RT, top_p)


def _hit_nucleus(share_RV: Tensor, draw_RT: Tensor, top_p: float) -> Tensor:
    """Find the token (R,) that each draw hits among the likeliest ones that reach `top_p` together.

    A token is inside if those likelier than it do not reach `top_p`. One that is outside is drawn again, so that the
    vocabulary is sorted only for the few rows whose tries were all outside.
    """
    if draw_RT.shape[1] == 1:
        sorted_RV = share_RV.sort(dim=-1, descending=True).values
        inside_RV = sorted_RV.cumsum(-1) - sorted_RV < top_p
        floor_R1 = sorted_RV.where(inside_RV, torch.inf).amin(-1, keepdim=True)
        return _hit(share_RV.where(share_RV >= floor_R1, 0.0), draw_RT[:, 0])
    token_R = _hit(share_RV, draw_RT[:, 0])
    share_R1 = share_RV.gather(-1, token_R[:, None])
    rare_R = (share_R1.squeeze(-1) <= 1 - top_p).nonzero().squeeze(-1)  # those likelier than another do not reach top_p
    rare_RV = share_RV[rare_R]
    likelier_R = rare_RV.where(rare_RV > share_R1[rare_R], 0.0).sum(-1)
    outside_R = rare_R[likelier_R >= top_p]
    if len(outside_R):
        token_R[outside_R] = _hit_nucleus(share_RV[outside_R], draw_RT[outside_R, 1:], top_p)
    return token_R


def _hit(share_RV: Tensor, draw_R: Tensor, block: int = 256) -> Tensor:
    """Find the token (R,) that each draw hits: first its block of the vocabulary, then its place within.

    Draws are scaled to the last sum, and the search is strictly to the right, so that a token of probability zero is
    never hit. Where sums do not grow from left to right, as on a GPU to the last bit, the token is still one of V.
    """
    R, V = share_RV.shape
    C = -(-V // block)
    share_RCB = F.pad(share_RV, (0, -V % block)).view(R, C, block)
    reach_RC = share_RCB.sum(-1).cumsum(-1)
    goal_R1 = draw_R[:, None].to(reach_RC.dtype) * reach_RC[:, -1:]
    block_R1 = torch.searchsorted(reach_RC, goal_R1, right=True)
    block_R1 = block_R1.clamp(max=torch.searchsorted(reach_RC, reach_RC[:, -1:].contiguous()).clamp(max=C - 1))
    before_R1 = F.pad(reach_RC, (1, 0)).gather(-1, block_R1)
    within_RB = share_RCB[torch.arange(R, device=share_RV.device), block_R1[:, 0]].cumsum(-1)
    place_R1 = torch.searchsorted(within_RB, goal_R1 - before_R1, right=True)
    last_R1 = torch.searchsorted(within_RB, within_RB[:, -1:].contiguous())  # both sums are rounded apart
    return (block_R1 * block + torch.minimum(place_R1, last_R1)).clamp(max=V - 1).squeeze(-1)
