"""Shows a run on the terminal while it happens."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from choosy.console import Terminal
from choosy.terminal import counted

PHASES = ("sample", "score", "select", "label", "train", "evaluate")


class Phases:
    """The stopwatch of a run: seconds per phase, and a display that the same calls drive.

    Example:
        >>> phases = Phases(clock=iter([0.0, 0.0, 2.0, 2.0]).__next__)
        >>> with phases("sample", total=2, unit="prompts") as tick:
        ...     tick(2)
        >>> phases.seconds["sample"]
        2.0
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = clock()
        self._round = "start"
        self.show_on(Terminal(quiet=True))

    def show_on(self, console: Terminal) -> None:
        """Print one line for every phase that is over; on a terminal each open phase also has a bar.

        In a notebook there is one line, of the newest phase.
        """
        self._console = console
        self._bars = bars(console)
        self._replace_line = notebook_line() if console.is_jupyter and not console.quiet else None

    @contextmanager
    def __call__(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Measure what happens inside as a phase; an outer phase pauses, so that no second is counted twice.

        Args:
            name: One of `PHASES`.
            total: Number of things that the phase will handle; None = not known.
            unit: What they are.

        Yields:
            A function to call with the number of things that were handled.
        """
        assert name in PHASES, f"{name} is none of {PHASES}"
        self._charge()
        self._open.append(name)
        shown, before, done = self._bars, self._seconds[name], 0
        bar = shown.add_task(name, total=total, round=self._round, amount=amount(0, total, unit))
        shown.start()

        def tick(count: int) -> None:
            nonlocal done
            done += count
            shown.update(bar, completed=done, amount=amount(done, total, unit))
            self._note(name, amount(done, total, unit))

        try:
            yield tick
        finally:
            self._charge()
            self._open.pop()
            shown.remove_task(bar)
            if not self._open:
                shown.stop()
            handled, seconds = amount(done, total, unit), self._seconds[name] - before
            if handled or seconds >= 0.05:
                self._note(name, handled, duration(seconds), is_over=True)

    def round(self, number: int, rounds: int) -> None:
        """Show that round `number` (the first is 0) of `rounds` starts."""
        self._round = f"round {number + 1}/{rounds}"

    def say(self, text: str) -> None:
        """Show one line of text."""
        self._console.print(text, soft_wrap=True)

    def _note(self, *words: str, is_over: bool = False) -> None:
        """Show how far a phase is, or that it is over."""
        line = "  ".join(filter(None, (self._round, *words)))
        if self._replace_line is not None:
            self._replace_line(line)
        elif is_over:
            self.say(line)

    def _charge(self) -> None:
        """Give the seconds since the last call to the innermost phase."""
        now = self._clock()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase since the run began, those of open phases and resumed runs included."""
        self._charge()
        return dict(self._seconds)

    def resume(self, seconds: Mapping[str, float]) -> None:
        """Continue from the seconds of a checkpoint."""
        self._seconds.update(seconds)


def bars(console: Terminal) -> Progress:
    """Return a bar for each open phase, with the fields `round` and `amount`; shown on terminals only."""
    return Progress(
        TextColumn("[bold]{task.fields[round]}"),
        TextColumn("[cyan]{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what is printed to a file must not land on the terminal
        disable=console.quiet or not console.is_terminal,
    )


def notebook_line() -> Callable[[str], None]:
    """Return a function that shows a line in the output of the notebook's cell, in place of its line before."""
    from IPython.display import display

    show: Any = display  # which has no types
    handle = show({"text/plain": "starting"}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


def amount(done: int, total: int | None, unit: str) -> str:
    """Return what was handled: `128 prompts`, or `40/128 prompts` if not all of them."""
    if not done and not total:
        return ""
    if total not in (None, done):
        return f"{done}/{total} {unit}".rstrip()
    return counted(done, unit) if unit else str(done)


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
    import_module("lightning.pytorch")  # which sets the levels of its loggers
    libraries = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "sentence_transformers")
    for name in (*libraries, "gguf", "httpx2", "httpcore2"):  # debug lines of the last two repeat what servers send
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
        ".*could not find the monitored key.*",  # which the export says in a sentence, if no round has measured it
    ):
        warnings.filterwarnings("ignore", message=message)
