"""From rows of data to what a round may ask: prompts of bearable length, given responses as tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from choosy.models.policy import Policy
from choosy.types import Candidates, Prompt

log = logging.getLogger(__name__)

TooLong = Literal["drop", "error"]
Asked = TypeVar("Asked", Prompt, Candidates)


def within_limit(items: Sequence[Asked], policy: Policy, *, limit: int, too_long: TooLong, source: str) -> list[Asked]:
    """The prompts of at most `limit` tokens, chat template included.

    Raises:
        ValueError: A prompt is longer and `too_long` is `error`, or all are.
    """
    if limit < 1:
        raise ValueError(f"data.max_prompt_tokens={limit} lets no prompt through; choose at least 1.")
    if too_long not in ("drop", "error"):
        raise ValueError(f"data.too_long={too_long} is none of drop, error.")
    lengths = [len(policy.encode_prompt(item if isinstance(item, Prompt) else item.prompt)) for item in items]
    long = [i for i, length in enumerate(lengths) if length > limit]
    if not long:
        return list(items)
    what = f"{len(long)} of {len(items)} prompts of {source} are longer than data.max_prompt_tokens={limit}"
    longest = f"the longest has {max(lengths)} tokens"
    if too_long == "error" or len(long) == len(items):
        raise ValueError(f"{what}; {longest}. Raise data.max_prompt_tokens, or drop them with data.too_long=drop.")
    log.warning("%s and are left out; %s.", what, longest)
    return [item for item, length in zip(items, lengths, strict=True) if length <= limit]


def with_tokens(candidates: Sequence[Candidates], policy: Policy, *, max_response_tokens: int) -> list[Candidates]:
    """Given candidates with token ids; a response beyond the limit is cut and counts as not finished."""
    cut = 0
    result = []
    for c in candidates:
        responses = []
        for r in c.responses:
            ids = policy.encode_response(r.text)
            short = len(ids) <= max_response_tokens
            cut += not short
            responses.append(replace(r, ids=ids[:max_response_tokens], finished=short))
        result.append(replace(c, responses=tuple(responses), prompt_ids=policy.encode_prompt(c.prompt)))
    if cut:
        log.warning(
            "%d given responses are longer than data.max_response_tokens=%d and were cut.", cut, max_response_tokens
        )
    return result
