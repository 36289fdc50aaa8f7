"""Weights of a round's new labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from choosy.methods.weighting import Weighting
from choosy.rounds.context import Round
from choosy.types import Candidates


def weigh(at: Round, labeled: Sequence[Candidates], weighting: Weighting) -> list[Candidates]:
    """Return the candidates with the weights of the pairs that were labeled in this round, or of a lone response."""
    return [
        weigh_lone(c, weighting) if len(c.responses) == 1 else weigh_pairs(c, weighting, at.number) for c in labeled
    ]


def weigh_lone(c: Candidates, weighting: Weighting) -> Candidates:
    """Weigh a lone response, which has no reward gap."""
    nan_B = torch.full((1,), math.nan, dtype=torch.float64)
    return replace(c, weight=weighting.weigh(nan_B, nan_B if c.weight is None else nan_B.fill_(c.weight)).item())


def weigh_pairs(c: Candidates, weighting: Weighting, number: int) -> Candidates:
    """Weigh one prompt's pairs of this round."""
    new = [p for p, pair in enumerate(c.pairs) if pair.round == number]
    if not new:
        return c
    reward = [math.nan if r.reward is None else r.reward for r in c.responses]
    gap_B = torch.tensor([reward[c.pairs[p].chosen] - reward[c.pairs[p].rejected] for p in new], dtype=torch.float64)
    given_B = torch.full_like(gap_B, math.nan if c.weight is None else c.weight)
    weight_B = weighting.weigh(gap_B, given_B)
    if not bool(torch.isfinite(weight_B).all()):
        lacks = {"gap": "rewards, which this labeler does not give", "given": "a weight column in the data"}
        raise ValueError(
            f"Prompt {c.prompt.id}: the pair's weight is {weight_B.tolist()}; this weighting needs "
            f"{lacks.get(weighting.needs, 'nothing')}. Choose weighting=uniform, or data or a labeler that bring it."
        )
    pairs = list(c.pairs)
    for p, weight in zip(new, weight_B.tolist(), strict=True):
        pairs[p] = replace(pairs[p], weight=weight)
    return replace(c, pairs=tuple(pairs))
