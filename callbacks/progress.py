"""Connects a run's training to its display on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback

from choosy.console import Terminal
from choosy.methods.loss_inputs import form_of
from choosy.reporting.report import shown_settings
from choosy.rounds.run import Run

UNITS = {"pair": "pairs", "list": "lists", "single": "responses"}


class Progress(Callback):
    """Gives the run a display and measures its training; the run measures everything else that a round does."""

    def __init__(self) -> None:
        self._training = ExitStack()  # entered and left in different hooks
        self._tick: Callable[[int], None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            trainer.datamodule.run.phases.show_on(Terminal(stderr=True))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Say what is played before anything is sampled; the optimiser is not made yet."""
        if trainer.is_global_zero:
            run = trainer.datamodule.run
            policy = pl_module.policy
            trained = "all weights" if policy.lora is None else "LoRA"
            run.phases.say(parts_in_a_line(run, f"{policy.source.name} ({trained})", pl_module.loss.beta))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        run = trainer.datamodule.run
        total, passes = run.pairs_this_round, run.training.epochs_per_round
        unit = UNITS[form_of(run.loss.needs)] + (f" ({total // passes} x {passes})" if passes > 1 else "")
        self._tick = self._training.enter_context(run.phases("train", total=total, unit=unit))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._tick is None:  # a run resumed in the middle of an epoch gets no on_train_epoch_start
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Sized, batch_idx: int) -> None:
        assert self._tick is not None
        self._tick(len(batch) * trainer.world_size)  # the other ranks train about as many at the same time

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._tick = None
        self._training.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_train_epoch_end(trainer, pl_module)


def parts_in_a_line(run: Run, model: str, beta: float) -> str:
    """Say which model is tuned, who judges, what is selected, and what is trained on, by the names of the menu."""
    labels, judge, chosen = run.labels, run.labels.evaluator, shown_settings(run.folder)
    labeler = f"labeler={chosen['labeler']}" if "labeler" in chosen else labels.labeler.name
    does = "gives the labels of" if labels.terms.given_only else "scores the" if labels.scores else "compares the"
    names = [f"{name}={chosen[name]}" for name in ("selector", "weighting", "loss", "lr") if name in chosen]
    return "; ".join(
        [
            f"model {model}",
            f"{labeler} {does} responses",
            *([f"{judge.labeler.name} judges held-out ones"] if judge is not None and judge is not labels else []),
            f"{' '.join(names)}, beta {beta:g}",
        ]
    )
