"""Does the policy answer better than it did at the start? Held-out prompts, before and after each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback

from choosy.parallel.ranks import shard
from choosy.reporting.metrics import log_at_once
from choosy.rounds.context import Round
from choosy.rounds.evaluate import Evaluation, evaluate, read_start, start_file, write_start
from choosy.rounds.sample import sample_responses
from choosy.types import Candidates, Prompt


class WinRate(Callback):
    """Compares the policy's answers to held-out prompts with the start policy's, which are sampled once and kept.

    Logged per round: win rate (a tie is half a win), ties, mean reward, KL to the reference, response length.
    The judge is the one that `labels.evaluation` names; what it is asked here does not count against the label budget.
    With `labels.evaluation=nobody` KL and length are logged, and there is no win rate.

    Args:
        every: Evaluate after every so many rounds, and after the last one.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(
                f"callbacks.win_rate.every={every} never evaluates; choose at least 1, or ~callbacks.win_rate."
            )
        self.every = every
        self.start: dict[str, Candidates] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        run, prompts = trainer.datamodule.run, trainer.datamodule.heldout
        if not prompts:
            return
        if not run.ranks.on_rank_zero(lambda: run.is_there(start_file(run.rounds_folder))):
            at = run.at(-1)
            phase = run.phases("evaluate", total=len(prompts), unit="start answers")
            with pl_module.policy.states.as_start(), phase as tick:
                answers = self.answers(prompts, at, tick)
                judge = run.labels.evaluator
                scores = judge is not None and judge.scores
                scored = at.ranks.on_rank_zero(lambda: judge.score(answers, purpose="evaluate") if scores else answers)
            if at.ranks.rank == 0:
                write_start(run.rounds_folder, scored, run.about())
            at.ranks.gather([])  # nobody reads the file before it is there
        self.start = {c.prompt.id: c for c in read_start(run.rounds_folder, prompts)}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run, prompts, number = trainer.datamodule.run, trainer.datamodule.heldout, trainer.current_epoch
        last = number + 1 == trainer.max_epochs
        if not prompts or not ((number + 1) % self.every == 0 or last):
            return
        at = run.at(number)
        with run.phases("evaluate", total=len(prompts), unit="answers") as tick:
            answers = self.answers(prompts, at, tick)
            result: Evaluation = at.ranks.on_rank_zero(lambda: evaluate(answers, self.start, run.labels.evaluator))
        run.record_evaluation(result)
        metrics = {f"heldout/{k}": v for k, v in result.metrics.items() if v is not None}
        log_at_once(pl_module, metrics, step=trainer.global_step - 1)

    def answers(self, prompts: Sequence[Prompt], at: Round, tick: Callable[[int], None]) -> list[Candidates]:
        """One answer to each prompt, with its log-probs under policy and reference, on every rank."""
        mine = sample_responses(
            at, shard(prompts, at.ranks), n=1, purpose="evaluate", done=lambda some: tick(len(some))
        )
        mine = at.policy.score_reference(mine)
        answers = {c.prompt.id: c for c in at.ranks.gather(mine)}
        return [answers[p.id] for p in prompts]
