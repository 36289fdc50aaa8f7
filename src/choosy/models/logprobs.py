"""Log-probabilities of many responses to one prompt: the hot path of training, scoring and evaluation.

The prompt is computed once for all its responses: it is followed by response 1 ... response N, positions restart
after the prompt, and attention hides the siblings. Where the attention takes a tree of segments (`grouped` on a CPU,
FlexAttention), all groups of a pass lie in one row without padding, behind what all their prompts begin with, such
as a system prompt; else each group has a row of its own. Logits exist only where a response token is predicted, a
chunk at a time.

Axes: B rows, L tokens of a row, T predicted tokens, S responses, D hidden width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from choosy.models.fast.tree_attention import Segment, Tree

log = logging.getLogger(__name__)

Ids = Sequence[int]

TREE_ATTENTION = ("grouped", "flex_attention")  # implementations that take one row of segments


class Group(NamedTuple):
    """The token ids of one prompt and of its responses, each ending as the policy ended it."""

    prompt_ids: Ids
    response_ids: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """Length of the group when the prompt is shared."""
        return len(self.prompt_ids) + sum(max(len(ids) - 1, 0) for ids in self.response_ids)


@dataclass(frozen=True)
class Rows:
    """Groups laid out for one forward pass, and where each response token is predicted."""

    ids_BL: Tensor
    position_BL: Tensor
    segments: tuple[tuple[Segment, ...], ...]  # of each row
    row_T: Tensor
    column_T: Tensor
    target_T: Tensor
    response_T: Tensor
    responses: int

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        names = ("ids_BL", "position_BL", "row_T", "column_T", "target_T", "response_T")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def segment_BL(self) -> Tensor:
        """The segment of each token, -1 where a row is padded."""
        segment_BL = torch.full(self.ids_BL.shape, -1)
        for b, row in enumerate(self.segments):
            for n, (start, end, _) in enumerate(row):
                segment_BL[b, start:end] = n
        return segment_BL.to(self.ids_BL.device)

    @property
    def above_BSS(self) -> Tensor:
        """Whether a token of one segment (second axis) may look at an earlier one of another (third).

        The last segment stands for padding (-1), which sees itself, lest a row of the softmax be empty.
        """
        most = max(map(len, self.segments))
        above_BSS = torch.zeros(len(self.segments), most + 1, most + 1, dtype=torch.bool)
        above_BSS[:, most, most] = True
        for b, row in enumerate(self.segments):
            for n in range(len(row)):
                ancestor = n
                while ancestor >= 0:
                    above_BSS[b, n, ancestor] = True
                    ancestor = row[ancestor].parent
        return above_BSS.to(self.ids_BL.device)

    @property
    def mask_BLL(self) -> Tensor:
        """True where the query (second axis) may look at the key (third): causal, itself and its ancestors."""
        rows_B11 = torch.arange(len(self.ids_BL), device=self.ids_BL.device)[:, None, None]
        segment_BL = self.segment_BL
        return self.above_BSS[rows_B11, segment_BL[:, :, None], segment_BL[:, None, :]].tril()

    @property
    def block_mask(self) -> BlockMask:
        """The mask as FlexAttention takes it: blocks that nobody sees are never computed."""
        segment_BL, above_BSS = self.segment_BL, self.above_BSS

        def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & above_BSS[b, segment_BL[b, query], segment_BL[b, key]]

        B, L = self.ids_BL.shape
        return create_block_mask(sees, B, None, L, L, device=self.ids_BL.device)


SHORTEST_PREFIX = 8  # to gather the keys of fewer tokens for every prompt costs more than it saves


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


def share_prompt(groups: Sequence[Group], *, one_row: bool = False) -> Rows:
    """The prompt of each group once, then its responses; a response's last token is only ever a target.

    Args:
        groups: What the rows hold.
        one_row: All groups one behind the other, after what all their prompts begin with; else a row each.

    Raises:
        ValueError: A prompt without tokens, from which nothing can be predicted.
    """
    prefix = common_prefix([group.prompt_ids for group in groups]) if one_row else []
    if len(prefix) < SHORTEST_PREFIX:
        prefix = []
    row = _Row([*prefix], list(range(len(prefix))), [Segment(0, len(prefix), -1)] if prefix else [])
    laid: list[_Row] = []
    rows, columns, targets, owners = [], [], [], []
    response = 0
    for group in groups:
        if not group.prompt_ids:
            raise ValueError("A prompt has no tokens; give it text, or a tokenizer with a beginning-of-sequence token.")
        if laid and not one_row:
            row = _Row([], [], [])
        if not laid or not one_row:
            laid.append(row)
        prompt = row.append(group.prompt_ids[len(prefix) :], len(prefix), 0 if prefix else -1)
        last = len(row.ids) - 1
        for ids in group.response_ids:
            # the prompt's last token predicts the response's first, each later token its successor
            at = len(row.ids)
            columns += [last, *range(at, at + len(ids) - 1)][: len(ids)]
            rows += [len(laid) - 1] * len(ids)
            targets += list(ids)
            owners += [response] * len(ids)
            response += 1
            if len(ids) > 1:
                row.append(ids[:-1], len(group.prompt_ids), prompt)
    width = max(len(row.ids) for row in laid)
    return Rows(
        ids_BL=torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in laid]),
        position_BL=torch.tensor([row.positions + [0] * (width - len(row.ids)) for row in laid]),
        segments=tuple(tuple(row.segments) for row in laid),
        row_T=torch.tensor(rows, dtype=torch.long),
        column_T=torch.tensor(columns, dtype=torch.long),
        target_T=torch.tensor(targets, dtype=torch.long),
        response_T=torch.tensor(owners, dtype=torch.long),
        responses=response,
    )


@dataclass
class _Row:
    """A row in the making."""

    ids: list[int]
    positions: list[int]
    segments: list[Segment]

    def append(self, ids: Ids, position: int, parent: int) -> int:
        """Add a segment whose first token has this position; its number."""
        self.segments.append(Segment(len(self.ids), len(self.ids) + len(ids), parent))
        self.ids += ids
        self.positions += range(position, position + len(ids))
        return len(self.segments) - 1


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


def last_hidden(model: nn.Module, rows: Rows, cache: object = None) -> Tensor:
    """Last hidden state (B, L, D) of every token of the rows, each seeing only itself, its own past and its ancestors.

    Args:
        model: A causal language model of transformers, adapters injected.
        rows: On the model's device.
        cache: A cache of transformers, still empty, where keys and values are to be kept.
    """
    hidden_BLD: Tensor = model.get_decoder()(  # type: ignore[operator]
        input_ids=rows.ids_BL,
        position_ids=rows.position_BL,
        past_key_values=cache,
        use_cache=cache is not None,
        **_sight(model, rows),
    ).last_hidden_state
    return hidden_BLD


def takes_one_row(model: nn.Module) -> bool:
    """Whether the model's attention takes a tree of segments, so that nothing is padded."""
    return str(model.config._attn_implementation) in TREE_ATTENTION  # type: ignore[union-attr]


def needs_no_mask(model: nn.Module) -> bool:
    """Whether one row of segments costs this model no memory that grows with the row's square."""
    return str(model.config._attn_implementation) == "grouped"  # type: ignore[union-attr]


def _sight(model: nn.Module, rows: Rows) -> dict[str, Any]:
    """Who sees whom, in the words of the model's attention."""
    implementation = model.config._attn_implementation  # type: ignore[union-attr]
    if implementation == "grouped" and len(rows.segments) == 1:
        nobody_B1LL = torch.empty(1, 1, 0, 0, device=rows.ids_BL.device)  # an attention that lost its tree fails
        return {"attention_mask": nobody_B1LL, "tree": Tree(rows.segments[0])}
    if implementation == "flex_attention":
        return {"attention_mask": rows.block_mask}
    mask_B1LL = rows.mask_BLL[:, None]
    if implementation == "eager":
        # eager attention adds its mask to the scores; the others select by a boolean one
        dtype = next(model.parameters()).dtype
        mask_B1LL = torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill(~mask_B1LL, torch.finfo(dtype).min)
    return {"attention_mask": mask_B1LL}


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
            rows = share_prompt(probe, one_row=takes_one_row(model)).to(next(model.parameters()).device)
            shared_S = response_logps(model, rows)
            padded_S = padded_response_logps(model, probe)
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        log.info("This architecture refused shared prompts: %s", error)
        return False
    weight = next(model.parameters())
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    scale = 1e-4 if exact else 0.05
    return bool((shared_S - padded_S).abs().max() <= scale * padded_S.abs().max())


def packed(groups: Sequence[Group], tokens_per_step: int, *, one_row: bool = False) -> Iterator[list[int]]:
    """Positions of groups in batches of at most about so many tokens, similar lengths together.

    A group longer than the budget goes alone. Every group is in exactly one batch.

    Args:
        groups: To be packed.
        tokens_per_step: The budget, padding included.
        one_row: Groups lie one behind the other, so that there is no padding.

    Example:
        >>> groups = [Group([1] * n, []) for n in (2, 9, 3, 8)]
        >>> [sorted(b) for b in packed(groups, 18)], [sorted(b) for b in packed(groups, 20, one_row=True)]
        ([[1, 3], [0, 2]], [[1, 2, 3], [0]])
    """
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
    batch: list[int] = []
    for i in order:
        rows = groups[batch[0]].tokens * (len(batch) + 1) if batch else 0
        if batch and (sum(groups[j].tokens for j in (*batch, i)) if one_row else rows) > tokens_per_step:
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
    tokens_per_step: int,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[list[int], list[list[float]]]]:
    """Log-probabilities without gradients, batch by batch: (positions of groups, per group one value a response)."""
    device = next(model.parameters()).device
    one_row = share and takes_one_row(model)
    for batch in packed(groups, tokens_per_step, one_row=one_row):
        chosen = [groups[i] for i in batch]
        with torch.no_grad(), precision():
            if share:
                logp_S = response_logps(model, share_prompt(chosen, one_row=one_row).to(device))
            else:
                logp_S = padded_response_logps(model, chosen)
        flat = iter(logp_S.tolist())
        yield batch, [[next(flat) for _ in group.response_ids] for group in chosen]
