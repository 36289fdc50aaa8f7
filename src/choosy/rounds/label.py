"""Labels of a round, bought once for all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from choosy.data.pool import with_responses
from choosy.labeling import statistics
from choosy.labeling.buyer import LabelBuyer
from choosy.methods.pairing import PAIRINGS, good_above, verdict_of_scores
from choosy.methods.selection import ChosenPair, PairChoice, pair_positions, top_pairs
from choosy.rounds.choose import excluded_pairs, is_scored
from choosy.rounds.context import Labels, PairSelector, Round
from choosy.terminal import counted
from choosy.types import MIRRORED, Candidates, Pair, Verdict, seed_of


def made_of(
    items: int, new: int, form: str, *, bought: int, reused: int, scored: bool, passes: int, given: bool = False
) -> str:
    """Say of which labels the items of a round are made, and how many of them earlier rounds have made.

    `given`: the labels came with the data.

    Example:
        >>> made_of(10, 10, "pair", bought=8, reused=0, scored=True, passes=1)
        '10 pairs to train on: 10 from 8 labels bought (a score serves every pair of its response)'
        >>> made_of(9, 6, "pair", bought=1, reused=5, scored=False, passes=2)
        '9 pairs to train on, 2 times each: 6 from 1 label bought and 5 reused, 3 from earlier rounds'
        >>> made_of(4, 4, "pair", bought=4, reused=0, scored=True, passes=1, given=True)
        '4 pairs to train on: 4 from the labels of the data'
    """
    times = f", {passes} times each" if passes > 1 else ""
    labels = f"{counted(bought, 'labels')} bought" + (f" and {reused} reused" if reused else "")
    if scored and form == "pair" and new:
        labels += " (a score serves every pair of its response)"
    if given:
        labels = "the labels of the data"
    earlier = f", {items - new} from earlier rounds" if items > new else ""
    things = "single responses" if form == "single" else f"{form}s"
    return f"{counted(items, things)} to train on{times}: {new} from {labels}{earlier}"


def together(responses: int, labels: LabelBuyer, selector: PairSelector | None) -> int:
    """How many answers are bought together: the scores of a pair or of all responses to a prompt, or one verdict."""
    scores = responses if selector is None or selector.score_all else min(2, responses)
    return scores if labels.scores else 1


def is_spent(responses: int, labels: LabelBuyer, selector: PairSelector | None) -> bool:
    """Whether the budgets pay for no prompt of so many responses any more.

    As long as a run has bought nothing, a small budget is not spent: labels that other runs have bought cost nothing.
    """
    least = 1 if labels.spent == 0 else together(responses, labels, selector)
    return not labels.pays(least)


class Bought(NamedTuple):
    """Candidates with their new pairs, how many prompts or pairs the budget could not pay, and verdicts counted."""

    labeled: list[Candidates]
    unpaid: int
    counts: Counter[str]


class Changes(NamedTuple):
    """What a purchase changes of candidates."""

    rewards: Sequence[tuple[float | None, tuple[tuple[str, float], ...]]]  # of the responses, with their parts
    pairs: tuple[Pair, ...]
    undecided: tuple[tuple[int, int], ...]
    threshold: float
    round: int

    @classmethod
    def of(cls, c: Candidates) -> Changes:
        """What these candidates have."""
        return cls([(r.reward, r.parts) for r in c.responses], c.pairs, c.undecided, c.threshold, c.round)

    def on(self, c: Candidates) -> Candidates:
        """The candidates as they are after the purchase."""
        rewarded = zip(c.responses, self.rewards, strict=True)
        responses = tuple(replace(r, reward=reward, parts=parts) for r, (reward, parts) in rewarded)
        changed: dict[str, Any] = self._asdict() | {"responses": responses}
        del changed["rewards"]
        return replace(c, **changed)


def label(at: Round, mine: Sequence[Candidates], choice: PairChoice | None, labels: Labels) -> list[Candidates]:
    """Buy the labels of the chosen pairs, or score every response; ties and invalid verdicts make no pair.

    Rank 0 reads the responses that are asked about and buys; the others receive what was bought, and no response.

    Returns:
        This rank's candidates with their new pairs.
    """
    total, unit = to_label(at.ranks.gather([len(c.responses) for c in mine]), choice)
    with at.phases("label", total=total, unit=unit) as tick:
        if choice is None:
            labeled, _ = bought(at, mine, lambda fresh: buy_labels(at, fresh, labels))
            labeled = with_thresholds(at, labeled, labels.terms.neutral) if labels.scores else labeled
        else:
            labeled = ranked_pairs(at, mine, choice, labels)
        tick(total)
    return labeled


def bought(
    at: Round,
    mine: Sequence[Candidates],
    buy: Callable[[list[Candidates]], Bought],
    *,
    asked: Collection[str] | None = None,
) -> tuple[list[Candidates], int]:
    """Let rank 0 buy, with the candidates of all ranks or of those prompts that are asked about.

    Every rank must call this.

    Returns:
        This rank's candidates after the purchase, and how many prompts or pairs the budget could not pay.
    """
    sent = (c for c in mine if asked is None or c.prompt.id in asked)
    every = at.ranks.collect([replace(c, prompt_ids=(), own=()) for c in sent])  # no labeler reads these

    def act() -> tuple[dict[str, Changes], int, Counter[str]]:
        fresh = sorted(every, key=lambda c: c.prompt.id)
        every.clear()
        labeled, unpaid, counts = buy(fresh)
        changed = (c for c, before in zip(labeled, fresh, strict=True) if c is not before)
        return {c.prompt.id: Changes.of(c) for c in changed}, unpaid, counts

    changes, unpaid, counts = at.ranks.on_rank_zero(act)
    if at.ranks.rank == 0:  # the counts of all ranks are added up
        at.counts.update(counts)
    return [changes[c.prompt.id].on(c) if c.prompt.id in changes else c for c in mine], unpaid


def to_label(responses: Sequence[int], choice: PairChoice | None) -> tuple[int, str]:
    """How much is to be labeled, and what that is, where prompts have so many responses each."""
    if choice is None or choice.score_all:
        return len(responses) if choice is None else min(choice.wanted, len(responses)), "prompts"
    lone = all(n == 1 for n in responses)
    return min(choice.wanted, len(choice.ranked)), "responses" if lone else "pairs"


def buy_labels(at: Round, fresh: Sequence[Candidates], labels: Labels) -> Bought:
    """Buy a score of every response, or a comparison of the only two responses of each prompt, on this rank."""
    if labels.scores:
        return all_scored(at, fresh, labels)
    return compared_pairs(at, fresh, the_only_pairs(fresh, labels.labeler.name), labels)


def ranked_pairs(at: Round, mine: Sequence[Candidates], choice: PairChoice, labels: Labels) -> list[Candidates]:
    """Buy the first pairs of a ranking; with `top_up`, until as many as wanted have a winner.

    Every rank must call this, and only the candidates that are asked about cross.
    """
    buy = scored_prompts if choice.score_all else scored_pairs if labels.scores else compared_pairs
    names = sorted(at.ranks.gather([c.prompt.id for c in mine]))
    place = {name: p for p, name in enumerate(names)}
    left, wanted, unpaid, labeled = choice.ranked, choice.wanted, 0, list(mine)
    made = winners(at, labeled, choice)
    while some := top_pairs(left, wanted, per_prompt=choice.per_prompt, labeled={place[c]: n for c, n in made.items()}):
        asked = {name: p for p, name in enumerate(sorted({names[pair.prompt] for pair in some}))}
        pairs = [pair._replace(prompt=asked[names[pair.prompt]]) for pair in some]
        labeled, unpaid = bought(at, labeled, partial(buy, at, asked=pairs, labels=labels), asked=asked)
        if choice.score_all:
            labeled = with_thresholds(at, labeled, labels.terms.neutral)
        if not choice.top_up or unpaid:
            break
        before, made = made, winners(at, labeled, choice)
        wanted -= made.total() - before.total()
        known = {pair[:3] for pair in some}
        whole = {pair.prompt for pair in some} if choice.score_all else set()  # nothing of these is left to buy
        left = [pair for pair in left if pair[:3] not in known and pair.prompt not in whole]
    if choice.top_up and wanted and not unpaid:
        alone = all(at.ranks.gather([len(c.responses) == 1 for c in mine]))
        what = "responses are good or bad" if alone else f"{'prompts' if choice.score_all else 'pairs'} have a winner"
        if at.ranks.rank == 0:
            at.phases.say(
                f"{choice.wanted - wanted} {what}, {choice.wanted} were wanted, and no other is left to label."
            )
    return labeled


def winners(at: Round, mine: Sequence[Candidates], choice: PairChoice) -> Counter[str]:
    """How many labeled pairs each rank's prompts have; one whose responses are all scored, or is alone, counts once."""
    counts = {c.prompt.id: int(c.labeled) if choice.score_all else len(c.pairs) for c in mine}
    labeled = {name: n for name, n in counts.items() if n}
    return Counter(dict(zip(at.ranks.gather([*labeled]), at.ranks.gather([*labeled.values()]), strict=True)))


def all_scored(at: Round, fresh: Sequence[Candidates], labels: Labels) -> Bought:
    """Buy a score for every response; the seed decides which prompts are scored first."""
    unscored = [i for i, c in enumerate(fresh) if not is_scored(c)]
    order = sorted(unscored, key=lambda i: seed_of(at.seed, "label", at.number, fresh[i].prompt.id))
    return scored_prompts(at, fresh, [ChosenPair(i, 0, 0, math.nan) for i in order], labels)


def with_thresholds(at: Round, mine: Sequence[Candidates], neutral: float | None) -> list[Candidates]:
    """Write the reward that parts the round's good lone responses from bad ones; every rank must call this.

    A reward that equals it trains nothing, and so does a `neutral` one, which says nothing.
    """
    of_round = [len(c.responses) == 1 and c.round == at.number for c in mine]
    alone = at.ranks.gather([c.responses[0].reward for c, new in zip(mine, of_round, strict=True) if new])
    threshold = good_above([reward for reward in alone if reward not in (None, neutral)], at.threshold)
    parting = [neutral if c.responses[0].reward == neutral is not None else threshold for c in mine]
    known = zip(mine, of_round, parting, strict=True)
    return [replace(c, threshold=x) if new else c for c, new, x in known]


def scored_prompts(at: Round, fresh: Sequence[Candidates], asked: Sequence[ChosenPair], labels: Labels) -> Bought:
    """Buy a score for every response of the pairs' prompts, and make a pair of two of each prompt."""
    labeled = list(fresh)
    verdicts: list[Verdict | None] = []
    for a, scored in zip(asked, labels.score([fresh[a.prompt] for a in asked]), strict=True):
        if len(scored.responses) == 1 and is_scored(scored) and not is_scored(fresh[a.prompt]):
            scored = replace(scored, round=at.number)
        labeled[a.prompt], judged = with_pairs(scored, at, labels, a.utility)
        verdicts += judged
    unpaid = sum(any(r.reward is None for r in labeled[a.prompt].responses) for a in asked)
    return Bought(labeled, unpaid, statistics.count(verdicts, shown=False))


def with_pairs(c: Candidates, at: Round, labels: Labels, utility: float) -> tuple[Candidates, list[Verdict | None]]:
    """Make the pairs of the responses that the run's pairing says, with their verdicts.

    Equal rewards make no pair, nor does a neutral one with any other.
    """
    source, neutral = labels.labeler.name, labels.terms.neutral
    rewards = [r.reward for r in c.responses if r.reward is not None]
    if len(rewards) < max(2, len(c.responses)):
        return c, [None]
    telling = [i for i, reward in enumerate(rewards) if reward != neutral]
    found = PAIRINGS[at.pairing]([rewards[i] for i in telling]) if telling else []
    positions = [(telling[i], telling[j]) for i, j in found]
    if not positions:
        undecided = tuple(pair_positions(len(rewards)))
        return replace(c, undecided=undecided), ["invalid" if neutral in rewards else "tie"]
    known = excluded_pairs(c)
    new = [(i, j) for i, j in positions if (min(i, j), max(i, j)) not in known]
    pairs = (Pair(i, j, utility=utility, source=source, round=at.number) for i, j in new)
    return replace(c, pairs=(*c.pairs, *pairs)), ["first"] * len(new) or [None]


def the_only_pairs(fresh: Sequence[Candidates], labeler: str) -> list[ChosenPair]:
    """Return the pair of every prompt that has two different responses."""
    refuse_many(max((len(c.responses) for c in fresh), default=0), labeler)
    pairs = [ChosenPair(p, 0, 1, math.nan) for p, c in enumerate(fresh) if {(0, 1)} - excluded_pairs(c)]
    return [pair for pair in pairs if len(fresh[pair.prompt].responses) == 2]


def refuse_many(responses: int, labeler: str) -> None:
    """Refuse more than two responses to a prompt where nothing chooses which of them are compared."""
    if responses > 2:
        raise ValueError(
            f"labeler {labeler} only compares, and {responses} responses to a prompt make many pairs; "
            "choose which to compare with a pair selector such as selector=predicted_gap or selector=certainty, or "
            "data.responses=2 where they are sampled."
        )


def scored_pairs(at: Round, fresh: Sequence[Candidates], asked: Sequence[ChosenPair], labels: Labels) -> Bought:
    """Buy two scores for each pair; the higher reward is chosen."""
    halves = [
        replace(fresh[a.prompt], responses=tuple(fresh[a.prompt].responses[n] for n in (a.i, a.j))) for a in asked
    ]
    labeled = list(fresh)
    judged: list[Verdict | None] = []
    for a, half in zip(asked, labels.score(halves), strict=True):
        first, second = (r.reward for r in half.responses)
        if first is None or second is None:
            judged.append(None)
            continue
        judged.append(verdict_of_scores(first, second, labels.terms.neutral))
        c = with_responses(labeled[a.prompt], dict(zip((a.i, a.j), half.responses, strict=True)))
        labeled[a.prompt] = decided(c, a, judged[-1], labels.labeler.name, at.number)
    return Bought(labeled, judged.count(None), statistics.count(judged, shown=False))


def decided(c: Candidates, pair: ChosenPair, verdict: Verdict | None, source: str, number: int) -> Candidates:
    """Return the candidates with the verdict on a pair; None is a verdict that was not bought."""
    if verdict is None:
        return c
    if verdict in ("tie", "invalid"):
        return replace(c, undecided=(*c.undecided, (pair.i, pair.j)))
    chosen, rejected = (pair.i, pair.j) if verdict == "first" else (pair.j, pair.i)
    return replace(c, pairs=(*c.pairs, Pair(chosen, rejected, utility=pair.utility, source=source, round=number)))


def compared_pairs(at: Round, fresh: Sequence[Candidates], asked: Sequence[ChosenPair], labels: Labels) -> Bought:
    """Buy one comparison for each pair; the seed draws the order in which the two responses are shown."""
    turned = [seed_of(at.seed, "turn", at.number, fresh[a.prompt].prompt.id, a.i, a.j) % 2 == 1 for a in asked]
    shown = [(a.j, a.i) if turn else (a.i, a.j) for a, turn in zip(asked, turned, strict=True)]
    questions = [
        (fresh[a.prompt].prompt, fresh[a.prompt].responses[first], fresh[a.prompt].responses[second])
        for a, (first, second) in zip(asked, shown, strict=True)
    ]
    labeled = list(fresh)
    verdicts = labels.compare(questions)
    for a, turn, verdict in zip(asked, turned, verdicts, strict=True):
        of_pair = MIRRORED[verdict] if turn and verdict else verdict
        labeled[a.prompt] = decided(labeled[a.prompt], a, of_pair, labels.labeler.name, at.number)
    in_order = not labels.terms.people  # the page for people draws the order anew
    return Bought(labeled, verdicts.count(None), statistics.count(verdicts, shown=in_order))
