"""Measures where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

PHASES = ("sample", "score", "select", "label", "train", "evaluate")


@dataclass
class OpenPhase:
    """A phase that runs.

    Attributes:
        name: One of `PHASES`.
        total: Number of things that it will handle; None = not known.
        unit: What the things are.
        done: Number of things handled so far.
        seconds: Time that it ran and no inner phase did.
    """

    name: str
    total: int | None
    unit: str
    done: int = 0
    seconds: float = 0.0

    @property
    def amount(self) -> str:
        """What was handled: `128 prompts`, or `40/128 prompts` if not all of them."""
        if not self.done and not self.total:
            return ""
        whole = "" if self.total in (None, self.done) else f"/{self.total}"
        return f"{self.done}{whole} {self.unit}".rstrip()


class Display(Protocol):
    """Shows the phases of a run as they pass; they may nest, and the last begun ends first."""

    def begin(self, phase: OpenPhase) -> None:
        """Show that a phase starts."""
        ...

    def advance(self, phase: OpenPhase) -> None:
        """Show that the phase has handled more."""
        ...

    def end(self, phase: OpenPhase) -> None:
        """Show that the phase is over."""
        ...

    def round(self, number: int, rounds: int) -> None:
        """Show that round `number` (the first is 0) of `rounds` starts."""
        ...

    def say(self, text: str) -> None:
        """Show one line of text."""
        ...

    def close(self) -> None:
        """Leave the screen as it was found; a later `begin` opens the display again."""
        ...


class Silent:
    """A display that shows nothing."""

    def begin(self, phase: OpenPhase) -> None: ...
    def advance(self, phase: OpenPhase) -> None: ...
    def end(self, phase: OpenPhase) -> None: ...
    def round(self, number: int, rounds: int) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Phases:
    """The stopwatch of a run: seconds per phase, and a display that the same calls drive.

    Args:
        display: What shows the phases; None = nothing does.
        clock: Returns the time in seconds.

    Example:
        >>> phases = Phases(clock=iter([0.0, 0.0, 2.0, 2.0]).__next__)
        >>> with phases("sample", total=2, unit="prompts") as tick:
        ...     tick(2)
        >>> phases.seconds["sample"]
        2.0
    """

    def __init__(self, display: Display | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.display: Display = display or Silent()
        self._clock = clock
        self._closed = dict.fromkeys(PHASES, 0.0)
        self._open: list[OpenPhase] = []
        self._since = clock()

    @contextmanager
    def __call__(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Measure what happens inside as a phase; an outer phase pauses, so that no second is counted twice.

        Args:
            name: One of `PHASES`.
            total: Number of things that the phase will handle; None = not known.
            unit: What the things are.

        Yields:
            A function to call with the number of things that were handled.

        Raises:
            ValueError: There is no such phase.
        """
        if name not in self._closed:
            raise ValueError(f"A run has the phases {', '.join(PHASES)}; found {name!r}. Name one of them.")
        display, phase = self.display, OpenPhase(name, total, unit)  # the display that began a phase ends it
        self._charge()
        self._open.append(phase)
        display.begin(phase)

        def tick(count: int) -> None:
            phase.done += count
            display.advance(phase)

        try:
            yield tick
        finally:
            self._charge()
            self._open.pop()
            self._closed[name] += phase.seconds
            display.end(phase)

    def _charge(self) -> None:
        """Give the seconds since the last call to the innermost phase."""
        now = self._clock()
        if self._open:
            self._open[-1].seconds += now - self._since
        self._since = now

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase since the run began, those of open phases and resumed runs included."""
        self._charge()
        total = dict(self._closed)
        for phase in self._open:
            total[phase.name] += phase.seconds
        return total

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far, for a checkpoint."""
        return self.seconds

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint's seconds."""
        self._closed.update({phase: float(state[phase]) for phase in PHASES if phase in state})


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
