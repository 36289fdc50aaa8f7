"""One round, top to bottom. The only place that knows the order of things.

choose prompts -> sample -> score -> choose pairs -> label -> weigh and store; training and evaluation follow.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import torch

from choosy.data.pool import Keep, Pool, with_rewards
from choosy.labeling import statistics as judgements
from choosy.labeling.buyer import LabelBuyer
from choosy.methods import selection
from choosy.methods.selection import ChosenPair, Direction
from choosy.methods.weighting import Weighting
from choosy.models.policy import Policy
from choosy.parallel.ranks import Ranks, shard
from choosy.reporting.phases import Phases
from choosy.resume import partial_rounds as sampled_files
from choosy.rounds.label_ahead import Ahead
from choosy.sampling.protocol import Sampler
from choosy.types import Candidates, Pair, Prompt, Response, Verdict, seed_of

log = logging.getLogger(__name__)

TrainOn = Literal["pool", "round"]


@dataclass(frozen=True)
class Round:
    """What a round is played with; selectors read it, nobody writes but `counts`.

    Attributes:
        number: Of the round, from 0.
        seed: Of the run.
        policy: As trained so far; in `for_sampling` or `as_reference` state only inside such a block.
        sampler: The sampling engine.
        pool: As the last round left it.
        ranks: The processes that play together.
        phases: The stopwatch.
        beta: Scale of the implicit reward: the loss's beta.
        counts: This rank's tokens and the like, summed over ranks when the round is over.
    """

    number: int
    seed: int
    policy: Policy
    sampler: Sampler
    pool: Pool
    ranks: Ranks
    phases: Phases
    beta: float
    counts: Counter[str] = field(default_factory=Counter)

    def spread(self, prompts: Sequence[Prompt], utilities_of: Callable[[list[Prompt]], list[float]]) -> list[float]:
        """Utilities of all prompts, each computed on one rank only; for what is dear to compute."""
        mine = shard(prompts, self.ranks)
        found = dict(self.ranks.gather(list(zip((p.id for p in mine), utilities_of(mine), strict=True))))
        return [found[p.id] for p in prompts]


class PromptSelector(Protocol):
    """Answers slot 1: which prompts are sampled again?

    Attributes:
        fraction: Share of the prompts to sample; `count` gives a number instead.
        count: See `fraction`.
        warmup_rounds: Rounds that sample everything before this selector starts to choose.
    """

    fraction: float | None
    count: int | None
    warmup_rounds: int

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        """How much fresh responses to each prompt would teach: larger = sampled first. The same on every rank."""
        ...


class PairSelector(Protocol):
    """Answers slot 2: which pairs are labeled?

    Attributes:
        fraction: Share of the competing pairs to label; `count` gives a number instead.
        count: See `fraction`.
        per_prompt: Most pairs of one prompt; None = any number.
        direction: Which end of the utilities is spent on first.
    """

    fraction: float | None
    count: int | None
    per_prompt: int | None
    direction: Direction

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        """Utilities of each candidate's pairs i < j: larger = labeled first. Sees this rank's candidates only."""
        ...


class Sample(Protocol):
    """Gives each prompt of a rank's share its responses."""

    def __call__(
        self,
        prompts: list[Prompt],
        at: Round,
        *,
        begun: Mapping[str, Candidates],
        done: Callable[[Sequence[Candidates]], None],
    ) -> list[Candidates]:
        """The candidates in the order of the prompts.

        Args:
            prompts: The share.
            at: What the round is played with.
            begun: Candidates of this round that an interrupted run has sampled, by prompt id.
            done: Keeps what has been sampled, so that no crash costs it; called while more is under way.
        """
        ...


def play_round(
    at: Round,
    prompts: Sequence[Prompt],
    *,
    sample: Sample,
    prompt_selector: PromptSelector | None,
    pair_selector: PairSelector | None,
    labels: LabelBuyer,
    weighting: Weighting,
    keep: Keep,
    responses: int,
    folder: Path,
) -> Pool:
    """Play one round up to the training: the pool with what was sampled, labeled and weighed.

    Args:
        at: What the round is played with.
        prompts: All that may be asked, in the same order on every rank.
        sample: Gives each prompt of this rank's share its responses.
        prompt_selector: Slot 1; None samples every prompt.
        pair_selector: Slot 2; None scores every response and takes best against worst.
        labels: Where labels are bought.
        weighting: The factor on each pair's loss.
        keep: Which labeled rows of a prompt the pool keeps.
        responses: How many responses `sample` gives a prompt, at most.
        folder: Where responses are kept before their first label is bought, so that no crash costs them.
    """
    with Ahead(labels, lambda some: buy_labels(some, None, labels, at)) as ahead:
        every = ahead if pair_selector is None else None  # then all will be labeled, whichever come next
        mine = sample_and_score(
            at, prompts, sample=sample, selector=prompt_selector, responses=responses, folder=folder, ahead=every
        )
        with at.phases("select"):
            pairs, fresh = choose_pairs(at, mine, pair_selector)
        with at.phases("label", total=len(fresh), unit="prompts") as tick:
            early = at.ranks.on_rank_zero(ahead.finish)
            labeled, unpaid = label(fresh, pairs, labels, at)
            tick(len(fresh))
    if early:
        at.phases.display.say(f"{early} of {len(fresh)} prompts were labeled while the round was sampled.")
        at.counts["labeled_ahead"] += early if at.ranks.rank == 0 else 0
    if unpaid:
        at.phases.display.say(
            f"The label budget of {labels.budget} is spent: {unpaid} of this round's judgements were not bought. "
            "Training goes on with the pairs bought so far."
        )
    return at.pool.put([weigh(c, weighting, at.number) for c in labeled], round=at.number, keep=keep)


def sample_and_score(
    at: Round,
    prompts: Sequence[Prompt],
    *,
    sample: Sample,
    selector: PromptSelector | None,
    responses: int,
    folder: Path,
    ahead: Ahead | None,
) -> list[Candidates]:
    """This rank's share of the responses, scored: as an interrupted run has left them, or sampled now and kept."""
    if found := sampled_files.kept(folder, at.number, prompts, at.ranks):
        at.counts.update(found.counts)
        at.phases.load_state_dict(found.seconds)
        return found.candidates
    begun, seconds = sampled_files.begun(folder, at.number, prompts)
    at.ranks.gather([])  # nobody changes the files before everybody has read them
    at.phases.load_state_dict(seconds)
    with at.phases("select"):
        chosen, utility = choose_prompts(at, prompts, selector)
    if ahead is not None and at.ranks.rank == 0:
        news = sampled_files.News(folder, at.number, prompts, chosen=chosen, responses=responses)
        ahead.start(news, prompts=len(chosen), responses=responses)
    parts = sampled_files.Parts(folder, at.number, at.ranks, seconds=lambda: at.phases.seconds)
    with at.phases("sample", total=len(chosen), unit="prompts") as tick:
        told = 0

        def done(some: Sequence[Candidates]) -> None:
            nonlocal told
            told += len(some)
            tick(len(some) * at.ranks.size)
            parts.add(some)
            if ahead is not None and at.ranks.size == 1:  # else all ranks learn of it together, before they label
                ahead.check()

        mine = sample(shard(chosen, at.ranks), at, begun=begun, done=done)
        parts.write()
        tick((len(mine) - told) * at.ranks.size)
    mine = [replace(c, utility=utility[c.prompt.id]) for c in score(mine, at)]
    sampled_files.keep(folder, at.number, mine, at.ranks, counts=dict(at.counts), seconds=at.phases.seconds)
    parts.forget()
    return mine


def choose_prompts(
    at: Round, prompts: Sequence[Prompt], selector: PromptSelector | None
) -> tuple[list[Prompt], dict[str, float]]:
    """Slot 1: the prompts that get fresh responses this round, in the order of their ids, and their utilities."""
    if selector is None or at.number < selector.warmup_rounds:
        return sorted(prompts, key=lambda p: p.id), {p.id: math.nan for p in prompts}
    utilities = selector.prompt_utilities(prompts, at)
    k = selection.quota(len(prompts), fraction=selector.fraction, count=selector.count)
    names = [p.id for p in prompts]
    best = selection.top_k(utilities, k, names=names, seed=seed_of(at.seed, "prompts", at.number))
    best.sort(key=lambda i: names[i])
    return [prompts[i] for i in best], {names[i]: utilities[i] for i in best}


def sample_responses(
    prompts: Sequence[Prompt],
    at: Round,
    *,
    n: int,
    purpose: str = "train",
    begun: Mapping[str, Candidates] = MappingProxyType({}),
    done: Callable[[Sequence[Candidates]], None] = lambda some: None,
) -> list[Candidates]:
    """N responses to each prompt from the present policy; a response's seed is (run, round, prompt, sample).

    Args:
        prompts: Whom to answer.
        at: What the round is played with; its counts are added to.
        n: How many responses a prompt gets.
        purpose: Part of the seed.
        begun: Candidates of this round and purpose that are sampled already; those with N responses are taken.
        done: Called while others are under way with the candidates that have been sampled together.
    """
    found = {p.id: begun[p.id] for p in prompts if p.id in begun and len(begun[p.id].responses) == n}
    rest = [p for p in prompts if p.id not in found]
    ids = [at.policy.encode_prompt(prompt) for prompt in rest]
    seeds = [[seed_of(at.seed, purpose, at.number, p.id, sample) for sample in range(n)] for p in rest]

    def made(responses: Mapping[int, list[Response]]) -> list[Candidates]:
        return [Candidates(rest[p], tuple(of_prompt), ids[p], at.number) for p, of_prompt in responses.items()]

    synced = at.sampler.sync_seconds
    responses = at.sampler.sample(at.policy, ids, seeds, done=lambda ended: done(made(ended)))
    synced = at.sampler.sync_seconds - synced
    if synced and at.ranks.rank == 0:
        at.phases.display.say(f"The policy's weights went into the sampling engine in {synced:.2f} s.")
    found |= {c.prompt.id: c for c in made(dict(enumerate(responses)))}
    all_of_them = [r for c in found.values() for r in c.responses]
    at.counts["tokens_generated"] += sum(len(r.ids) for r in all_of_them)
    at.counts["prompts_sampled"] += len(prompts)
    at.counts["responses_cut"] += sum(not r.finished for r in all_of_them)
    at.counts["responses_empty"] += sum(not r.text for r in all_of_them)
    at.counts["sync_milliseconds"] += round(1000 * synced)
    return [found[p.id] for p in prompts]


def score(candidates: Sequence[Candidates], at: Round) -> list[Candidates]:
    """Reference log-probs of every response, computed once and kept; what has them already is left as it is."""
    new = [i for i, c in enumerate(candidates) if any(math.isnan(r.logp_ref) for r in c.responses)]
    with at.phases("score", total=len(new), unit="prompts") as tick:
        scored = at.policy.score_reference([candidates[i] for i in new], tick)
    result = list(candidates)
    for i, c in zip(new, scored, strict=True):
        result[i] = c
    return result


def choose_pairs(
    at: Round, mine: Sequence[Candidates], selector: PairSelector | None
) -> tuple[list[ChosenPair] | None, list[Candidates]]:
    """Slot 2: the pairs to label, the most useful first (None: score everything), and everybody's candidates."""
    if selector is None:
        return None, sorted(at.ranks.gather(mine), key=lambda c: c.prompt.id)
    utilities = selector.pair_utilities(mine, at)
    both = sorted(at.ranks.gather(list(zip(mine, utilities, strict=True))), key=lambda cu: cu[0].prompt.id)
    fresh = [c for c, _ in both]
    pairs = selection.top_pairs(
        [u for _, u in both],
        names=[c.prompt.id for c in fresh],
        seed=seed_of(at.seed, "pairs", at.number),
        direction=selector.direction,
        fraction=selector.fraction,
        count=selector.count,
        per_prompt=selector.per_prompt,
        excluded=excluded_pairs(fresh),
    )
    return pairs, fresh


def excluded_pairs(candidates: Sequence[Candidates]) -> set[tuple[int, int, int]]:
    """Pairs that no label shall be bought for: equal texts, and pairs that have one."""
    bars: set[tuple[int, int, int]] = set()
    for p, c in enumerate(candidates):
        bars |= {(p, min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)) for pair in c.pairs}
        positions = selection.pair_positions(len(c.responses))
        bars |= {(p, i, j) for i, j in positions if c.responses[i].text == c.responses[j].text}
    return bars


def label(
    fresh: Sequence[Candidates], pairs: list[ChosenPair] | None, labels: LabelBuyer, at: Round
) -> tuple[list[Candidates], int]:
    """Buy what was chosen, once for all ranks, and make pairs of the verdicts; ties and invalid ones make none.

    Returns:
        The candidates with their pairs, and how many of the prompts or pairs the budget could not pay.
    """
    labeled, unpaid, counts = at.ranks.on_rank_zero(lambda: buy_labels(fresh, pairs, labels, at))
    if at.ranks.rank == 0:  # the counts of all ranks are added up
        at.counts.update(counts)
    return labeled, unpaid


def buy_labels(
    fresh: Sequence[Candidates], pairs: list[ChosenPair] | None, labels: LabelBuyer, at: Round
) -> tuple[list[Candidates], int, Counter[str]]:
    """Buy what was chosen; what `label` returns, and counts of what was said."""
    name = labels.labeler.name
    if pairs is None and labels.scores:
        order = sorted(range(len(fresh)), key=lambda i: seed_of(at.seed, "label", at.number, fresh[i].prompt.id))
        bought = dict(zip(order, labels.score([fresh[i] for i in order]), strict=True))
        unpaid = sum(any(r.reward is None for r in c.responses) for c in bought.values())
        labeled = [best_against_worst(bought[i], name, at.number) for i in range(len(fresh))]
        return labeled, unpaid, judgements.count([extremes_verdict(c, at.number) for c in labeled], shown=False)
    asked = pairs if pairs is not None else the_only_pairs(fresh, name)
    return scored_pairs(fresh, asked, labels, at) if labels.scores else compared_pairs(fresh, asked, labels, at)


def extremes_verdict(c: Candidates, number: int) -> tuple[Response, Response, Verdict | None]:
    """The two responses that best against worst is about, and what their rewards say; None where there are none."""
    new = next((pair for pair in c.pairs if pair.round == number), None)
    if new is not None:
        return c.responses[new.chosen], c.responses[new.rejected], "first"
    rewards = {r.reward for r in c.responses}
    tied = len(c.responses) > 1 and len(rewards) == 1 and None not in rewards
    return c.responses[0], c.responses[-1], "tie" if tied else None


def the_only_pairs(fresh: Sequence[Candidates], labeler: str) -> list[ChosenPair]:
    """The pair of every prompt that has two different responses."""
    refuse_many(max((len(c.responses) for c in fresh), default=0), labeler)
    skip = excluded_pairs(fresh)
    return [
        ChosenPair(p, 0, 1, math.nan) for p, c in enumerate(fresh) if len(c.responses) == 2 and (p, 0, 1) not in skip
    ]


def refuse_many(responses: int, labeler: str) -> None:
    """Without a pair selector a labeler that only compares can judge two responses to a prompt, not more."""
    if responses > 2:
        raise ValueError(
            f"labeler {labeler} only compares, and {responses} responses to a prompt make many pairs; "
            "choose which to compare with a pair selector such as selector=certainty, or data.responses=2."
        )


def best_against_worst(c: Candidates, source: str, number: int) -> Candidates:
    """The pair of the highest against the lowest reward; equal rewards or texts make no pair."""
    rewards = [r.reward for r in c.responses if r.reward is not None]
    if len(rewards) < max(2, len(c.responses)):
        return c
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    if rewards[best] == rewards[worst] or c.responses[best].text == c.responses[worst].text:
        return c
    if any({pair.chosen, pair.rejected} == {best, worst} for pair in c.pairs):
        return c
    return replace(c, pairs=(*c.pairs, Pair(best, worst, source=source, round=number)))


def scored_pairs(
    fresh: Sequence[Candidates], asked: Sequence[ChosenPair], labels: LabelBuyer, at: Round
) -> tuple[list[Candidates], int, Counter[str]]:
    """Pairs from two bought scores each: the higher reward is chosen."""
    unpaid = 0
    halves = [
        replace(fresh[a.prompt], responses=tuple(fresh[a.prompt].responses[n] for n in (a.i, a.j))) for a in asked
    ]
    labeled = list(fresh)
    judged: list[tuple[Response, Response, Verdict | None]] = []
    for a, half in zip(asked, labels.score(halves), strict=True):
        one, other = half.responses
        first, second = one.reward, other.reward
        if first is None or second is None:
            unpaid += 1
            continue
        judged.append((one, other, "tie" if first == second else "first" if first > second else "second"))
        c = with_rewards(labeled[a.prompt], {a.i: first, a.j: second})
        if first != second:
            chosen, rejected = (a.i, a.j) if first > second else (a.j, a.i)
            new = Pair(chosen, rejected, utility=a.utility, source=labels.labeler.name, round=at.number)
            c = replace(c, pairs=(*c.pairs, new))
        labeled[a.prompt] = c
    return labeled, unpaid, judgements.count(judged, shown=False)


def compared_pairs(
    fresh: Sequence[Candidates], asked: Sequence[ChosenPair], labels: LabelBuyer, at: Round
) -> tuple[list[Candidates], int, Counter[str]]:
    """Pairs from one bought comparison each; the order in which the two are shown is drawn anew for each."""
    turned = [seed_of(at.seed, "turn", at.number, fresh[a.prompt].prompt.id, a.i, a.j) % 2 == 1 for a in asked]
    shown = [(a.j, a.i) if turn else (a.i, a.j) for a, turn in zip(asked, turned, strict=True)]
    questions = [
        (fresh[a.prompt].prompt, *(fresh[a.prompt].responses[n] for n in order))
        for a, order in zip(asked, shown, strict=True)
    ]
    labeled = list(fresh)
    verdicts = labels.compare(questions)  # type: ignore[arg-type]
    for a, (first, second), verdict in zip(asked, shown, verdicts, strict=True):
        if verdict in ("first", "second"):
            chosen, rejected = (first, second) if verdict == "first" else (second, first)
            new = Pair(chosen, rejected, utility=a.utility, source=labels.labeler.name, round=at.number)
            labeled[a.prompt] = replace(labeled[a.prompt], pairs=(*labeled[a.prompt].pairs, new))
    judged = [
        (fresh[a.prompt].responses[one], fresh[a.prompt].responses[other], verdict)
        for a, (one, other), verdict in zip(asked, shown, verdicts, strict=True)
    ]
    return labeled, verdicts.count(None), judgements.count(judged, shown=True)


def weigh(c: Candidates, weighting: Weighting, number: int) -> Candidates:
    """The candidates with the weights of the pairs made in this round.

    Raises:
        ValueError: The weighting needs a reward gap or a given weight, and the pair has none.
    """
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


def rescore_pool(at: Round) -> Pool:
    """The pool with reference log-probs of a reference that has moved."""
    rows = list(range(len(at.pool)))
    mine = shard(rows, at.ranks)
    with at.phases("score", total=len(mine), unit="prompts") as tick:
        new = dict(
            at.ranks.gather(list(zip(mine, at.policy.score_reference(at.pool.candidates(mine), tick), strict=True)))
        )
    return at.pool.with_rows([new[i] for i in rows])
