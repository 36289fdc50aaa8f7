"""The two choices of a round: prompts to sample again, pairs to label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from math import comb
from numbers import Real
from typing import Any

from choosy.labeling.buyer import LabelBuyer
from choosy.methods import selection
from choosy.methods.selection import ChosenPair, PairChoice
from choosy.options.parts import typed_for
from choosy.rounds.context import ChosenPrompt, PairSelector, PromptSelector, ResponseSelector, Round
from choosy.types import Candidates, Prompt, seed_of


def choose_prompts(at: Round, prompts: Sequence[Prompt], selector: PromptSelector | None) -> list[ChosenPrompt]:
    """Choose the prompts that get fresh responses this round (slot 1).

    Returns:
        The chosen prompts in the order of their ids, the same on every rank.
    """
    if at.ahead is not None:
        return list(at.ahead)
    with at.phases("select"):
        if selector is None or at.number < selector.warmup_rounds:
            return [ChosenPrompt(p) for p in sorted(prompts, key=lambda p: p.id)]
        utilities = as_floats(selector, selector.prompt_utilities(prompts, at), len(prompts), "prompts")
        k = selection.quota(len(at.given) or len(prompts), fraction=selector.fraction, count=selector.count)
        names = [p.id for p in prompts]
        oriented = selection.orient(utilities, selector.direction)
        best = selection.top_k(oriented, k, names=names, seed=seed_of(at.seed, "prompts", at.number))
        return [ChosenPrompt(prompts[i], utilities[i]) for i in sorted(best, key=lambda i: names[i])]


def refuse_warmup(selector: PromptSelector | None) -> None:
    """Refuse a selector of prompts to sample again where responses are given: its first round would take them all."""
    if selector is not None and selector.warmup_rounds > 0:
        raise ValueError(
            f"{typed_for(selector)} has prompts sampled again, after a round that takes them all, and where responses "
            "are given that round leaves none. Type selector=few_prompts, or a selector of pairs."
        )


def refuse_silent(selector: PromptSelector | None, labels: LabelBuyer) -> None:
    """Refuse a selector that ranks by all rewards of a prompt, where some of them say nothing."""
    if getattr(selector, "statistic", "") == "shrunk" and labels.terms.neutral is not None:
        raise ValueError(
            f"statistic=shrunk counts every reward that a prompt ever had, and labeler {labels.labeler.name} gives "
            f"{labels.terms.neutral} where it says nothing. Type callbacks.optune.statistic=mean."
        )


def choose_pairs(at: Round, mine: Sequence[Candidates], selector: PairSelector | None) -> PairChoice | None:
    """Choose the pairs to label (slot 2) among this rank's candidates and those of the others.

    Where every prompt has a single response, a `ResponseSelector` chooses among these, and another one chooses none.

    Returns:
        The ranked pairs, the same on every rank; `ChosenPair.prompt` counts all ranks' candidates in the order of
        their prompts' ids. None without a selector: every response is scored.
    """
    if selector is None:
        return None
    with at.phases("select"):
        every = at.ranks.gather([len(c.responses) for c in mine])
        if isinstance(selector, ResponseSelector) and set(every) == {1}:
            of_mine = as_floats(selector, selector.response_utilities(mine, at), len(mine), "single responses")
            return choose_responses(at, mine, of_mine, selector)
        found = as_list(selector, selector.pair_utilities(mine, at), len(mine), "prompts")
        pairs = [len(selection.pair_positions(len(c.responses))) for c in mine]
        utilities = [as_floats(selector, u, n, "pairs of a prompt") for u, n in zip(found, pairs, strict=True)]
        # in columns: to pickle a tuple of each prompt takes ten times as long
        names = at.ranks.gather([c.prompt.id for c in mine])
        flat = iter(at.ranks.gather([u for of_prompt in utilities for u in of_prompt]))
        of_name = {name: list(islice(flat, comb(n, 2))) for name, n in zip(names, every, strict=True)}
        names.sort()
        place = {name: p for p, name in enumerate(names)}
        known = [(c.prompt.id, i, j) for c in mine for i, j in excluded_pairs(c)]
        excluded: list[list[Any]] = [at.ranks.gather([one[n] for one in known]) for n in range(3)]
        ranked = selection.rank_pairs(
            [of_name[name] for name in names],
            names=names,
            seed=seed_of(at.seed, "pairs", at.number),
            direction=selector.direction,
            excluded={(place[name], i, j) for name, i, j in zip(*excluded, strict=True)},
        )
        wanted = wanted_pairs(at, Counter(pair.prompt for pair in ranked), selector)
        return PairChoice(ranked, wanted, selector.per_prompt, selector.count is not None, selector.score_all)


def choose_responses(
    at: Round, mine: Sequence[Candidates], utilities: Sequence[float], selector: PairSelector
) -> PairChoice:
    """Choose which single responses to label, one of each prompt; every rank must call this."""
    columns = [c.prompt.id for c in mine], utilities, [is_scored(c) for c in mine]
    every = sorted(zip(*map(at.ranks.gather, columns), strict=True), key=lambda one: one[0])
    left = [p for p, (_, _, scored) in enumerate(every) if not scored]
    oriented = selection.orient([every[p][1] for p in left], selector.direction)
    names, seed = [every[p][0] for p in left], seed_of(at.seed, "responses", at.number)
    order = [left[n] for n in selection.top_k(oriented, len(left), names=names, seed=seed)]
    ranked = [ChosenPair(p, 0, 0, every[p][1]) for p in order]
    known = int(at.pool.rewards(list(at.given))[1].sum())
    wanted = wanted_labels(at, len(at.given) or len(left), selector, known=known)
    return PairChoice(ranked, wanted, per_prompt=1, top_up=selector.count is not None, score_all=True)


def is_scored(c: Candidates) -> bool:
    """Whether all responses have a reward."""
    return all(r.reward is not None for r in c.responses)


def as_list(selector: object, utilities: Any, count: int, what: str) -> list[Any]:
    """Return what a selector gives for so many things as a list; refuse any other number.

    Example:
        >>> import torch
        >>> as_list(object(), torch.tensor([1.0, 2.0]), 2, "prompts")
        [1.0, 2.0]
        >>> as_list(object(), [1.0], 2, "prompts")
        Traceback (most recent call last):
        ValueError: object gave 1 utilities for 2 prompts; it must give one for each, in their order.
    """
    found = utilities.tolist() if hasattr(utilities, "tolist") else utilities
    if not isinstance(found, list | tuple):
        raise ValueError(
            f"{typed_for(selector)} gave {found!r:.40} as utilities of {count} {what}; it must give a list."
        )
    if len(found) != count:
        raise ValueError(
            f"{typed_for(selector)} gave {len(found)} utilities for {count} {what}; it must give one for each, in "
            "their order."
        )
    return [*found]


def as_floats(selector: object, utilities: Any, count: int, what: str) -> list[float]:
    """Return what a selector gives for so many things as floats; refuse what is no number."""
    found = as_list(selector, utilities, count, what)
    others = [one for one in found if type(one) is not float]  # of a million floats, a second look takes seconds
    if wrong := [one for one in others if not isinstance(one, Real) and not hasattr(one, "item")]:
        raise ValueError(f"{typed_for(selector)} gave {wrong[0]!r:.40} as a utility; it must be a number.")
    return [float(one) for one in found]


def wanted_pairs(at: Round, competing: Mapping[int, int], selector: PairSelector) -> int:
    """How many pairs this round labels, of so many competing pairs of each prompt.

    A `fraction` is of the pairs that `per_prompt` leaves: of the fresh responses of the round, or of all given ones.
    """
    of_prompts = [len(distinct_pairs(c)) for c in at.given.values()] if at.given else competing.values()
    everything = sum(n if selector.per_prompt is None else min(n, selector.per_prompt) for n in of_prompts)
    known = at.pool.judged_prompts() if selector.score_all else at.pool.judged_pairs()
    return wanted_labels(at, everything, selector, known=known)


def wanted_labels(at: Round, everything: int, selector: PairSelector, *, known: int) -> int:
    """How many of the pairs or single responses that compete this round labels.

    A `count` is a number of them with a label to train on. A `fraction` of given responses is spent in equal parts over
    the run's rounds, `known` of them in the rounds before.
    """
    if selector.count is not None:
        return selector.count
    if not at.given or selector.fraction is None:
        return selection.quota(everything, fraction=selector.fraction)
    planned = selection.quota(everything, fraction=selector.fraction * min(1.0, (at.number + 1) / at.rounds))
    return max(0, planned - known)


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
    if scores and (selector is None or (len(c.responses) == 1 and isinstance(selector, ResponseSelector))):
        return not is_scored(c)
    cap = 1 if selector is None else selector.per_prompt
    left = distinct_pairs(c) - excluded_pairs(c)
    return bool(left) and (cap is None or len(c.pairs) < cap)


def refuse_without(method: str, selector: object | None) -> None:
    """Refuse a selector that lacks the method by which it chooses."""
    if selector is not None and not hasattr(selector, method):
        raise ValueError(
            f"{typed_for(selector)} is a selector without {method}, by which it chooses; docs/python.md shows one."
        )


def refuse_second(slot: str, one: object | None, two: object | None) -> None:
    """Refuse a second selector for a slot."""
    if one is not None and two is not None and one is not two:
        raise ValueError(
            f"{typed_for(one)} and {typed_for(two)} both choose {slot}, and that slot takes one selector; "
            "type one of them, such as selector=certainty, or a composition such as selector=optune_certainty."
        )
