"""Responses to the chosen prompts, sampled from the present policy so that a crash loses none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from choosy.models.instructions import Instructions
from choosy.parallel.ranks import shard
from choosy.resume.partial_rounds import PartWriter, read_begun, unlabeled
from choosy.rounds.context import ChosenPrompt, OnSampled, Round, Sample
from choosy.rounds.label_ahead import LabelAhead
from choosy.sampling.settings import SamplingSettings
from choosy.types import Candidates, Prompt, Response, seed_of


@dataclass(frozen=True)
class FreshResponses:
    """Samples so many responses to each chosen prompt, under instructions if there are some (see `Sample`)."""

    responses: int
    instructions: Instructions | None = None
    given: Mapping[str, Candidates] = field(default_factory=dict, init=False)

    def __call__(
        self, at: Round, chosen: Sequence[ChosenPrompt], *, begun: Mapping[str, Candidates], done: OnSampled
    ) -> list[Candidates]:
        mine = shard(chosen, at.ranks)
        how: dict[str, Any] = {"n": self.responses, "instructions": self.instructions}
        sampled = sample_responses(at, [prompt for prompt, _ in mine], **how, begun=begun, done=done)
        return [replace(c, utility=utility) for c, (_, utility) in zip(sampled, mine, strict=True)]


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
    """Sample N responses to each prompt; the seed of a response is a hash of (run, purpose, round, prompt, sample).

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
    seeds = [[seed_of(at.seed, purpose, at.number, p.id, sample) for sample in range(n)] for p in rest]
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

    synced = at.sampler.sync_seconds
    for first, under_instruction in enumerate(asked):
        shares = [of_prompt[first :: len(asked)] for of_prompt in seeds]
        if any(at.ranks.gather([bool(rest)])):  # a sharded policy samples on all ranks or on none
            whole = at.sampler.sample(
                at.policy, under_instruction, shares, settings=settings, done=partial(report, first)
            )
            found |= {c.prompt.id: c for c in placed(first, dict(enumerate(whole)))}
    synced = at.sampler.sync_seconds - synced
    if synced and at.ranks.rank == 0:
        at.phases.say(f"The policy's weights went into the sampling engine in {synced:.2f} s.")
    every = [r for c in found.values() for r in c.responses]
    at.counts.update(
        tokens_generated=sum(len(r.ids) for r in every),
        prompts_sampled=len(prompts),
        responses_sampled=len(every),
        responses_cut=sum(not r.finished for r in every),
        responses_empty=sum(not r.text for r in every),
        sync_milliseconds=round(1000 * synced),
    )
    return [found[p.id] for p in prompts]
