"""Lays out charts as the lines, dots and bars of an SVG, which `templates/charts.html.j2` writes.

A chart is `WIDTH` wide, and its marks are in its own units; colors are classes of the page's style, so that they follow
light and dark. What a mark means is in its text, which a browser shows beside the pointer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from choosy.reporting.courses import Interval

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 34  # room for the ticks
ROW = 30  # height of a round in a ridge
BINS = 24


class Point(NamedTuple):
    """A value at an amount, with the ends of its interval, nan where it has none."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


class Mark(NamedTuple):
    """A dot or a bar of a chart: where it is, its size, which series it is of, and what is said of it."""

    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    series: int = 0
    text: str = ""


class Line(NamedTuple):
    """A line of a chart, as the points of a polyline, and which series it is of; `kind` is a class of the style."""

    points: str
    series: int = 0
    kind: str = "curve"


@dataclass
class Chart:
    """A chart, with what is written beside it.

    Attributes:
        title: What it shows.
        note: What is said below it.
        x_label: What its horizontal axis is.
        height: Its height.
        x_ticks: Places on the horizontal axis, with what is written there.
        y_ticks: The same of the vertical one.
        lines: Curves and the ends of intervals.
        dots: Single values.
        bars: Counts.
        labels: Text in it: place, class, words.
    """

    title: str
    note: str = ""
    x_label: str = ""
    height: float = HEIGHT
    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    lines: list[Line] = field(default_factory=list)
    dots: list[Mark] = field(default_factory=list)
    bars: list[Mark] = field(default_factory=list)
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


class Scale:
    """Maps values to places between two ends, with round ticks.

    Example:
        >>> scale = Scale([0.0, 10.0], 0, 100, "{:g}".format)
        >>> scale(10.0), [text for _, text in scale.ticks]
        (96.2, ['0', '2.5', '5', '7.5', '10'])
    """

    def __init__(self, values: Iterable[float], start: float, end: float, text: Callable[[float], str]) -> None:
        from matplotlib.ticker import MaxNLocator

        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = widened(min(known), max(known))
        room = (high - low) * 0.04
        self.low, self.high = low - room * (low != 0), high + room
        self.start, self.end = start, end
        found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        self.ticks = [(self(tick), text(tick)) for tick in found if self.low - 1e-9 <= tick <= self.high]

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def widened(low: float, high: float) -> tuple[float, float]:
    """The ends of a range, or of a wider one around numbers that differ by their rounding alone.

    Example:
        >>> widened(0.0, 2.0), widened(0.5, 0.5), widened(0.0, 0.0)
        ((0.0, 2.0), (0.45, 0.55), (-1.0, 1.0))
    """
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(high) * 0.1 or 1.0
    return low - room, high + room


def amount(value: float) -> str:
    """Write an amount of a cost on an axis: thousands as k.

    Example:
        >>> amount(1500.0), amount(2e6), amount(0.5), amount(-0.0)
        ('1.5k', '2M', '0.5', '0')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value + 0.0:.6g}"


def line_chart(title: str, x_label: str, form: str, series: Mapping[str, Sequence[Point]]) -> Chart:
    """Draw a measure against an amount, a line for each series, with the intervals of its values.

    Args:
        title: What is measured.
        x_label: What the amount is of.
        form: How a value is written.
        series: The values of each by name; a value that is nan is left out.
    """

    def tick(value: float) -> str:
        return f"{value:.0%}" if form.endswith("%") else amount(value)

    every = [point for points in series.values() for point in points]
    x = Scale([point.x for point in every], LEFT, WIDTH - RIGHT, amount)
    y = Scale([v for point in every for v in point[1:]], HEIGHT - BOTTOM, TOP, tick)
    chart = Chart(title, x_label=x_label, x_ticks=x.ticks, y_ticks=y.ticks)
    if form.endswith("%") and y.low < 0.5 < y.high:
        chart.lines.append(Line(f"{LEFT},{y(0.5)} {WIDTH - RIGHT},{y(0.5)}", kind="half"))
    for number, (name, points) in enumerate(series.items()):
        known = [point for point in points if not math.isnan(point.y)]
        chart.lines += [
            Line(f"{x(p.x) + 2 * number},{y(p.low)} {x(p.x) + 2 * number},{y(p.high)}", number, "whisker")
            for p in known
            if not math.isnan(p.low + p.high)
        ]
        if known:
            chart.lines.append(Line(" ".join(f"{x(p.x)},{y(p.y)}" for p in known), number))
        lead = f"{name}: " if len(series) > 1 else ""
        chart.dots += [
            Mark(x(p.x), y(p.y), 3.2, series=number, text=f"{lead}{p.y:{form}}{ends(p, form)} at {p.x:,.0f} {x_label}")
            for p in known
        ]
    return chart


def ends(point: Point, form: str) -> str:
    """Write the interval of a value in brackets; "" if it has none."""
    known = Interval(*point[1:]).ends(form)
    return f" ({known})" if known else ""


def ridge_chart(title: str, x_label: str, rows: Mapping[str, np.ndarray]) -> Chart:
    """Draw the distribution of numbers in each row as a histogram, all rows over the same axis.

    Args:
        title: What the numbers are.
        x_label: What their axis is.
        rows: The numbers of each row by its name; a row without any stays empty.
    """
    every = np.concatenate([np.zeros(0), *rows.values()])
    edges = np.linspace(*(widened(every.min(), every.max()) if len(every) else (0.0, 1.0)), BINS + 1)
    height = TOP + ROW * len(rows) + BOTTOM
    left, right = LEFT + 26, WIDTH - 44
    x = Scale(edges.tolist(), left, right, amount)
    chart = Chart(title, "", x_label, height, x.ticks, left=left, right=right, bottom=height - BOTTOM)
    for number, (name, values) in enumerate(rows.items()):
        base = TOP + ROW * (number + 1)
        chart.labels.append((left - 6, base - 4, "end", name))
        chart.lines.append(Line(f"{left},{base} {right},{base}", kind="base"))
        if not len(values):
            continue
        counts, _ = np.histogram(values, edges)
        chart.labels.append((right + 5, base - 4, "start", f"n {len(values):,}"))
        for count, (low, high) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
            if count:
                tall = round((ROW - 4) * count / counts.max(), 1)
                said = f"{name}: {count:,} of {len(values):,} from {low:.3g} to {high:.3g}"
                chart.bars.append(Mark(x(low), base - tall, max(x(high) - x(low) - 0.6, 1.0), tall, 0, said))
        mean = x(float(values.mean()))
        chart.lines.append(Line(f"{mean},{base} {mean},{base - ROW + 4}", kind="mean"))
    return chart


def scatter_chart(title: str, x_label: str, y_label: str, values: Sequence[tuple[float, float]], note: str) -> Chart:
    """Draw pairs of numbers as dots; equal ones are one, larger dot."""
    x = Scale([a for a, _ in values], LEFT, WIDTH - RIGHT, amount)
    y = Scale([b for _, b in values], HEIGHT - BOTTOM, TOP, amount)
    chart = Chart(title, note, x_label, x_ticks=x.ticks, y_ticks=y.ticks)
    for (a, b), n in Counter(values).items():
        said = f"{x_label} {a:.3g}, {y_label} {b:.3g}" + f", {n} times" * (n > 1)
        chart.dots.append(Mark(x(a), y(b), min(3 * math.sqrt(n), 9.0), text=said))
    return chart
