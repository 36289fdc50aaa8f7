"""Does the policy answer better than it did at the start? Held-out prompts, before and after each round."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from choosy.reporting.metrics import log_at_once
from choosy.rounds.evaluate import answer, evaluate, read_start, start_file, write_start
from choosy.sampling.settings import SamplingSettings
from choosy.types import Candidates


class WinRate(Callback):
    """Compares the policy's answers to held-out prompts with the start policy's, which are sampled once for the run.

    Logged per round, with 95 % intervals: win rate (a tie is half a win) and mean reward; further ties, length, and the
    KL divergence from the start policy with its standard error (a `log_ratio` if answers are sampled otherwise than at
    temperature 1 from all tokens). The judge is the one that `labels.evaluation` names; its labels do not count against
    the label budget. With `labels.evaluation=nobody` there is no win rate.

    Args:
        every: Evaluate after every so many rounds, and after the last one.
        sampler: How answers are sampled.
    """

    def __init__(self, sampler: SamplingSettings, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(
                f"callbacks.win_rate.every={every} never evaluates; choose at least 1, or ~callbacks.win_rate."
            )
        self.every = every
        self.sampler = sampler
        self.start: dict[str, Candidates] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run, prompts = trainer.datamodule.run, trainer.datamodule.heldout_prompts
        if not prompts:
            return
        if not run.ranks.on_rank_zero(lambda: run.is_there(start_file(run.rounds_folder))):
            at = run.at(-1)
            phase = run.phases("evaluate", total=len(prompts), unit="start answers")
            with pl_module.policy.states.as_start(), phase as tick:
                answers = answer(at, prompts, self.sampler, tick)
                judge = run.labels.evaluator
                scores = judge is not None and judge.scores
                scored = at.ranks.on_rank_zero(lambda: judge.score(answers, purpose="evaluate") if scores else answers)
            if at.ranks.rank == 0:
                write_start(run.rounds_folder, scored, run.about())
            at.ranks.gather([])  # nobody reads the file before it is there
        self.start = {c.prompt.id: c for c in read_start(run.rounds_folder, prompts)}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run, prompts, number = trainer.datamodule.run, trainer.datamodule.heldout_prompts, trainer.current_epoch
        last = number + 1 == trainer.max_epochs
        if not prompts or not ((number + 1) % self.every == 0 or last):
            return
        at = run.at(number)
        samples_policy = self.sampler.is_policy
        with run.phases("evaluate", total=len(prompts), unit="answers") as tick:
            answers = answer(at, prompts, self.sampler, tick)
            judge = run.labels.evaluator
            result = at.ranks.on_rank_zero(lambda: evaluate(answers, self.start, judge, samples_policy=samples_policy))
        run.record_evaluation(result.metrics, result.rows)
        metrics = {f"heldout/{name}": value for name, value in result.metrics.items() if value is not None}
        log_at_once(pl_module, metrics, step=trainer.global_step - 1)
