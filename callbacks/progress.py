"""Shows a run on the terminal, or in the log, while it happens."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from choosy.reporting.phases import Display, make_display
from choosy.rounds.run import Run


class Progress(Callback):
    """Gives the run a display and times its training; the run itself times everything else that a round does."""

    def __init__(self) -> None:
        self._display: Display | None = None
        self._train = ExitStack()  # entered and left in different hooks
        self._tick: Callable[[int], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._display = run_of(trainer).phases.display = make_display()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = run_of(trainer)
        self._tick = self._train.enter_context(run.phases("train", total=run.pairs_this_round, unit="pairs"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._tick is None:  # a run resumed in the middle of an epoch gets no on_train_epoch_start
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Sized, batch_idx: int
    ) -> None:
        assert self._tick is not None
        self._tick(len(batch) * trainer.world_size)  # the other ranks train about as many at the same time

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _leave(self) -> None:
        self._tick = None
        self._train.close()

    def _close(self) -> None:
        self._leave()
        if self._display is not None:
            self._display.close()


def run_of(trainer: Any) -> Run:
    """Return the run that the data module plays."""
    run: Run = trainer.datamodule.run
    return run
