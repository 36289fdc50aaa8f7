"""Candidates as rows of the pool's table, and rows as candidates again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from choosy.types import Candidates, Moments, Pair, Prompt, Response

ARROW = {"int": pa.int32(), "float": pa.float64(), "str": pa.string()}


def _struct_of(words: type[Pair] | type[Moments]) -> pa.DataType:
    return pa.struct({field.name: ARROW[str(field.type)] for field in fields(words)})


POOL_SCHEMA = pa.schema(
    {
        "split": pa.string(),  # train | heldout
        "prompt_id": pa.string(),
        "prompt": pa.string(),  # as text; the turns of a conversation are not kept
        "source": pa.string(),  # of a mixture, which the prompt is of; null without shares
        "origin": pa.string(),  # sampled | reused | heldout
        "sampled_in": pa.int32(),  # the round that sampled the responses, or scored a lone one
        "prompt_utility": pa.float64(),
        "responses": pa.list_(pa.string()),
        "rewards": pa.list_(pa.float64()),
        "logps": pa.list_(pa.float64()),
        "ref_logps": pa.list_(pa.float64()),
        "finished": pa.list_(pa.bool_()),
        "response_ids": pa.list_(pa.list_(pa.int32())),
        "prompt_ids": pa.list_(pa.int32()),
        "gold": pa.list_(pa.float64()),
        "ref_token_logps": pa.list_(pa.list_(pa.float32())),  # null unless the loss needs them
        "masks": pa.list_(pa.list_(pa.bool_())),  # which tokens the assistant says; null where it says all
        "parts": pa.list_(pa.map_(pa.string(), pa.float64())),  # of each reward, by name; null where it is no sum
        "own_ids": pa.list_(pa.list_(pa.int32())),  # of the policy's samples beside given responses; null without
        "own_logps": pa.list_(pa.float64()),
        "own_ref_logps": pa.list_(pa.float64()),
        "given_weight": pa.float64(),
        "threshold": pa.float64(),  # above which the reward of a lone response is good; null for 0
        "pairs": pa.list_(_struct_of(Pair)),
        "undecided": pa.list_(pa.list_(pa.int32())),  # pairs whose verdict was a tie or invalid
        "earlier_rewards": _struct_of(Moments),  # of the prompt's responses in earlier rounds
        "chosen": pa.string(),  # text of the first pair, for people who open the table
        "rejected": pa.string(),
        "weight": pa.float64(),
        "utility": pa.float64(),
        "outcome": pa.float64(),  # held-out rows: 1 win, 0.5 tie, 0 loss against the start policy
    }
)


OWN = ("own_ids", "own_logps", "own_ref_logps")
NULLABLE = ("utility", "predicted_gap")  # of a pair: nan in memory, null in the table


def null_of(x: float | None) -> float | None:
    """A number as the table keeps it: null instead of nan."""
    return None if x is None or math.isnan(x) else x


def _nan(x: float | None) -> float:
    return math.nan if x is None else x


def _facts(words: Pair | Moments) -> dict[str, Any]:
    # asdict copies each value, and takes ten times as long
    return {name: getattr(words, name) for name in words.__slots__}


def _pair_row(pair: Pair) -> dict[str, Any]:
    row = _facts(pair)
    return {**row, **{name: null_of(row[name]) for name in NULLABLE}}


def to_row(c: Candidates, *, origin: str, split: str = "train", outcome: float | None = None) -> dict[str, Any]:
    """One row of the table."""
    first = c.pairs[0] if c.pairs else None
    of_tokens = any(r.token_logps_ref for r in c.responses)
    return {
        "split": split,
        "prompt_id": c.prompt.id,
        "prompt": c.prompt.text,
        "source": c.prompt.source or None,
        "origin": origin,
        "sampled_in": c.round,
        "prompt_utility": null_of(c.utility),
        "responses": [r.text for r in c.responses],
        "rewards": [r.reward for r in c.responses],
        "logps": [null_of(r.logp) for r in c.responses],
        "ref_logps": [null_of(r.logp_ref) for r in c.responses],
        "finished": [r.finished for r in c.responses],
        "response_ids": [r.ids for r in c.responses],
        "prompt_ids": c.prompt_ids,
        "gold": [r.gold for r in c.responses],
        "ref_token_logps": [r.token_logps_ref for r in c.responses] if of_tokens else None,
        "masks": [r.mask for r in c.responses] if any(r.mask for r in c.responses) else None,
        "parts": [r.parts for r in c.responses] if any(r.parts for r in c.responses) else None,
        "own_ids": [r.ids for r in c.own] or None,
        "own_logps": [null_of(r.logp) for r in c.own] or None,
        "own_ref_logps": [null_of(r.logp_ref) for r in c.own] or None,
        "given_weight": c.weight,
        "threshold": c.threshold or None,
        "pairs": [_pair_row(pair) for pair in c.pairs],
        "undecided": c.undecided,
        "earlier_rewards": _facts(c.earlier),
        "chosen": c.responses[first.chosen].text if first else None,
        "rejected": c.responses[first.rejected].text if first else None,
        "weight": first.weight if first else None,
        "utility": null_of(first.utility) if first else None,
        "outcome": outcome,
    }


def from_row(row: Mapping[str, Any]) -> Candidates:
    """The candidates of one row."""
    columns = ("responses", "response_ids", "finished", "logps", "ref_logps", "rewards", "gold")
    of_tokens, masks, parts = (
        row[column] or [()] * len(row["responses"]) for column in ("ref_token_logps", "masks", "parts")
    )
    return Candidates(
        Prompt(row["prompt_id"], row["prompt"], source=row["source"] or ""),
        tuple(
            Response(
                *(text, tuple(ids), finished, _nan(logp), _nan(logp_ref), reward, gold, tuple(logps_ref)),
                mask=tuple(mask),
                parts=tuple(of_reward),
            )
            for text, ids, finished, logp, logp_ref, reward, gold, logps_ref, mask, of_reward in zip(
                *(row[c] for c in columns), of_tokens, masks, parts, strict=True
            )
        ),
        tuple(row["prompt_ids"]),
        row["sampled_in"],
        _nan(row["prompt_utility"]),
        tuple(Pair(**{**pair, **{name: _nan(pair[name]) for name in NULLABLE}}) for pair in row["pairs"]),
        row["given_weight"],
        tuple((i, j) for i, j in row["undecided"]),
        Moments(**row["earlier_rewards"]),
        tuple(
            Response("", tuple(ids), logp=_nan(logp), logp_ref=_nan(logp_ref))
            for ids, logp, logp_ref in zip_longest(*(row[name] or () for name in OWN))
        ),
        row["threshold"] or 0.0,
    )


def as_rows(candidates: Sequence[Candidates]) -> pa.Table:
    """Rows of the table, of responses that were sampled in this round."""
    return pa.Table.from_pylist([to_row(c, origin="sampled") for c in candidates], schema=POOL_SCHEMA)
