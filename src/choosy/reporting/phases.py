"""Where a run's time goes: a stopwatch of its phases, and the displays that it can drive."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PHASES = ("sample", "score", "select", "label", "train", "evaluate")

Clock = Callable[[], float]


class Display(Protocol):
    """Something that shows a run's phases as they pass; they may nest, the last begun ends first."""

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        """A phase starts that will handle `total` things (None: nobody knows)."""
        ...

    def advance(self, n: int) -> None:
        """The innermost phase has handled `n` more."""
        ...

    def end(self) -> None:
        """The innermost phase is over."""
        ...

    def round(self, number: int, rounds: int) -> None:
        """Round `number` (the first is 0) of `rounds` starts."""
        ...

    def say(self, text: str) -> None:
        """Tell the person who watches one line."""
        ...

    def close(self) -> None:
        """Leave the screen as it was found; a later `begin` opens the display again."""
        ...


class Silent:
    """A display that shows nothing."""

    def begin(self, phase: str, total: int | None, unit: str) -> None: ...
    def advance(self, n: int) -> None: ...
    def end(self) -> None: ...
    def round(self, number: int, rounds: int) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass
class Step:
    """One open phase: how much of it is done, and the seconds it ran that no inner phase ran."""

    phase: str
    total: int | None
    unit: str
    done: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest of the phase takes at its speed so far."""
        return self.seconds / self.done * max(self.total - self.done, 0) if self.total and self.done else None

    @property
    def amount(self) -> str:
        """What was handled, in words: `128 prompts`, or `40/128 prompts` if not all of them."""
        if not self.done and not self.total:
            return ""
        whole = "" if self.total in (None, self.done) else f"/{self.total}"
        return f"{self.done}{whole} {self.unit}".rstrip()


class Steps:
    """The open phases, outermost first; only the innermost one's seconds run."""

    def __init__(self, clock: Clock) -> None:
        self.open: list[Step] = []
        self._clock = clock
        self._since = clock()

    def charge(self) -> None:
        """Give the seconds since the last call to the innermost phase."""
        now = self._clock()
        if self.open:
            self.open[-1].seconds += now - self._since
        self._since = now

    def push(self, step: Step) -> None:
        """Open a phase inside the innermost one, which pauses."""
        self.charge()
        self.open.append(step)

    def pop(self) -> Step:
        """Close the innermost phase; the one around it goes on."""
        self.charge()
        return self.open.pop()


class Phases:
    """The stopwatch of a run: seconds per phase, and a display that the same calls drive.

    Args:
        display: What shows the phases; nothing does by default.
        clock: Gives the time in seconds.

    Example:
        >>> phases = Phases(clock=iter([0.0, 0.0, 2.0, 2.0]).__next__)
        >>> with phases("sample", total=2, unit="prompts") as tick:
        ...     tick(2)
        >>> phases.seconds["sample"]
        2.0
    """

    def __init__(self, display: Display | None = None, *, clock: Clock = time.perf_counter) -> None:
        self.display: Display = display or Silent()
        self._closed = dict.fromkeys(PHASES, 0.0)
        self._steps = Steps(clock)

    @contextmanager
    def __call__(self, phase: str, *, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Measure what happens inside as `phase`; yields a function to call with the number of things done.

        An outer phase pauses meanwhile, so that no second is counted twice.
        """
        if phase not in self._closed:
            raise ValueError(f"A run has the phases {', '.join(PHASES)}; found {phase!r}. Name one of them.")
        display = self.display  # the one that began the phase is the one to end it
        self._steps.push(Step(phase, total, unit))
        display.begin(phase, total, unit)
        try:
            yield display.advance
        finally:
            self._closed[phase] += self._steps.pop().seconds
            display.end()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase since the run began, open phases and resumed runs included."""
        self._steps.charge()
        total = dict(self._closed)
        for step in self._steps.open:
            total[step.phase] += step.seconds
        return total

    def state_dict(self) -> dict[str, float]:
        """The seconds so far, for a checkpoint."""
        return self.seconds

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on counting from a checkpoint's seconds."""
        self._closed.update({phase: float(state[phase]) for phase in PHASES if phase in state})


def clock_face(seconds: float) -> str:
    """Seconds as a clock shows them.

    Example:
        >>> clock_face(9.4), clock_face(70), clock_face(3725)
        ('0:09', '1:10', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(9.14), duration(70), duration(3725)
        ('9.1 s', '1 min 10 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def seconds_left(
    rounds_to_come: int, *, last_round: float | None, in_round: float, phase_left: float | None
) -> float | None:
    """Estimate the seconds until the run ends; None while nothing is known.

    The last finished round says how long a round takes: the first one samples every prompt, later ones often
    fewer. Before one has finished, a round is taken to end with the phase that runs: a lower bound.

    Example:
        >>> seconds_left(2, last_round=60, in_round=20, phase_left=5)
        160.0
        >>> seconds_left(3, last_round=None, in_round=3, phase_left=9)
        45.0
    """
    if last_round is not None:
        return float(rounds_to_come * last_round + max(last_round - in_round, phase_left or 0.0))
    if phase_left is not None:
        return float(rounds_to_come * (in_round + phase_left) + phase_left)
    return None


class PlainDisplay:
    """One line at the end of every phase, for logs that nobody watches live.

    Args:
        stream: Where the lines go (default: standard error).
        clock: Gives the time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Clock = time.perf_counter) -> None:
        self._stream = stream
        self._steps = Steps(clock)
        self._label = "start"

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        self._steps.push(Step(phase, total, unit))

    def advance(self, n: int) -> None:
        self._steps.open[-1].done += n

    def end(self) -> None:
        step = self._steps.pop()
        cells = (self._label, step.phase, step.amount, duration(step.seconds))
        self.say("  ".join(cell for cell in cells if cell))

    def round(self, number: int, rounds: int) -> None:
        self._label = f"round {number + 1}/{rounds}"

    def say(self, text: str) -> None:
        print(text, file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        self._steps.open.clear()


class RichDisplay:
    """One live line on a terminal, and one lasting line for every round that is over.

    Args:
        console: Where to draw (default: standard error).
        clock: Gives the time in seconds.
    """

    def __init__(self, console: Console | None = None, *, clock: Clock = time.perf_counter) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._steps = Steps(clock)
        self._lock = threading.Lock()  # the live line is drawn by a thread of its own
        self._live: Live | None = None
        self._run_since = self._round_since = clock()
        self._number, self._rounds = -1, 0
        self._last_round: float | None = None
        self._spent: dict[str, float] = {}

    def begin(self, phase: str, total: int | None, unit: str) -> None:
        with self._lock:
            self._steps.push(Step(phase, total, unit))
        if self._live is None:
            # Lines printed to a standard output that goes elsewhere must not land on the terminal instead.
            self._live = Live(
                console=self._console,
                get_renderable=self.line,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()

    def advance(self, n: int) -> None:
        self._steps.open[-1].done += n

    def end(self) -> None:
        with self._lock:
            step = self._steps.pop()
        self._spent[step.phase] = self._spent.get(step.phase, 0.0) + step.seconds
        if not self._steps.open:
            self._stop()

    def round(self, number: int, rounds: int) -> None:
        if number == self._number:
            return
        now = self._clock()
        if self._number >= 0:
            self._last_round = now - self._round_since
        self._leave_line()
        self._number, self._rounds, self._round_since = number, rounds, now

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def close(self) -> None:
        with self._lock:
            self._steps.open.clear()
        self._stop()
        self._leave_line()

    def line(self) -> Table | Text:
        """The live line: round, phase, bar, amount, the phase's clock and the run's."""
        with self._lock:
            self._steps.charge()
            if not self._steps.open:
                return Text()
            step = self._steps.open[-1]
        dot = (" · ", "dim")
        left = Text.assemble((self._label, "bold"), dot, (step.phase, "cyan"))
        clock = clock_face(step.seconds) + ("" if step.left is None else f"<{clock_face(step.left)}")
        right = Text.assemble(
            step.amount, (" · " if step.amount else "", "dim"), clock, (" · ", "dim"), self._run(step)
        )
        room = self._console.width - left.cell_len - right.cell_len - 2
        if room < 4:
            both = Text(" ").join([left, right])
            both.truncate(self._console.width, overflow="ellipsis")
            return both
        bar = ProgressBar(step.total, step.done, width=min(room, 30), pulse=not step.total)
        row = Table.grid(padding=(0, 1))
        row.add_row(left, bar, right)
        return row

    @property
    def _label(self) -> str:
        return "start" if self._number < 0 else f"round {self._number + 1}/{self._rounds}"

    def _run(self, step: Step) -> Text:
        """How long the run has taken and how long it may still take."""
        now = self._clock()
        text = Text.assemble("run ", clock_face(now - self._run_since))
        left = None
        if self._number >= 0:
            left = seconds_left(
                self._rounds - self._number - 1,
                last_round=self._last_round,
                in_round=now - self._round_since,
                phase_left=step.left,
            )
        if left is not None:
            how = "at least" if self._last_round is None else "about"
            text.append(f", {how} {clock_face(left)} left", "green")
        return text

    def _leave_line(self) -> None:
        """Print the round (or what preceded the first) that is over, with the seconds of its phases."""
        if self._spent:
            phases = " · ".join(f"{phase} {duration(seconds)}" for phase, seconds in self._spent.items())
            self._console.print(Text.assemble((self._label, "bold"), "  ", (phases, "dim")))
        self._spent = {}

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def make_display() -> Display:
    """The live display if a person watches standard error on a terminal, else the plain one."""
    return RichDisplay() if sys.stderr.isatty() else PlainDisplay()


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
