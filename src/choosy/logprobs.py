"""Log-probabilities of many responses to one prompt: the hot path of training, scoring and evaluation.

The prompt is computed once for all its responses: one row holds prompt + response 1 + ... + response N, positions
restart after the prompt, and the mask hides the siblings. What all prompts of a pass begin with, such as a system
prompt, is computed once for all rows. Logits exist only where a response token is predicted, a chunk at a time.

Axes: B rows, L tokens of a row, K keys (the common prefix, then the row), T predicted tokens, S responses,
D hidden width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

log = logging.getLogger(__name__)

Ids = Sequence[int]


class Group(NamedTuple):
    """The token ids of one prompt and of its responses, each ending as the policy ended it."""

    prompt_ids: Ids
    response_ids: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """Length of the group's row when the prompt is shared."""
        return len(self.prompt_ids) + sum(max(len(ids) - 1, 0) for ids in self.response_ids)


@dataclass(frozen=True)
class Rows:
    """Groups laid out for one forward pass, and where each response token is predicted."""

    ids_BL: Tensor
    position_BL: Tensor
    mask_BLK: Tensor  # True where the query (second axis) may look at the key (third)
    row_T: Tensor
    column_T: Tensor
    target_T: Tensor
    response_T: Tensor
    prefix_P: Tensor  # what all prompts begin with; not in the rows
    responses: int

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        return Rows(
            self.ids_BL.to(device),
            self.position_BL.to(device),
            self.mask_BLK.to(device),
            self.row_T.to(device),
            self.column_T.to(device),
            self.target_T.to(device),
            self.response_T.to(device),
            self.prefix_P.to(device),
            self.responses,
        )


SHORTEST_PREFIX = 8  # a pass of its own for fewer tokens costs more than it saves


def common_prefix(prompts: Sequence[Ids]) -> Ids:
    """What all prompts begin with, so that each keeps at least one token of its own; nothing for a single prompt.

    Example:
        >>> common_prefix([[5, 6, 7], [5, 6], [5, 6, 8]])
        [5]
    """
    if len(prompts) < 2:
        return []
    shortest = min(prompts, key=len)
    length = 0
    while length < len(shortest) - 1 and all(ids[length] == shortest[length] for ids in prompts):
        length += 1
    return list(shortest[:length])


def share_prompt(groups: Sequence[Group], *, share_prefix: bool = False) -> Rows:
    """One row a group: the prompt once, then every response; a response's last token is only ever a target.

    Args:
        groups: What the rows hold.
        share_prefix: Take what all prompts begin with out of the rows, to be computed once.

    Raises:
        ValueError: A prompt without tokens, from which nothing can be predicted.
    """
    prefix = common_prefix([group.prompt_ids for group in groups]) if share_prefix else []
    if len(prefix) < SHORTEST_PREFIX:
        prefix = []
    groups = [Group(group.prompt_ids[len(prefix) :], group.response_ids) for group in groups]
    width = max(group.tokens for group in groups)
    ids_BL = torch.zeros(len(groups), width, dtype=torch.long)
    position_BL = torch.zeros(len(groups), width, dtype=torch.long)
    segment_BL = torch.full((len(groups), width), -1)  # -1 padding, 0 prompt, n = response n
    rows, columns, targets, owners = [], [], [], []
    response = 0
    for b, group in enumerate(groups):
        at = len(group.prompt_ids)
        if at == 0:
            raise ValueError("A prompt has no tokens; give it text, or a tokenizer with a beginning-of-sequence token.")
        ids_BL[b, :at] = torch.tensor(group.prompt_ids)
        position_BL[b, :at] = len(prefix) + torch.arange(at)
        segment_BL[b, :at] = 0
        for n, ids in enumerate(group.response_ids, start=1):
            inner = max(len(ids) - 1, 0)
            ids_BL[b, at : at + inner] = torch.tensor(ids[:inner], dtype=torch.long)
            position_BL[b, at : at + inner] = len(prefix) + len(group.prompt_ids) + torch.arange(inner)
            segment_BL[b, at : at + inner] = n
            # the prompt's last token predicts the response's first, each later token its successor
            columns += [len(group.prompt_ids) - 1, *range(at, at + inner)][: len(ids)]
            rows += [b] * len(ids)
            targets += list(ids)
            owners += [response] * len(ids)
            response += 1
            at += inner
    row_T, column_T, target_T, response_T = (
        torch.tensor(x, dtype=torch.long) for x in (rows, columns, targets, owners)
    )
    seen_BLP = torch.ones(len(groups), width, len(prefix), dtype=torch.bool)
    mask_BLK = torch.cat([seen_BLP, visible(segment_BL)], dim=-1)
    prefix_P = torch.tensor(prefix, dtype=torch.long)
    return Rows(ids_BL, position_BL, mask_BLK, row_T, column_T, target_T, response_T, prefix_P, response)


def visible(segment_BL: Tensor) -> Tensor:
    """Which tokens see which: causal, within the own response and the prompt.

    Padding sees padding, lest a row of the softmax be empty.

    Example:
        >>> visible(torch.tensor([[0, 1, 2]]))[0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 0, 1]], dtype=torch.int32)
    """
    query_BL1, key_B1L = segment_BL[:, :, None], segment_BL[:, None, :]
    related_BLL = (query_BL1 == key_B1L) | ((key_B1L == 0) & (query_BL1 > 0))
    return related_BLL.tril()


def separate(groups: Sequence[Group]) -> list[Group]:
    """Every response with a prompt of its own: the padded path, for models that cannot share one."""
    return [Group(group.prompt_ids, [ids]) for group in groups for ids in group.response_ids]


class _ChosenTokenLogp(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], a chunk of tokens at a time, in fp32 from the logits on.

    A frozen head needs one pass: d logp / d hidden = weight[target] - softmax @ weight is finished with the forward,
    and the backward only scales it. A trained head recomputes its logits in the backward.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, chunk: int, one_pass: bool) -> Tensor:
        logp_T = torch.empty(len(target_T), dtype=torch.float32, device=hidden_TD.device)
        slope_TD = torch.empty_like(hidden_TD) if one_pass else None
        for at in range(0, len(target_T), chunk):
            part = slice(at, at + chunk)
            logits_tV = F.linear(hidden_TD[part], weight_VD).float()
            chosen_t1 = logits_tV.gather(-1, target_T[part, None])
            top_t1 = logits_tV.amax(-1, keepdim=True)
            odds_tV = logits_tV.sub_(top_t1).exp_()  # in place: logsumexp would copy the chunk
            total_t1 = odds_tV.sum(-1, keepdim=True)
            logp_T[part] = (chosen_t1 - top_t1 - total_t1.log()).squeeze(-1)
            if slope_TD is not None:
                mean_tD = (odds_tV.to(weight_VD.dtype) @ weight_VD).float() / total_t1
                slope_TD[part] = (weight_VD[target_T[part]] - mean_tD).to(slope_TD.dtype)
        ctx.chunk = chunk
        ctx.save_for_backward(*([slope_TD] if slope_TD is not None else [hidden_TD, weight_VD, target_T]))
        return logp_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if len(ctx.saved_tensors) == 1:
            (slope_TD,) = ctx.saved_tensors
            return slope_TD * grad_T[:, None].to(slope_TD.dtype), None, None, None, None
        hidden_TD, weight_VD, target_T = ctx.saved_tensors
        grad_hidden_TD = torch.empty_like(hidden_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for at in range(0, len(target_T), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            soft_tV = F.linear(hidden_TD[part], weight_VD).float().softmax(-1)
            soft_tV.mul_(-grad_T[part, None])
            soft_tV.scatter_add_(1, target_T[part, None], grad_T[part, None])
            grad_logits_tV = soft_tV.to(hidden_TD.dtype)
            grad_hidden_TD[part] = grad_logits_tV @ weight_VD
            grad_weight_VD += grad_logits_tV.T @ hidden_TD[part]
        return grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype), None, None, None


def chosen_token_logps(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, *, chunk: int = 256) -> Tensor:
    """Log-probability of each target token in fp32, without a (T, V) tensor.

    Args:
        hidden_TD: Last hidden state at the place that predicts each token.
        weight_VD: The language-model head.
        target_T: The tokens.
        chunk: How many tokens have their logits in memory at once.
    """
    if torch.is_autocast_enabled(hidden_TD.device.type):
        weight_VD = weight_VD.to(torch.get_autocast_dtype(hidden_TD.device.type))
    one_pass = torch.is_grad_enabled() and hidden_TD.requires_grad and not weight_VD.requires_grad
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logp_T: Tensor = _ChosenTokenLogp.apply(  # type: ignore[no-untyped-call]
            hidden_TD.to(weight_VD.dtype), weight_VD, target_T, chunk, one_pass
        )
    return logp_T


def last_hidden(model: nn.Module, rows: Rows) -> Tensor:
    """Last hidden state (B, L, D) of every token of the rows, each seeing only what its mask shows.

    Args:
        model: A causal language model of transformers, adapters injected.
        rows: On the model's device.
    """
    mask_B1LK = rows.mask_BLK[:, None]
    if model.config._attn_implementation == "eager":  # type: ignore[union-attr]
        # eager attention adds its mask to the scores; the others select by a boolean one
        dtype = next(model.parameters()).dtype
        mask_B1LK = torch.zeros_like(mask_B1LK, dtype=dtype).masked_fill(~mask_B1LK, torch.finfo(dtype).min)
    hidden_BLD: Tensor = model.get_decoder()(  # type: ignore[operator]
        input_ids=rows.ids_BL,
        position_ids=rows.position_BL,
        attention_mask=mask_B1LK,
        past_key_values=prefix_cache(model, rows.prefix_P, len(rows.ids_BL)),
        use_cache=len(rows.prefix_P) > 0,
    ).last_hidden_state
    return hidden_BLD


def prefix_cache(model: nn.Module, prefix_P: Tensor, copies: int) -> DynamicCache | None:
    """Keys and values of a prefix, computed once and seen by so many rows; gradients of all rows flow into it."""
    if len(prefix_P) == 0:
        return None
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    model.get_decoder()(input_ids=prefix_P[None], past_key_values=cache, use_cache=True)  # type: ignore[operator]
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys.expand(copies, -1, -1, -1)
        layer.values = layer.values.expand(copies, -1, -1, -1)
    return cache


def response_logps(model: nn.Module, rows: Rows) -> Tensor:
    """Summed log-probability (S,) of every response in the rows, in the order of the groups.

    Args:
        model: A causal language model of transformers, adapters injected.
        rows: On the model's device.
    """
    hidden_BLD = last_hidden(model, rows)
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert head.bias is None, "a head with a bias takes the padded path"
    logp_T = chosen_token_logps(hidden_BLD[rows.row_T, rows.column_T], head.weight, rows.target_T)
    return torch.zeros(rows.responses, device=logp_T.device).index_add(0, rows.response_T, logp_T)


def padded_response_logps(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """The same by the book: one padded row a response, the model's own mask, positions and logits. Slow and sure."""
    device = next(model.parameters()).device
    alone = separate(groups)
    width = max(len(g.prompt_ids) + len(g.response_ids[0]) for g in alone)
    ids_SL = torch.zeros(len(alone), width, dtype=torch.long)
    real_SL = torch.zeros(len(alone), width, dtype=torch.long)
    answer_SL = torch.zeros(len(alone), width, dtype=torch.bool)
    for s, (prompt_ids, (ids,)) in enumerate(alone):
        end = len(prompt_ids) + len(ids)
        ids_SL[s, :end] = torch.tensor([*prompt_ids, *ids])
        real_SL[s, :end] = 1
        answer_SL[s, len(prompt_ids) : end] = True
    logits_SLV = model(input_ids=ids_SL.to(device), attention_mask=real_SL.to(device), use_cache=False).logits
    logp_SL = logits_SLV[:, :-1].float().log_softmax(-1).gather(-1, ids_SL[:, 1:, None].to(device)).squeeze(-1)
    summed_S: Tensor = (logp_SL * answer_SL[:, 1:].to(device)).sum(-1)
    return summed_S


def can_share_prompt(model: nn.Module, vocabulary: int) -> bool:
    """Whether the shared-prompt rows give this model the log-probabilities that the padded path gives.

    Sliding windows, state-space layers, ALiBi or capped logits do not survive the sharing; one small forward of
    both paths tells. Call in the precision that will be used.
    """
    if getattr(model.config, "final_logit_softcapping", None):
        return False
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, vocabulary, (40,), generator=generator).tolist()
    head, tails = draw[:9], (draw[9:12], draw[12:16])
    probe = [Group(head + tails[0], [draw[16:21], draw[21:22]]), Group(head + tails[1], [draw[22:31], draw[31:40]])]
    try:
        with torch.no_grad():
            rows = share_prompt(probe, share_prefix=True).to(next(model.parameters()).device)
            shared_S = response_logps(model, rows)
            padded_S = padded_response_logps(model, probe)
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        log.info("This architecture refused shared prompts: %s", error)
        return False
    weight = next(model.parameters())
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    scale = 1e-4 if exact else 0.05
    return bool((shared_S - padded_S).abs().max() <= scale * padded_S.abs().max())


def packed(groups: Sequence[Group], tokens_per_step: int) -> Iterator[list[int]]:
    """Positions of groups in batches of at most about so many tokens, padding included, similar lengths together.

    A group longer than the budget goes alone. Every group is in exactly one batch.

    Example:
        >>> [sorted(b) for b in packed([Group([1] * n, []) for n in (2, 9, 3, 8)], 18)]
        [[1, 3], [0, 2]]
    """
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * groups[batch[0]].tokens > tokens_per_step:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def score_groups(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    share: bool,
    share_prefix: bool,
    tokens_per_step: int,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[list[int], list[list[float]]]]:
    """Log-probabilities without gradients, batch by batch: (positions of groups, per group one value a response)."""
    device = next(model.parameters()).device
    for batch in packed(groups, tokens_per_step):
        chosen = [groups[i] for i in batch]
        with torch.no_grad(), precision():
            if share:
                logp_S = response_logps(model, share_prompt(chosen, share_prefix=share_prefix).to(device))
            else:
                logp_S = padded_response_logps(model, chosen)
        flat = iter(logp_S.tolist())
        yield batch, [[next(flat) for _ in group.response_ids] for group in chosen]
