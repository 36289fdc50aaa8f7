"""The next round's responses, sampled in another process while this round trains."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from choosy.parallel.ranks import fair_share
from choosy.resume.partial_rounds import PartWriter, forget, read_begun
from choosy.rounds.choose import choose_prompts
from choosy.rounds.context import ChosenPrompt, PromptSelector, Round
from choosy.rounds.sample import expected_tokens, seeds_of
from choosy.sampling.elsewhere import Elsewhere, Weights, copied_weights, sendable
from choosy.sampling.protocol import Request, Sampler
from choosy.sampling.spread import in_thread
from choosy.terminal import counted, logger
from choosy.types import Candidates, Prompt, Response

log = logger(__name__)

FAILED = "The next round's prompts could not be sampled; this round is trained and saved, and the run then stops"


@dataclass(frozen=True)
class Plan:
    """What a round is sampled from, as it stood when the round before began to train: a checkpoint keeps it.

    Attributes:
        round: The number of the round.
        chosen: Its prompts' ids and utilities.
        weights: The weights that sample their responses.
        counts: What the choice has cost on all ranks, which the round counts.
    """

    round: int
    chosen: Sequence[tuple[str, float]]
    weights: Weights
    counts: Mapping[str, int] = field(default_factory=dict)  # a checkpoint of an earlier version has none

    def chosen_of(self, prompts: Sequence[Prompt]) -> list[ChosenPrompt]:
        """The chosen ones among the prompts that the round may sample."""
        by_id = {p.id: p for p in prompts}
        if gone := [name for name, _ in self.chosen if name not in by_id]:
            raise ValueError(
                f"Prompt {gone[0]} was chosen for round {self.round + 1} while the round before it trained, and that "
                "round may not sample it any more: data.prompts_per_round is another. Type the old one to resume."
            )
        return [ChosenPrompt(by_id[name], utility) for name, utility in self.chosen]


@dataclass(frozen=True)
class Sampled:
    """What this rank has sampled ahead: so many tokens, in so many seconds, some for weights, and where."""

    tokens: int = 0
    seconds: float = 0.0
    sync_seconds: float = 0.0
    origin: str = ""


class SampleAhead:
    """Samples a round's responses while the round before it trains, into the parts that a resumed round reads.

    Without `sampler.ahead` it plans nothing, and the sampler is in this process.

    Args:
        sampler: The run's sampling engine.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._engine = Elsewhere.of(sampler) if sampler.ahead else None
        self.sampler = self._engine or sampler
        self._plan: Plan | None = None
        self._sampling: Future[Sampled] | None = None

    def plans(self, number: int) -> bool:
        """Whether a round's prompts are chosen."""
        return self._plan is not None and self._plan.round == number

    def begin(
        self,
        at: Round,
        prompts: Sequence[Prompt],
        selector: PromptSelector | None,
        *,
        responses: int,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Choose a round's prompts, by what is known now, and begin to sample from the present weights.

        A plan that a checkpoint has brought is continued instead. Every rank must call this; rank 0 is asked whether
        the round is wanted at all.
        """
        if self._engine is None:
            return
        if not self.plans(at.number):
            if not at.ranks.on_rank_zero(is_wanted):
                return
            self._sampling = None
            chosen = [(one.prompt.id, one.utility) for one in choose_prompts(at, prompts, selector)]
            counts = sum(at.ranks.gather([at.counts]), Counter[str]())
            self._plan = Plan(at.number, chosen, copied_weights(at.policy), counts)
        elif getattr(selector, "learns", False):
            at.learned.head(at)  # as the choice did before the run was interrupted: what it knew is reported
        if self._sampling is None:
            self._sampling = self._begun(at, prompts, responses)

    def _begun(self, at: Round, prompts: Sequence[Prompt], n: int) -> Future[Sampled]:
        """Begin to sample this rank's share of what is not on the disk."""
        assert self._plan is not None
        assert self._engine is not None
        plan, engine = self._plan, self._engine
        chosen = plan.chosen_of(prompts)
        begun, _ = read_begun(at.folder, at.number, prompts, responses=n)
        at.ranks.gather([])  # no rank writes before all have read
        rest = [one.prompt for one in chosen if one.prompt.id not in begun]
        mine = fair_share(rest, expected_tokens(at, rest), at.ranks)
        ids = [at.policy.tokens.encode_prompt(prompt) for prompt in mine]
        request = Request(at.policy, ids, seeds_of(at, mine, n), engine)
        parts = PartWriter(at.folder, at.number, at.ranks, seconds=dict)
        engine.waited_seconds = 0.0
        if mine:
            engine.start(at.policy)

        def keep(ended: Mapping[int, list[Response]]) -> None:
            parts.add([Candidates(mine[p], tuple(of_prompt), ids[p], at.number) for p, of_prompt in ended.items()])

        def sample() -> Sampled:
            if not mine:
                return Sampled()
            began = time.perf_counter()
            try:
                answer = engine.answer_from(plan.weights, request, keep)
            except Exception as error:
                if not isinstance(error, CancelledError):  # the run has ended
                    log.warning("%s: %s", FAILED, error)
                raise
            finally:
                parts.write()
            tokens = sum(len(r.ids) for of_prompt in answer.responses for r in of_prompt)
            return Sampled(tokens, time.perf_counter() - began, answer.sync_seconds, answer.origin)

        return in_thread(sample)

    def finish(self, at: Round, prompts: Sequence[Prompt], *, responses: int) -> list[ChosenPrompt] | None:
        """Wait until a round's responses are on the disk, and return its prompts; None if they were not chosen.

        Every rank must call this; an error of one is raised on all.
        """
        if not self.plans(at.number):
            self._plan = self._sampling = None
            return None
        assert self._plan is not None
        assert self._engine is not None
        if self._sampling is None:
            self._sampling = self._begun(at, prompts, responses)
        began = time.perf_counter()
        with at.phases("sample"):
            error = self._sampling.exception()
        if errors := at.ranks.gather([] if error is None else [sendable(error)]):
            raise errors[0] if error is None else error
        mine = self._sampling.result()
        every = at.ranks.gather([(mine, self._engine.waited_seconds + time.perf_counter() - began)])
        tokens, seconds = sum(each.tokens for each, _ in every), max(each.seconds for each, _ in every)
        waited = max(waited for _, waited in every)  # for the rest now, and before by an evaluation
        if at.ranks.rank == 0:
            at.counts.update(self._plan.counts)
        if tokens and at.ranks.rank == 0:
            hidden = max(0.0, seconds - waited)
            at.counts["hidden_milliseconds"] += round(1000 * hidden)
            at.counts["sync_milliseconds"] += round(1000 * mine.sync_seconds)
            origin = next(each.origin for each, _ in every if each.tokens)
            at.phases.say(
                f"{counted(len(self._plan.chosen), 'prompts')} sampled ahead, while the round before trained: "
                f"{counted(tokens, 'tokens')} from {origin} in {seconds:.1f} s, of which training hid "
                f"{hidden:.1f} s"
            )
        chosen = self._plan.chosen_of(prompts)
        self._plan = self._sampling = None
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the plan, if there is one."""
        if self._plan is None:
            return {}
        return {
            "round": self._plan.round,
            "chosen": list(self._plan.chosen),
            "weights": dict(self._plan.weights),
            "counts": dict(self._plan.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a checkpoint's plan; another engine was perhaps typed without it."""
        if state and self._engine is None:
            raise ValueError(
                f"The prompts of round {state['round'] + 1} were sampled ahead, as the run began with sampler.ahead=1; "
                "type that again."
            )
        self._plan = Plan(**state) if state else None

    def close(self) -> None:
        """End the process that samples; what it has sent is kept."""
        if self._engine is not None:
            self._engine.close()
        if self._sampling is not None:
            wait([self._sampling])

    def forget(self, folder: Path) -> None:
        """Delete what was sampled of a round that a run which is over does not play; each rank must call this."""
        if self._plan is not None:
            forget(folder, self._plan.round)
