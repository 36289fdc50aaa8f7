"""Shows a run on the terminal, or in the log, while it happens."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import ExitStack
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from choosy.reporting.phases import Display, Phases, make_display


class Timed(Protocol):
    """A data module that measures its rounds."""

    phases: Phases
    pairs_this_round: int


class Progress(Callback):
    """Gives the run a display and times its training; the data module times all else that a round does."""

    def __init__(self) -> None:
        self._display: Display | None = None
        self._train = ExitStack()  # entered and left in different hooks
        self._tick: Callable[[int], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            self._display = _timed(trainer).phases.display = make_display()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        timed = _timed(trainer)
        self._tick = self._train.enter_context(timed.phases("train", total=timed.pairs_this_round, unit="pairs"))

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


def _timed(trainer: Trainer) -> Timed:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(getattr(data, "phases", None), Phases):
        raise ValueError(
            "Progress wants a data module with `phases` (choosy.reporting.phases.Phases); "
            f"found {type(data).__name__}. Use one of data_modules, or do without: ~callbacks.progress"
        )
    return cast(Timed, data)
