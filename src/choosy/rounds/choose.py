"""The two choices of a round: prompts to sample again, pairs to label."""

from __future__ import annotations

from collections.abc import Sequence

from choosy.methods import selection
from choosy.methods.selection import ChosenPair
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
        k = selection.quota(len(prompts), fraction=selector.fraction, count=selector.count)
        names = [p.id for p in prompts]
        oriented = selection.orient(utilities, selector.direction)
        best = selection.top_k(oriented, k, names=names, seed=seed_of(at.seed, "prompts", at.number))
        return [ChosenPrompt(prompts[i], utilities[i]) for i in sorted(best, key=lambda i: names[i])]


def choose_pairs(at: Round, mine: Sequence[Candidates], selector: PairSelector | None) -> list[ChosenPair] | None:
    """Choose the pairs to label (slot 2).

    Args:
        at: The context of the round.
        mine: This rank's candidates.
        selector: None leaves no choice: every response is scored.

    Returns:
        The chosen pairs, the most useful first, the same on every rank; `ChosenPair.prompt` counts all ranks'
        candidates in the order of their prompts' ids. None without a selector.
    """
    if selector is None:
        return None
    with at.phases("select"):
        utilities = selector.pair_utilities(mine, at)
        competing = at.ranks.gather([(c.prompt.id, u, excluded_pairs(c)) for c, u in zip(mine, utilities, strict=True)])
        competing.sort(key=lambda c: c[0])
        return selection.top_pairs(
            [u for _, u, _ in competing],
            names=[name for name, _, _ in competing],
            seed=seed_of(at.seed, "pairs", at.number),
            direction=selector.direction,
            fraction=selector.fraction,
            count=selector.count,
            per_prompt=selector.per_prompt,
            excluded={(p, i, j) for p, (_, _, of_prompt) in enumerate(competing) for i, j in of_prompt},
        )


def excluded_pairs(c: Candidates) -> set[tuple[int, int]]:
    """Return the pairs i < j that need no label: those of equal texts, and those that have a label."""
    labeled = {(min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)) for pair in c.pairs}
    positions = selection.pair_positions(len(c.responses))
    return labeled | {(i, j) for i, j in positions if c.responses[i].text == c.responses[j].text}
