"""Writes checkpoints after every round, with more of them between."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from choosy.data.table_files import files_of_rounds
from choosy.files import replacing
from choosy.resume.checkpoint_files import checkpoints_folder, last_checkpoint


class Checkpoints(Checkpoint):
    """Writes `checkpoints/last.ckpt`, and keeps those of the last rounds as `round_NNN.ckpt`.

    A killed run repeats at most `every_n_steps` steps of its training.

    Args:
        every_n_steps: Steps between two checkpoints in a round; 0 = only after rounds.
        keep: Number of rounds whose checkpoints stay; 0 = only last.ckpt, -1 = all.
    """

    def __init__(self, run_dir: str, *, every_n_steps: int = 100, keep: int = 1) -> None:
        for name, value, least in (("every_n_steps", every_n_steps, 0), ("keep", keep, -1)):
            if value < least:
                raise ValueError(f"callbacks.checkpoint.{name}={value} means nothing; choose at least {least}.")
        self.run_dir = Path(run_dir)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.patience: list[tuple[EarlyStopping, int]] = []  # as configured

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # behind callbacks that keep the best round, so that last.ckpt knows what they have seen of its round
        trainer.callbacks = sorted(trainer.callbacks, key=lambda one: one is self)
        self.patience = [(one, one.patience) for one in trainer.callbacks if isinstance(one, EarlyStopping)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Play no round of a resumed run that early stopping had ended: Lightning's checkpoints do not hold its end."""
        exhausted, going_on = EarlyStoppingReason.PATIENCE_EXHAUSTED, EarlyStoppingReason.NOT_STOPPED
        for one, patience in self.patience:
            one.patience = patience  # a checkpoint has brought back that of an earlier command
            if one.wait_count >= max(patience, 1):
                one.stopping_reason = exhausted
            elif one.stopping_reason == exhausted:
                one.stopping_reason = going_on
            trainer.should_stop |= one.stopping_reason != going_on

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # after a round's last step comes its evaluation, and after that the round's checkpoint
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(last_checkpoint(self.run_dir))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        last = last_checkpoint(self.run_dir)
        if not self.keep:
            trainer.save_checkpoint(last)
            return
        of_round = checkpoints_folder(self.run_dir) / f"round_{trainer.current_epoch:03d}.ckpt"
        trainer.save_checkpoint(of_round)
        if trainer.is_global_zero:
            point(last, of_round)
            for old in files_of_rounds(of_round.parent, "ckpt")[: -self.keep if self.keep > 0 else 0]:
                old.unlink()


def point(name: Path, file: Path) -> None:
    """Give a file a second name, without a second copy where the file system has hard links."""
    with replacing(name) as unfinished:
        try:
            os.link(file, unfinished)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, unfinished)
