"""Measures where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from choosy.reporting.display import OpenPhase, RunDisplay

PHASES = ("sample", "score", "select", "label", "train", "evaluate")


class Phases:
    """The stopwatch of a run: seconds per phase, and a display that the same calls drive; None shows nothing.

    Example:
        >>> phases = Phases(clock=iter([0.0, 0.0, 2.0, 2.0]).__next__)
        >>> with phases("sample", total=2, unit="prompts") as tick:
        ...     tick(2)
        >>> phases.seconds["sample"]
        2.0
    """

    def __init__(self, display: RunDisplay | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.display = display or RunDisplay(Console(quiet=True))
        self._clock = clock
        self._closed = dict.fromkeys(PHASES, 0.0)
        self._open: list[OpenPhase] = []
        self._since = clock()

    @contextmanager
    def __call__(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Measure what happens inside as a phase; an outer phase pauses, so that no second is counted twice.

        For the arguments see `OpenPhase`.

        Yields:
            A function to call with the number of things that were handled.
        """
        assert name in PHASES, f"{name} is none of {PHASES}"
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
        return self.seconds

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._closed.update({phase: float(state[phase]) for phase in PHASES if phase in state})
