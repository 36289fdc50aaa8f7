"""Does the policy rank labeled pairs as their labels do? Held-out pairs, after each round."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from choosy.reporting.metrics import log_at_once
from choosy.rounds.evaluate import evaluate_pairs


class HeldoutPairs(Callback):
    """Logs loss, accuracy and margin of `data.heldout_pairs`; no labeler is asked.

    Args:
        every: Evaluate after every so many rounds, and after the last one.
    """

    def __init__(self, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(
                f"callbacks.heldout_pairs.every={every} never evaluates; choose at least 1, "
                "or leave out data.heldout_pairs."
            )
        self.every = every

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run, pairs, number = trainer.datamodule.run, trainer.datamodule.labeled_pairs, trainer.current_epoch
        last = number + 1 == trainer.max_epochs
        if not pairs or not ((number + 1) % self.every == 0 or last):
            return
        with run.phases("evaluate", total=len(pairs), unit="pairs") as tick:
            metrics = evaluate_pairs(run.at(number), pairs)
            tick(len(pairs))
        run.record_evaluation(metrics)
        known = {f"heldout/{name}": value for name, value in metrics.items() if value is not None}
        log_at_once(pl_module, known, step=trainer.global_step - 1)
