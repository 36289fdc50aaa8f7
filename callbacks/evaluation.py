"""Evaluates the policy on held-out data after rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from choosy.data.table_files import is_there
from choosy.reporting.metrics import log_at_once
from choosy.reporting.summary import OF_JUDGE, OF_PAIRS
from choosy.rounds.context import Round
from choosy.rounds.evaluate import (
    Evaluation,
    answer,
    evaluate,
    evaluate_pairs,
    read_start,
    scored,
    start_file,
    write_start,
)
from choosy.sampling.settings import SamplingSettings
from choosy.types import Candidates


class Evaluator(Callback):
    """Logs under `heldout/` what an evaluation finds, and gives it to the round's table.

    Args:
        every: Evaluate after every so many rounds, and after the last one.
    """

    name = ""  # in the group of callbacks

    def __init__(self, *, every: int = 1) -> None:
        if every < 1:
            what = f"callbacks.{self.name}"
            raise ValueError(f"{what}.every={every} never evaluates; choose at least 1, or ~{what}.")
        self.every = every

    @abstractmethod
    def evaluate(self, data: Any, at: Round) -> Evaluation | None:
        """Evaluate the policy; None if there is no held-out data."""

    @abstractmethod
    def measures(self, data: Any) -> Sequence[str]:
        """Return the names of what the evaluation of this data measures; none if there is no held-out data."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        data, number = trainer.datamodule, trainer.current_epoch
        if (number + 1) % self.every and number + 1 != trainer.max_epochs:
            return
        if found := self.evaluate(data, data.run.at(number)):
            data.run.record.evaluated(found.metrics, found.rows)
            known = {f"heldout/{name}": value for name, value in found.metrics.items() if value is not None}
            log_at_once(pl_module, known, step=trainer.global_step - 1)


class HeldoutPairs(Evaluator):
    """Logs loss, accuracy and margin of `data.heldout_pairs`: does the policy rank them as their labels do?

    Single responses, good or bad, are ranked against each other.
    """

    name = "heldout_pairs"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure the start policy, unless the run has done so before it was interrupted."""
        run = trainer.datamodule.run
        if not run.record.start_pairs and trainer.datamodule.labeled_pairs:
            with pl_module.policy.states.as_start():
                found = self.evaluate(trainer.datamodule, run.at(-1))
            run.record.start_pairs = found.metrics if found else {}

    def evaluate(self, data: Any, at: Round) -> Evaluation | None:
        if not (pairs := data.labeled_pairs):
            return None
        with at.phases("evaluate", total=len(pairs), unit="pairs") as tick:
            metrics = evaluate_pairs(at, pairs)
            tick(len(pairs))
        return Evaluation(metrics)

    def measures(self, data: Any) -> Sequence[str]:
        return (*OF_PAIRS, "pairs") if data.labeled_pairs else ()


class WinRate(Evaluator):
    """Compares the policy's answers to held-out prompts with the start policy's, which are sampled once for the run.

    Logged per round, with 95 % intervals: win rate (a tie is half a win), mean reward and length; further ties, and the
    KL divergence from the start policy with its standard error (a `log_ratio` if answers are sampled otherwise than at
    temperature 1 from all tokens). The judge is the one that `labels.evaluation` names; its labels do not count against
    the label budget. With `labels.evaluation=none` there is no win rate.

    Args:
        sampler: How answers are sampled.
    """

    name = "win_rate"

    def __init__(self, sampler: SamplingSettings, *, every: int = 1) -> None:
        super().__init__(every=every)
        self.sampler = sampler
        self.start: dict[str, Candidates] = {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse answers that are too long, and say what the evaluation will cost, before the first label is bought."""
        run, rounds = trainer.datamodule.run, trainer.max_epochs
        looks = sum((number + 1) % self.every == 0 or number + 1 == rounds for number in range(rounds))
        start = run.labels.evaluator is not None and run.labels.evaluator.scores  # the start's answers are scored too
        prompts = trainer.datamodule.heldout_prompts
        tokens = self.sampler.max_new_tokens
        pl_module.policy.tokens.refuse_long_answers(prompts, tokens, option="evaluation.sampler.max_new_tokens")
        run.sampler.expect(self.sampler)
        if cost := run.labels.plan_evaluation(prompts, looks + start, response_tokens=tokens):
            run.phases.say(cost)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run, prompts = trainer.datamodule.run, trainer.datamodule.heldout_prompts
        if not prompts:
            return
        if not run.ranks.on_rank_zero(lambda: is_there(start_file(run.rounds_folder), run.phases.say)):
            at = run.at(-1)
            phase = run.phases("evaluate", total=len(prompts), unit="start answers")
            with pl_module.policy.states.as_start(), phase as tick:
                answers = answer(at, prompts, self.sampler, tick)
                judge = run.labels.evaluator
                scores = judge is not None and judge.scores
                judged = at.ranks.on_rank_zero(lambda: scored(answers, judge) if scores else answers)
            if at.ranks.rank == 0:
                write_start(run.rounds_folder, judged, run.about())
            at.ranks.gather([])  # no rank reads the file before it is there
        self.start = {c.prompt.id: c for c in read_start(run.rounds_folder, prompts)}

    def evaluate(self, data: Any, at: Round) -> Evaluation | None:
        if not (prompts := data.heldout_prompts):
            return None
        judge, kl = data.run.labels.evaluator, self.sampler.is_policy
        with at.phases("evaluate", total=len(prompts), unit="answers") as tick:
            answers = answer(at, prompts, self.sampler, tick)
            return at.ranks.on_rank_zero(lambda: evaluate(answers, self.start, judge, samples_policy=kl))

    def measures(self, data: Any) -> Sequence[str]:
        if not data.heldout_prompts:
            return ()
        judge, kl = data.run.labels.evaluator, "kl" if self.sampler.is_policy else "log_ratio"
        of_judge = [] if judge is None else [n for n in OF_JUDGE if judge.scores or not n.startswith("reward")]
        return (*of_judge, kl, "length", f"{kl}_error")
