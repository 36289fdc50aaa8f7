"""The two choices of a round: prompts to sample again, pairs to label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from choosy.methods import selection
from choosy.methods.selection import PairChoice
from choosy.rounds.context import ChosenPrompt, PairSelector, PromptSelector, Round
from choosy.types import Candidates, Prompt, seed_of


def choose_prompts(at: Round, prompts: Sequence[Prompt], selector: PromptSelector | None) -> list[ChosenPrompt]:
    """Choose the prompts that get fresh responses this round (slot 1).

    Returns:
        The chosen prompts in the order of their ids, the same on every rank.
    """
    with at.phases("select"):
        if selector is None or at.number < selector.warmup_rounds:
            return [ChosenPrompt(p) for p in sorted(prompts, key=lambda p: p.id)]
        utilities = selector.prompt_utilities(prompts, at)
        k = selection.quota(len(at.given) or len(prompts), fraction=selector.fraction, count=selector.count)
        names = [p.id for p in prompts]
        oriented = selection.orient(utilities, selector.direction)
        best = selection.top_k(oriented, k, names=names, seed=seed_of(at.seed, "prompts", at.number))
        return [ChosenPrompt(prompts[i], utilities[i]) for i in sorted(best, key=lambda i: names[i])]


def choose_pairs(at: Round, mine: Sequence[Candidates], selector: PairSelector | None) -> PairChoice | None:
    """Choose the pairs to label (slot 2) among this rank's candidates and those of the others.

    Returns:
        The ranked pairs, the same on every rank; `ChosenPair.prompt` counts all ranks' candidates in the order of
        their prompts' ids. None without a selector: every response is scored.
    """
    if selector is None:
        return None
    with at.phases("select"):
        utilities = selector.pair_utilities(mine, at)
        competing = at.ranks.gather([(c.prompt.id, u, excluded_pairs(c)) for c, u in zip(mine, utilities, strict=True)])
        competing.sort(key=lambda c: c[0])
        ranked = selection.rank_pairs(
            [u for _, u, _ in competing],
            names=[name for name, _, _ in competing],
            seed=seed_of(at.seed, "pairs", at.number),
            direction=selector.direction,
            excluded={(p, i, j) for p, (_, _, of_prompt) in enumerate(competing) for i, j in of_prompt},
        )
        wanted = wanted_pairs(at, Counter(pair.prompt for pair in ranked), selector)
        return PairChoice(ranked, wanted, selector.per_prompt, selector.count is not None, selector.score_all)


def wanted_pairs(at: Round, competing: Mapping[int, int], selector: PairSelector) -> int:
    """How many pairs this round labels, of so many competing pairs of each prompt.

    A `count` is a number of labeled pairs. A `fraction` is of the pairs that `per_prompt` leaves: of the fresh
    responses of the round, or of all given responses. Of these it is spent in equal parts over the run's rounds.
    """
    if selector.count is not None:
        return selector.count
    of_prompts = [len(distinct_pairs(c)) for c in at.given.values()] if at.given else competing.values()
    everything = sum(n if selector.per_prompt is None else min(n, selector.per_prompt) for n in of_prompts)
    if not at.given or selector.fraction is None:
        return selection.quota(everything, fraction=selector.fraction)
    planned = selection.quota(everything, fraction=selector.fraction * min(1.0, (at.number + 1) / at.rounds))
    return max(0, planned - (at.pool.judged_prompts() if selector.score_all else at.pool.judged_pairs()))


def distinct_pairs(c: Candidates) -> set[tuple[int, int]]:
    """Return the pairs i < j of responses with different texts."""
    positions = selection.pair_positions(len(c.responses))
    return {(i, j) for i, j in positions if c.responses[i].text != c.responses[j].text}


def excluded_pairs(c: Candidates) -> set[tuple[int, int]]:
    """Return the pairs i < j that need no label: those of equal texts, and those that have been judged."""
    labeled = {(min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)) for pair in c.pairs}
    return {*selection.pair_positions(len(c.responses))} - distinct_pairs(c) | labeled | {*c.undecided}


def can_be_labeled(c: Candidates, selector: PairSelector | None, *, scores: bool) -> bool:
    """Whether a round could buy a label of these candidates, from a labeler that scores responses or not."""
    if selector is None and scores:
        return any(r.reward is None for r in c.responses)
    cap = 1 if selector is None else selector.per_prompt
    left = distinct_pairs(c) - excluded_pairs(c)
    return bool(left) and (cap is None or len(c.pairs) < cap)
