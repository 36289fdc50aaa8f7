"""Ends a run that a search has no further use for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from choosy.methods.stopping import falls_short
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import quality_of


class LeastQuality(EarlyStopping):
    """Ends a run after a round whose held-out quality (reward, else win rate, else accuracy) is too low.

    The run is then finished, as one that Lightning's early stopping has ended.

    Args:
        after: The least quality after the first evaluation, the second, and so on; none = the run is not stopped.
    """

    def __init__(self, *, after: Sequence[float] = ()) -> None:
        super().__init__(monitor="quality")
        self.after = tuple(after)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Play no further round of a resumed run that was stopped, and go on with one that would not be any more."""
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        if trainer.current_epoch:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(trainer)  # the round's file is written: Lightning calls this after the module's own

    def look(self, trainer: Any) -> None:
        """Stop the run if its latest evaluation falls short."""
        if not self.after:
            return
        run = trainer.datamodule.run
        quality = run.ranks.on_rank_zero(lambda: quality_of(read_run(run.folder))[1][1:])
        if not falls_short(quality, self.after):
            return
        trainer.should_stop, self.stopping_reason = True, EarlyStoppingReason.DIVERGENCE_THRESHOLD
        least = self.after[len(quality) - 1]
        run.phases.say(
            f"The run ends: its quality {quality[-1]:.3g} is below {least:.3g}, the least that is wanted now."
        )
