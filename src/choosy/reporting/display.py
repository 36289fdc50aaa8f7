"""Shows a run on the terminal while it happens."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass
class OpenPhase:
    """A phase that runs."""

    name: str  # one of `PHASES`
    total: int | None  # number of things that it will handle; None = not known
    unit: str  # what the things are
    done: int = 0
    seconds: float = 0.0  # in which it ran and no inner phase did

    @property
    def amount(self) -> str:
        """What was handled: `128 prompts`, or `40/128 prompts` if not all of them."""
        if not self.done and not self.total:
            return ""
        whole = "" if self.total in (None, self.done) else f"/{self.total}"
        return f"{self.done}{whole} {self.unit}".rstrip()


class RunDisplay:
    """Prints one line for every phase that is over; on a terminal each open phase also has a bar.

    Phases may nest: the last begun ends first. Without a console the lines go to standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._round = "start"
        self._bars: list[TaskID] = []
        self._progress = Progress(
            TextColumn("[bold]{task.fields[round]}"),
            TextColumn("[cyan]{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what is printed to a file must not land on the terminal
            disable=self._console.quiet or not self._console.is_terminal,
        )

    def begin(self, phase: OpenPhase) -> None:
        self._bars.append(self._progress.add_task(phase.name, total=phase.total, round=self._round, amount=""))
        self._progress.start()

    def advance(self, phase: OpenPhase) -> None:
        self._progress.update(self._bars[-1], completed=phase.done, amount=phase.amount)

    def end(self, phase: OpenPhase) -> None:
        self._progress.remove_task(self._bars.pop())
        if not self._bars:
            self._progress.stop()
        if phase.amount or phase.seconds >= 0.05:
            self.say("  ".join(filter(None, (self._round, phase.name, phase.amount, duration(phase.seconds)))))

    def round(self, number: int, rounds: int) -> None:
        """Show that round `number` (the first is 0) of `rounds` starts."""
        self._round = f"round {number + 1}/{rounds}"

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the screen as it was found; a later `begin` opens the display again."""
        while self._bars:
            self._progress.remove_task(self._bars.pop())
        self._progress.stop()


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Example:
        >>> duration(9.14), duration(70), duration(3725)
        ('9.1 s', '1 min 10 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def quiet() -> None:
    """Mute banners of libraries, and their advice that does not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*You have overridden `transfer_batch_to_device`.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*`lr_scheduler.step.*",
        ".*Found .* module.s. in eval mode.*",
    ):
        warnings.filterwarnings("ignore", message=message)
