"""Weights of a round's new labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from choosy.methods.weighting import GapSource, Weighting
from choosy.rounds.context import PairTexts, Round, pair_texts
from choosy.types import Candidates

Gaps = Mapping[PairTexts, float]


def weigh(at: Round, mine: Sequence[Candidates], weighting: Weighting, reward_gap: GapSource) -> list[Candidates]:
    """Return this rank's candidates with the weights of this round's pairs, or of a lone response.

    A predicted gap rests on the labels of earlier rounds, a difference on the verdicts on all other pairs. While these
    are too few the gap is 0, and where the weighting reads it every pair has weight 1.
    """
    if reward_gap != "bought" and (weighting.needs == "gap" or "reward" in at.loss.needs):
        with at.phases("select"):
            known = predicted_gaps(at, mine) if reward_gap == "predicted" else differences(at, mine)
        if known is None and at.number == 0 and at.ranks.rank == 0:  # once, for the labels only become more
            effect = "every new pair has weight 1" if weighting.needs == "gap" else "the gap of every new pair is 0"
            at.phases.say(f"There are too few labels to predict reward gaps (learned_reward.min_labels): {effect}.")
        mine = [with_gaps(c, known or {}, at.number) for c in mine]
        if known is None and weighting.needs == "gap":
            return list(mine)
    return [weigh_lone(c, weighting) if len(c.responses) == 1 else weigh_pairs(c, weighting, at.number) for c in mine]


def differences(at: Round, mine: Sequence[Candidates]) -> Gaps | None:
    """Predict the gaps of all ranks' pairs from the verdicts on all others; every rank must call this."""
    paired = at.ranks.gather([replace(c, own=()) for c in mine if c.pairs])
    return at.learned.differences(sorted(paired, key=lambda c: c.prompt.id), at)


def predicted_gaps(at: Round, mine: Sequence[Candidates]) -> Gaps | None:
    """Predict the reward gaps of this rank's pairs of this round; every rank must call this.

    None while there are too few labels.
    """
    if (head := at.learned.head(at)) is None:
        return None
    halves = []
    for c in mine:
        used = {n for pair in c.pairs if pair.round == at.number for n in (pair.chosen, pair.rejected)}
        halves.append(replace(c, responses=tuple(c.responses[n] for n in sorted(used))))
    halves = [half for half in halves if half.responses]
    rewards = [head.rewards(embed_ND).tolist() for embed_ND in at.learned.embed(halves, at)]
    names = [[(c.prompt.id, r.text) for r in c.responses] for c in halves]
    reward = dict(named for pair in zip(names, rewards, strict=True) for named in zip(*pair, strict=True))
    pairs = [pair_texts(c, pair) for c in mine for pair in c.pairs if pair.round == at.number]
    return {(name, one, other): reward[name, one] - reward[name, other] for name, one, other in pairs}


def with_gaps(c: Candidates, gaps: Gaps, number: int) -> Candidates:
    """Write the predicted gaps of this round's pairs of one prompt; an unknown gap is 0."""
    pairs = (
        replace(pair, predicted_gap=gaps.get(pair_texts(c, pair), 0.0)) if pair.round == number else pair
        for pair in c.pairs
    )
    return replace(c, pairs=tuple(pairs))


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
    gaps = [reward[c.pairs[p].chosen] - reward[c.pairs[p].rejected] for p in new]
    predicted = [c.pairs[p].predicted_gap for p in new]
    gap_B = torch.tensor(gaps if any(map(math.isnan, predicted)) else predicted, dtype=torch.float64)
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
