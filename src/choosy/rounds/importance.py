"""Weights of labels on what was sampled before the last training, by how likely the policy makes it now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from choosy.methods.loss_inputs import form_of
from choosy.rounds.context import Round
from choosy.rounds.score import trained
from choosy.types import Candidates

HIGHEST = 20.0  # log-ratio beyond which no mean of ratios says anything


def weigh_importance(at: Round, mine: Sequence[Candidates]) -> list[Candidates]:
    """Return this rank's candidates with the weights of labels on what was sampled ahead; every rank must call this.

    A label counts as often as the policy that begins the round would have made it: its weight is multiplied by the
    importance ratios pi(now) / pi(sampled) of the responses in its item, each clipped to [1/c, c]. Where all of a
    prompt's responses are in its item (two of them, or a list), the mean loss is that of a run that does not sample
    ahead, but for what is clipped. The choice of a pair among more responses is not corrected.
    """
    if at.ahead is None:
        return list(mine)
    most, is_list = at.sampler.max_ratio, form_of(at.loss.needs) == "list"
    used = [trained(at, c) for c in mine]
    asked = [replace(c, responses=tuple(c.responses[n] for n in ns)) for c, ns in zip(mine, used, strict=True) if ns]
    with at.phases("score", total=len(asked), unit="prompts sampled ahead") as tick, at.policy.for_sampling():
        now = iter(at.policy.score(asked, tick))  # weights rounded as those that sampled: else, in bf16, it is noise
    result, of_mine = [], list[float]()
    for c, ns in zip(mine, used, strict=True):
        ratios = {n: ratio_of(c, n, logp) for n, logp in zip(ns, next(now) if ns else (), strict=True)}
        result.append(weighed(c, {n: clipped(ratio, most) for n, ratio in ratios.items()}, is_list=is_list))
        of_mine += ratios.values()
    if every := at.ranks.gather(of_mine):
        at.importance["ratio"] = fmean(every)
        at.importance["clipped"] = fmean(float(ratio != clipped(ratio, most)) for ratio in every)
    return result


def ratio_of(c: Candidates, n: int, logp: float) -> float:
    """pi(now) / pi(sampled) of a response whose log-prob is now this."""
    assert not math.isnan(c.responses[n].logp), f"prompt {c.prompt.id}: a response was sampled without its log-prob"
    return math.exp(max(-HIGHEST, min(HIGHEST, logp - c.responses[n].logp)))


def clipped(ratio: float, most: float) -> float:
    """The ratio in [1/most, most].

    Example:
        >>> clipped(0.1, 2.0), clipped(1.5, 2.0)
        (0.5, 1.5)
    """
    return max(1 / most, min(most, ratio))


def weighed(c: Candidates, ratios: Mapping[int, float], *, is_list: bool) -> Candidates:
    """The candidates with weights multiplied by the ratios of a pair's two responses, of a list's, or of a lone one."""
    if not c.pairs:
        return replace(c, weight=(1.0 if c.weight is None else c.weight) * ratios[0]) if ratios else c
    of_list = math.prod(ratios.values())
    pairs = (
        replace(pair, weight=pair.weight * (of_list if is_list else ratios[pair.chosen] * ratios[pair.rejected]))
        for pair in c.pairs
    )
    return replace(c, pairs=tuple(pairs))
