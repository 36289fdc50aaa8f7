"""The loss that keeps the experts of a mixture-of-experts model equally busy (Fedus et al., arXiv 2101.03961).

Axes: E experts, N tokens of a forward pass with padding, B rows, L tokens of a row, S responses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from choosy.models.logprobs import text_config
from choosy.models.rows import Group, Rows, share_prompt
from choosy.terminal import logger

log = logger(__name__)

PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")  # names in configurations
EXPERTS = ".experts."  # in the names of their weights


@dataclass(frozen=True)
class Routed:
    """How the routers of all layers have divided tokens among the experts.

    Attributes:
        chosen_E: How many tokens each expert was chosen for, over all layers.
        probability_E: The sum of the probabilities that it was given, with gradients.
        tokens: How many tokens there are, over all layers.
    """

    chosen_E: Tensor
    probability_E: Tensor
    tokens: float

    @classmethod
    def of(cls, logits: Sequence[Tensor], weight_N: Tensor, per_token: int) -> Routed:
        """What the logits of the routers of all layers say; each token counts as often as its weight says."""
        parts = []
        for of_layer in logits:
            probability_NE = of_layer.reshape(len(weight_N), -1).float().softmax(-1)
            chosen_N = probability_NE.topk(per_token).indices.flatten()
            none_E = torch.zeros_like(probability_NE[0])
            chosen_E = none_E.index_add(0, chosen_N, weight_N.repeat_interleave(per_token))
            parts.append(cls(chosen_E, weight_N @ probability_NE, weight_N.sum().item()))
        return cls.sum(parts)

    @classmethod
    def sum(cls, parts: Sequence[Routed]) -> Routed:
        """All parts of a step together."""
        chosen, probability = (torch.stack([getattr(p, name) for p in parts]).sum(0) for name in cls.__match_args__[:2])
        return cls(chosen, probability, sum(part.tokens for part in parts))

    def on_cpu(self) -> Routed:
        """The same without gradients, for other ranks."""
        return Routed(self.chosen_E.detach().cpu(), self.probability_E.detach().cpu(), self.tokens)

    def balance_loss(self, part: Routed) -> Tensor:
        """What a part of a step adds to the step's loss, E * sum over experts of f * P (equations 4 to 6).

        f is the mean number of times that an expert is chosen for a token of the step, P its mean probability.

        Example:
            >>> for chosen in ([4.0, 0.0], [2.0, 2.0]):  # 1 where all experts are equally busy
            ...     step = Routed(torch.tensor(chosen), torch.tensor(chosen), tokens=4)
            ...     print(step.balance_loss(step).item())
            2.0
            1.0
        """
        chosen_E = self.chosen_E.to(part.probability_E.device)
        return len(chosen_E) * (chosen_E / self.tokens) @ (part.probability_E / self.tokens)


@contextmanager
def recorded(model: nn.Module, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Keep the routers' logits, one tensor a layer, of the forward pass within the block; none without experts."""
    logits: list[Tensor] = []
    if not wanted:
        yield logits
        return
    get_decoder: Any = model.get_decoder
    decoder: nn.Module = get_decoder()

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_router_logits": True}

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        logits.extend(one for one in getattr(output, "router_logits", None) or () if one is not None)

    handles = [decoder.register_forward_pre_hook(ask, with_kwargs=True), decoder.register_forward_hook(keep)]
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()


def experts_per_token(model: nn.Module) -> int:
    """How many experts a token goes to; 0 for a model without experts."""
    return next((n for name in PER_TOKEN if isinstance(n := getattr(text_config(model), name, None), int)), 0)


def say_what_is_frozen(model: nn.Module, name: str) -> None:
    """Say that the experts stay as they are, where there are some and no adapter trains them."""
    of_experts = {name: p for name, p in model.named_parameters() if EXPERTS in name}
    if not of_experts or any(p.requires_grad for p in of_experts.values()):
        return
    in_a_layer = dict.fromkeys(re.sub(r".*\.\d+\.(?=.*\.experts\.)", "", name) for name in of_experts)
    whole = [name for name in in_a_layer if not re.search(r"\.\d+\.", name)]  # all experts of a layer in one weight
    also = f", or +model.lora.options.target_parameters=[{','.join(whole)}]," if whole else ""
    log.warning(
        "The experts of %s stay frozen: the adapter trains other layers. model.lora.targets=all-linear%s adapts them.",
        *(name, also),
    )


# -- how often each token counts: once for each response that it stands before or in --------------------------------


def routed_by(
    model: nn.Module,
    logits: Sequence[Tensor],
    distinct: Sequence[Group],
    groups: Sequence[Group],
    *,
    share: bool,
    one_row: bool,
) -> Routed:
    """What the routers did with merged groups, or some of them, by their logits in that pass."""
    weight_N = token_weights(distinct, times_of(groups, distinct), share=share, one_row=one_row)
    return Routed.of(logits, weight_N.to(logits[0].device), experts_per_token(model))


def times_of(groups: Sequence[Group], distinct: Sequence[Group]) -> Tensor:
    """How often each response (S,) of the merged groups occurs in the given ones (see `deduplicated`)."""
    times = Counter(key for group in groups for key in _keys(group))
    return torch.tensor([times[key] for group in distinct for key in _keys(group)], dtype=torch.float32)


def _keys(group: Group) -> list[tuple[Any, ...]]:
    return [(tuple(group.prompt_ids), tuple(ids), tuple(mask)) for ids, mask in group.responses]


def token_weights(groups: Sequence[Group], times_S: Tensor, *, share: bool, one_row: bool) -> Tensor:
    """How often each token (N,) of a forward pass counts (see `group_logps`); padding never does."""
    return _shared(share_prompt(groups, one_row=one_row), groups, times_S) if share else _padded(groups, times_S)


def _shared(rows: Rows, groups: Sequence[Group], times_S: Tensor) -> Tensor:
    said_S = torch.tensor([len(places) for group in groups for places in group.places])
    last_S = (said_S.cumsum(0) - 1)[said_S > 0]  # of each response where its last token is predicted
    row_S, segment_BL, above_BSS = rows.row_T[last_S], rows.segment_BL, rows.above_BSS
    above_SS = above_BSS[row_S, segment_BL[row_S, rows.column_T[last_S]]]
    weight_BS = torch.zeros(above_BSS.shape[:2]).index_add(0, row_S, above_SS * times_S[said_S > 0, None])
    return weight_BS.gather(1, segment_BL % weight_BS.shape[1]).flatten()


def _padded(groups: Sequence[Group], times_S: Tensor) -> Tensor:
    """One padded row a response (see `padded_rows`)."""
    length_S = [len(group.prompt_ids) + max(len(ids) - 1, 0) for group in groups for ids in group.response_ids]
    width = max(length_S)
    return torch.cat([F.pad(times.expand(n), (0, width - n)) for times, n in zip(times_S, length_S, strict=True)])
