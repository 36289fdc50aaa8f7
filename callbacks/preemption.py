"""Ends a run in good order when a cluster takes its machine back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

from choosy.parallel.ranks import largest
from choosy.resume.checkpoint_files import last_checkpoint
from choosy.resume.slurm import leave

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Preemption(Callback):
    """Writes `last.ckpt` after the running step and ends the process, on SIGTERM, SIGUSR1 or SIGUSR2.

    Outside of training the process ends at once: what was sampled and bought is on the disk already. SIGUSR1 under
    SLURM, and SIGTERM in a job that SLURM preempts, also queue the job again (`scontrol requeue`). A handler that the
    signal had before, such as submitit's own, is called first; if it returns, the exit status is 128 plus the signal's
    number: 143 for SIGTERM, 138 for SIGUSR1. A second signal changes nothing. Resume with ckpt_path=last, or start
    with ckpt_path=auto.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)
        self.training = False
        self.received: int | None = None
        self.leaving = False
        self.before: dict[int, Any] = {}
        self.forward: Callable[[int], None] = lambda signum: None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.leaving = False
        launcher = trainer.strategy.launcher
        if hasattr(launcher, "kill"):  # this process forwards a signal to those that the strategy has started
            self.forward = launcher.kill
        found = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.before = {signum: signal.SIG_DFL if is_ours(handler) else handler for signum, handler in found.items()}
        self._listen()

    def on_round_start(self) -> None:
        self._listen()  # Lightning has replaced our handlers; its own one of SIGTERM waits for the other ranks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._listen()  # where no rounds are played

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.training = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        received = self.received or 0
        if trainer.world_size > 1:  # some ranks may have received it during this step and others not yet
            received = largest(received, pl_module.device)
        if received:
            if not trainer.is_last_batch:  # else the evaluation follows, and a resumed run repeats this step before it
                trainer.save_checkpoint(last_checkpoint(self.run_dir))
            self.received = None
            self._leave(received)
        self.training = not trainer.is_last_batch

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if not self.leaving and threading.current_thread() is threading.main_thread():
            for signum, handler in self.before.items():
                signal.signal(signum, handler)

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other thread may
            for signum in SIGNALS:
                signal.signal(signum, self._hear)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.leaving:  # `timeout` sends its signal twice
            return
        self.forward(signum)
        if self.training:
            self.received = signum
        else:
            self._leave(signum)

    def _leave(self, signum: int) -> None:
        self.leaving = True
        handler = self.before.get(signum)
        if callable(handler):
            handler(signum, None)  # submitit's for SIGUSR2 queues the job again and ends its first process, no other
        leave(signum)


def is_ours(handler: Any) -> bool:
    """Whether a signal's handler is of an earlier run in this process, which has failed."""
    return isinstance(getattr(handler, "__self__", None), Preemption)
