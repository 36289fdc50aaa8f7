"""Responses to the chosen prompts, sampled from the present policy so that a crash loses none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from choosy.models.instructions import Instructions
from choosy.parallel.ranks import fair_share, shard
from choosy.resume.partial_rounds import PartWriter, read_begun, unlabeled
from choosy.rounds.context import ChosenPrompt, OnSampled, Round, Sample
from choosy.rounds.label_ahead import LabelAhead
from choosy.sampling.settings import SamplingSettings
from choosy.terminal import counted
from choosy.types import Candidates, Prompt, Response, seed_of

CHARACTERS = 4  # of a token, about
MANY = 0.5  # share of responses that were cut, above which the run says so


@dataclass(frozen=True)
class FreshResponses:
    """Samples so many responses to each chosen prompt, under instructions if there are some (see `Sample`)."""

    responses: int
    instructions: Instructions | None = None
    given: Mapping[str, Candidates] = field(default_factory=dict, init=False)

    def __call__(
        self, at: Round, chosen: Sequence[ChosenPrompt], *, begun: Mapping[str, Candidates], done: OnSampled
    ) -> list[Candidates]:
        rest = [one for one in chosen if one[0].id not in begun]
        there = [one for one in chosen if one[0].id in begun]  # cost nothing here, and as much as others later
        mine = fair_share(rest, expected_tokens(at, [prompt for prompt, _ in rest]), at.ranks) + shard(there, at.ranks)
        how: dict[str, Any] = {"n": self.responses, "instructions": self.instructions}
        sampled = sample_responses(at, [prompt for prompt, _ in mine], **how, begun=begun, done=done)
        return [replace(c, utility=utility) for c, (_, utility) in zip(sampled, mine, strict=True)]


def expected_tokens(at: Round, prompts: Sequence[Prompt]) -> list[float]:
    """How many tokens each prompt will take, the responses as long as its last ones; the same on every rank."""
    known = at.pool.response_tokens([prompt.id for prompt in prompts])
    like_others = known[~np.isnan(known)].mean() if not np.isnan(known).all() else 0.0
    responses = np.where(np.isnan(known), like_others, known)
    return [len(p.text) / CHARACTERS + tokens for p, tokens in zip(prompts, responses.tolist(), strict=True)]


@dataclass(frozen=True)
class Resumable:
    """Samples what an interrupted run has not sampled, and writes it to disk during the sampling.

    Attributes:
        sample: Samples the rest.
        prompts: All prompts of the run.
        folder: Folder of the rounds.
        ahead: Buys labels of what is on the disk while the rest is sampled; None = labels are bought afterwards.
    """

    sample: Sample
    prompts: Sequence[Prompt]
    folder: Path
    ahead: LabelAhead | None = None

    def __call__(self, at: Round, chosen: Sequence[ChosenPrompt]) -> list[Candidates]:
        """Return the candidates of this rank's share of the chosen prompts."""
        n = self.sample.responses
        begun, seconds = read_begun(self.folder, at.number, self.prompts, responses=n)
        at.ranks.gather([])  # no rank writes before all have read
        at.phases.resume(seconds)
        parts = PartWriter(self.folder, at.number, at.ranks, seconds=lambda: at.phases.seconds)
        if self.ahead is not None and at.ranks.rank == 0:
            feed = unlabeled(self.folder, at.number, [prompt for prompt, _ in chosen], responses=n)
            self.ahead.start(feed, prompts=len(chosen), responses=n)
        ticked, unit = 0, "prompts with their responses" if at.given else "prompts"
        with at.phases("sample", total=len(chosen), unit=unit) as tick:

            def keep(some: Sequence[Candidates]) -> None:
                nonlocal ticked
                ticked += len(some)
                tick(len(some) * at.ranks.size)
                parts.add(some)
                if self.ahead is not None and at.ranks.size == 1:  # several ranks learn of an error before they label
                    self.ahead.check()

            mine = self.sample(at, chosen, begun=begun, done=keep)
            parts.write()
            tick((len(mine) - ticked) * at.ranks.size)
        return mine


def seeds_of(at: Round, prompts: Sequence[Prompt], n: int, purpose: str = "train") -> list[list[int]]:
    """The seed of each of the N responses to each prompt: a hash of (run, purpose, round, prompt, sample)."""
    return [[seed_of(at.seed, purpose, at.number, p.id, sample) for sample in range(n)] for p in prompts]


def sample_responses(
    at: Round,
    prompts: Sequence[Prompt],
    *,
    n: int,
    purpose: str = "train",
    settings: SamplingSettings | None = None,
    instructions: Instructions | None = None,
    begun: Mapping[str, Candidates] | None = None,
    done: OnSampled = lambda some: None,
) -> list[Candidates]:
    """Sample N responses to each prompt.

    Args:
        at: The context of the round; its counts are added to.
        prompts: P prompts, of which P candidates are returned.
        n: Responses to each prompt.
        purpose: Part of the seed.
        settings: How they are sampled; None = the engine's own settings.
        instructions: What precedes the prompts while they are answered; the candidates have the prompts without it, and
            a response no log-prob, which would be that of another prompt.
        begun: Candidates of this round and purpose that are sampled already; they are not sampled again.
        done: Called during the sampling with candidates that are ready.
    """
    found = {p.id: begun[p.id] for p in prompts if p.id in begun} if begun else {}
    rest = [p for p in prompts if p.id not in found]
    ids = [at.policy.tokens.encode_prompt(prompt) for prompt in rest]
    seeds = seeds_of(at, rest, n, purpose)
    asked = [ids] if instructions is None else instructions.encode(at.policy.tokens, rest)
    responses = [[Response("")] * n for _ in rest]

    def placed(first: int, ended: Mapping[int, list[Response]]) -> list[Candidates]:
        for p, of_prompt in ended.items():
            sampled = of_prompt if instructions is None else [replace(r, logp=math.nan) for r in of_prompt]
            responses[p][first :: len(asked)] = sampled
        return [Candidates(rest[p], tuple(responses[p]), ids[p], at.number) for p in ended]

    def report(first: int, ended: Mapping[int, list[Response]]) -> None:
        some = placed(first, ended)
        if first + 1 == len(asked):  # before, responses under the later ones are missing
            done(some)

    began, *before = time.perf_counter(), at.sampler.start_seconds, at.sampler.sync_seconds
    for first, under_instruction in enumerate(asked):
        shares = [of_prompt[first :: len(asked)] for of_prompt in seeds]
        if any(at.ranks.gather([bool(rest)])):  # a sharded policy samples on all ranks or on none
            whole = at.sampler.sample(
                at.policy, under_instruction, shares, settings=settings, done=partial(report, first)
            )
            found |= {c.prompt.id: c for c in placed(first, dict(enumerate(whole)))}
    seconds, now = time.perf_counter() - began, (at.sampler.start_seconds, at.sampler.sync_seconds)
    started, synced = (of_all - earlier for of_all, earlier in zip(now, before, strict=True))
    fresh = sum(len(r.ids) for p in rest for r in found[p.id].responses)
    if purpose == "train":
        say_origin(at, fresh, seconds - started - synced, started=started, synced=synced)
    every = [r for c in found.values() for r in c.responses]
    at.counts.update(
        tokens_generated=sum(len(r.ids) for r in every),
        prompts_sampled=len(prompts),
        responses_sampled=len(every),
        responses_cut=sum(not r.finished for r in every),
        responses_empty=sum(not r.text for r in every),
        sync_milliseconds=round(1000 * synced) if at.ranks.rank == 0 else 0,
    )
    return [found[p.id] for p in prompts]


def say_origin(at: Round, tokens: int, seconds: float, *, started: float, synced: float) -> None:
    """Say where the tokens of all ranks came from and at what rate; every rank must call this.

    Of one process with nothing to wait for the phase's own line says as much.

    Args:
        at: The context of the round.
        tokens: Those that this rank has sampled.
        seconds: How long that took.
        started: Seconds that it waited for its engine before.
        synced: Seconds that its engine took the policy's weights before.
    """
    of_ranks = at.ranks.gather([(tokens, seconds)])
    tokens, seconds = sum(t for t, _ in of_ranks), max(s for _, s in of_ranks)
    waits = {"to start it": started, "for the policy's weights": synced}
    before = " and ".join(f"{waited:.2f} s {why}" for why, waited in waits.items() if waited)
    if not tokens or at.ranks.rank > 0 or (at.ranks.size == 1 and not before):
        return
    where = f" on {at.ranks.size} processes" if at.ranks.size > 1 else ""
    rate = f"in {seconds:.1f} s, {tokens / seconds:,.0f} a second{f', after {before}' if before else ''}"
    at.phases.say(f"{counted(tokens, 'tokens')} from {at.sampler.origin}{where} {rate}")


def many_cut(share: float, max_new_tokens: int) -> str:
    """Say what to do where more than half of a round's responses were cut; empty where fewer were."""
    if share <= MANY:
        return ""
    return (
        f"{share:.0%} of the responses were cut at sampler.max_new_tokens={max_new_tokens} before they ended: raise "
        "it, or type labels.missing_eos_penalty=1.0, which teaches the policy to end."
    )
