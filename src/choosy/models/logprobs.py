"""Log-probabilities of many responses to one prompt: the hot path of training.

Where responses share their prompt, logits exist only where a response token is predicted, a chunk at a time.

Axes: B rows, L tokens of a row, T predicted tokens, S responses, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from choosy.models.fast.recompute import again
from choosy.models.fast.tree_attention import Tree
from choosy.models.rows import Group, Rows, refuse_no_prompt, share_prompt
from choosy.terminal import logger

log = logger(__name__)

TREE_ATTENTION = ("grouped", "flex_attention")  # implementations that take one row of segments


class _ChosenTokenLogp(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target], a chunk of tokens at a time, in fp32 from the logits on.

    A frozen head needs one pass: d logp / d hidden = weight[target] - softmax @ weight is finished with the forward,
    and the backward only scales it. A trained head recomputes its logits in the backward. The second output is
    log sum(softmax^2) without a gradient, from the same chunks, if it is asked for, else empty.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        chunk: int,
        one_pass: bool,
        collisions: bool,
    ) -> tuple[Tensor, Tensor]:
        logp_T = torch.empty(len(target_T), dtype=torch.float32, device=hidden_TD.device)
        collision_T = torch.empty_like(logp_T) if collisions else logp_T.new_empty(0)
        slope_TD = torch.empty_like(hidden_TD) if one_pass else None
        for at in range(0, len(target_T), chunk):
            part = slice(at, at + chunk)
            logits_tV = F.linear(hidden_TD[part], weight_VD).float()
            chosen_t1 = logits_tV.gather(-1, target_T[part, None])
            top_t1 = logits_tV.amax(-1, keepdim=True)
            odds_tV = logits_tV.sub_(top_t1).exp_()  # in place: logsumexp would copy the chunk
            total_t1 = odds_tV.sum(-1, keepdim=True)
            logp_T[part] = (chosen_t1 - top_t1 - total_t1.log()).squeeze(-1)
            if collisions:
                collision_T[part] = 2 * (torch.linalg.vector_norm(odds_tV, dim=-1) / total_t1.squeeze(-1)).log()
            if slope_TD is not None:
                mean_tD = (odds_tV.to(weight_VD.dtype) @ weight_VD).float() / total_t1
                slope_TD[part] = (weight_VD[target_T[part]] - mean_tD).to(slope_TD.dtype)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(collision_T)
        ctx.save_for_backward(*([slope_TD] if slope_TD is not None else [hidden_TD, weight_VD, target_T]))
        return logp_T, collision_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if len(ctx.saved_tensors) == 1:
            (slope_TD,) = ctx.saved_tensors
            return slope_TD * grad_T[:, None].to(slope_TD.dtype), None, None, None, None, None
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
        return grad_hidden_TD, grad_weight_VD.to(weight_VD.dtype), None, None, None, None


def chosen_token_logps(
    hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, *, chunk: int = 256, collisions: bool = False
) -> Tensor:
    """Log-probability of each target token in fp32, with the logits of `chunk` tokens in memory at once.

    The hidden state is the last layer's at the place that predicts the token, the weight the language-model head.

    Args:
        collisions: Return (2, T): below the log-probabilities, without gradient, the logarithm of the probability that
            two samples at the token's place are the same token, log sum over the vocabulary of p^2.
    """
    if torch.is_autocast_enabled(hidden_TD.device.type):
        weight_VD = weight_VD.to(torch.get_autocast_dtype(hidden_TD.device.type))
    one_pass = torch.is_grad_enabled() and hidden_TD.requires_grad and not weight_VD.requires_grad
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logp_T: Tensor
        logp_T, collision_T = _ChosenTokenLogp.apply(  # type: ignore[no-untyped-call]  # torch gives it no type
            hidden_TD.to(weight_VD.dtype), weight_VD, target_T, chunk, one_pass, collisions
        )
    return torch.stack([logp_T, collision_T]) if collisions else logp_T


def last_hidden(model: nn.Module, rows: Rows, cache: object = None) -> Tensor:
    """Last hidden state (B, L, D) of every token of the rows, each seeing only itself, its own past and its ancestors.

    The rows are on the model's device. An empty cache of transformers is filled with keys and values.
    """
    get_decoder: Any = model.get_decoder
    hidden_BLD: Tensor = get_decoder()(
        input_ids=rows.ids_BL,
        position_ids=rows.position_BL,
        past_key_values=cache,
        use_cache=cache is not None,
        **_attention_arguments(model, rows),
    ).last_hidden_state
    return hidden_BLD


def takes_one_row(model: nn.Module) -> bool:
    """Whether the model's attention takes a tree of segments, so that nothing is padded."""
    return _attention(model) in TREE_ATTENTION


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, which one that also sees or hears keeps inside its own."""
    config: Any = model.config
    return config.get_text_config()


def fits_window(model: nn.Module, tokens: int) -> bool:
    """Whether so many tokens fit into the attention's window, if it has one."""
    names = ("sliding_window", "window_size", "attention_chunk_size", "index_topk", "keep_window_size")
    windows = [getattr(text_config(model), name, None) for name in names]
    return all(tokens <= window for window in windows if isinstance(window, int) and window)


def needs_no_mask(model: nn.Module) -> bool:
    """Whether the memory for one row of segments does not grow with the row's square."""
    return _attention(model) == "grouped"


def _attention(model: nn.Module) -> str:
    config: Any = model.config
    return str(config._attn_implementation)


def _attention_arguments(model: nn.Module, rows: Rows) -> dict[str, Any]:
    implementation = _attention(model)
    if implementation == "grouped" and len(rows.segments) == 1:
        none_B1LL = torch.empty(1, 1, 0, 0, device=rows.ids_BL.device)  # an attention that does not get the tree fails
        return {"attention_mask": none_B1LL, "tree": Tree(rows.segments[0])}
    if implementation == "flex_attention":
        return {"attention_mask": rows.block_mask}
    mask_B1LL = rows.mask_BLL[:, None]
    if implementation == "eager":
        # eager attention adds its mask to the scores; the others select by a boolean one
        dtype = next(model.parameters()).dtype
        mask_B1LL = torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill(~mask_B1LL, torch.finfo(dtype).min)
    return {"attention_mask": mask_B1LL}


def token_logps(model: nn.Module, rows: Rows, *, collisions: bool = False, recompute: bool = False) -> Tensor:
    """Log-probability (T,) of every token that the assistant says, response by response in the order of the groups.

    With `collisions` it is (2, T), as in `chosen_token_logps`. With `recompute` no activation is kept for the backward.
    """
    hidden_BLD = again(last_hidden, model, rows) if recompute else last_hidden(model, rows)
    get_head: Any = model.get_output_embeddings
    head = get_head()
    assert isinstance(head, nn.Linear), "a head with an adapter takes the padded path"
    assert head.bias is None, "a head with a bias takes the padded path"
    return chosen_token_logps(hidden_BLD[rows.row_T, rows.column_T], head.weight, rows.target_T, collisions=collisions)


class Padded(NamedTuple):
    """Groups laid out in a padded row for each response, and where each token that the assistant says is predicted."""

    ids_SL: Tensor
    real_SL: Tensor
    row_T: Tensor
    column_T: Tensor
    target_T: Tensor


def padded_rows(groups: Sequence[Group], device: torch.device) -> Padded:
    """A row for each response: its prompt, then its tokens but the last, which is only ever a target."""
    refuse_no_prompt(groups)
    alone = [
        (group.prompt_ids, ids, places)
        for group in groups
        for (ids, _), places in zip(group.responses, group.places, strict=True)
    ]
    rows = [torch.tensor([*prompt, *ids[:-1]]) for prompt, ids, _ in alone]
    ids_SL = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real_SL = (torch.arange(ids_SL.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()
    said = [
        (s, len(prompt) - 1 + place, ids[place]) for s, (prompt, ids, places) in enumerate(alone) for place in places
    ]
    row_T, column_T, target_T = torch.tensor(said, dtype=torch.long).reshape(-1, 3).T.to(device)
    return Padded(ids_SL.to(device), real_SL.to(device), row_T, column_T, target_T)


def padded_token_logps(model: nn.Module, groups: Sequence[Group], *, collisions: bool = False) -> Tensor:
    """The same from one padded row a response, with the model's own mask, positions and logits."""
    ids_SL, real_SL, row_T, column_T, target_T = padded_rows(groups, next(model.parameters()).device)
    first = min(len(group.prompt_ids) for group in groups) - 1  # no token is predicted at an earlier place
    logits_SlV = model(
        input_ids=ids_SL, attention_mask=real_SL, use_cache=False, logits_to_keep=ids_SL.shape[1] - first
    ).logits
    logp_TV = logits_SlV[row_T, column_T - first].float().log_softmax(-1)
    logp_T: Tensor = logp_TV.gather(-1, target_T[:, None]).squeeze(-1)
    if not collisions:
        return logp_T
    return torch.stack([logp_T, (2 * logp_TV.detach()).logsumexp(-1)])


def group_logps(
    model: nn.Module, groups: Sequence[Group], *, share: bool, collisions: bool = False, recompute: bool = False
) -> Tensor:
    """The same, each prompt computed once for all its responses if they `share` it, else by the padded path."""
    if not share:
        logps = partial(padded_token_logps, model, groups, collisions=collisions)
        return cast(Tensor, again(logps)) if recompute else logps()
    rows = share_prompt(groups, one_row=takes_one_row(model)).to(next(model.parameters()).device)
    return token_logps(model, rows, collisions=collisions, recompute=recompute)


def predicting_states(model: nn.Module, groups: Sequence[Group], *, share: bool) -> Tensor:
    """Last hidden state (T, D) at the place that predicts each token that the assistant says, response by response."""
    device = next(model.parameters()).device
    if share:
        rows = share_prompt(groups, one_row=takes_one_row(model)).to(device)
        return last_hidden(model, rows)[rows.row_T, rows.column_T]
    padded = padded_rows(groups, device)
    return decoded(model, padded.ids_SL, padded.real_SL)[padded.row_T, padded.column_T]


def decoded(model: nn.Module, ids_BL: Tensor, real_BL: Tensor) -> Tensor:
    """Last hidden state (B, L, D) of every token of padded rows, with the model's own mask and positions."""
    get_decoder: Any = model.get_decoder
    hidden_BLD: Tensor = get_decoder()(input_ids=ids_BL, attention_mask=real_BL, use_cache=False).last_hidden_state
    return hidden_BLD


def final_states(model: nn.Module, groups: Sequence[Group], *, share: bool) -> Tensor:
    """Last hidden state (S, D) of every response of the groups at the place that predicts its last token."""
    last_S = torch.tensor([len(places) for group in groups for places in group.places]).cumsum(0) - 1
    return predicting_states(model, groups, share=share)[last_S]


def mean_states(model: nn.Module, groups: Sequence[Group], *, share: bool) -> Tensor:
    """Mean (S, D) in fp32 of the last hidden states at the places that predict the tokens of every response."""
    state_TD = predicting_states(model, groups, share=share).float()
    length_S = [len(places) for group in groups for places in group.places]
    return sum_by_response(state_TD, groups) / torch.tensor(length_S, device=state_TD.device)[:, None]


def sum_by_response(logp_T: Tensor, groups: Sequence[Group]) -> Tensor:
    """Sum over the tokens of every response of the groups: its log-probability (S,), from those of its tokens.

    Each token may have several numbers (T, ...), which are summed apart.

    Example:
        >>> sum_by_response(torch.tensor([-1.0, -2.0, -4.0]), [Group([5], [[6, 7], [8]])])
        tensor([-3., -4.])
    """
    length_S = torch.tensor([len(places) for group in groups for places in group.places], dtype=torch.long)
    response_T = torch.repeat_interleave(length_S).to(logp_T.device)
    return torch.zeros(len(length_S), *logp_T.shape[1:], device=logp_T.device).index_add(0, response_T, logp_T)


def can_share_prompt(model: nn.Module, vocabulary: int) -> bool:
    """Whether shared prompts give this model the log-probabilities of the padded path, in the present precision.

    One small forward by each is compared: sharing breaks sliding windows, state-space layers, ALiBi, capped logits. In
    bf16 rounding would hide some of that, so it is also asked whether a response's log-probabilities stay the same when
    another one is put before it: a state that runs through the row would carry it over.
    """
    if getattr(text_config(model), "final_logit_softcapping", None):
        return False
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, vocabulary, (45,), generator=generator).tolist()
    head, tails = draw[:9], (draw[9:12], draw[12:16])
    probe = [Group(head + tails[0], [draw[16:21], draw[21:22]]), Group(head + tails[1], [draw[22:31], draw[31:40]])]
    behind = [Group(head, [sibling, draw[22:31]]) for sibling in (draw[16:21], draw[40:45])]
    try:
        with torch.no_grad():
            shared_S, padded_S = (sum_by_response(group_logps(model, probe, share=s), probe) for s in (True, False))
            one_T, other_T = (group_logps(model, [group], share=True)[5:] for group in behind)
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        log.info("This architecture refused shared prompts: %s", error)
        return False
    weight = next(model.parameters())
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    scale, leak = (1e-4, 1e-4) if exact else (0.05, 0.01)
    equal = (shared_S - padded_S).abs().max() <= scale * padded_S.abs().max()
    return bool(equal and (one_T - other_T).abs().max() <= leak)
