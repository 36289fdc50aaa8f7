"""Draws what a run has measured as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from choosy.files import replacing
from choosy.reporting.summary import MEASURES, TRAINING, RunSummary

GRID, FRAME, INK = "#e5e7eb", "#9ca3af", "#4b5563"
AXES = {"labels": "labels bought", "tokens": "tokens generated", "seconds": "seconds"}
CURVES = {"reward": "#2563eb", "win_rate": "#d97706", "accuracy": "#7c3aed", "train_accuracy": "#7c3aed"}


def write_curves(run: RunSummary) -> None:
    """Write `curves.png` into the folder of a run."""
    drawing = curves(run)
    with replacing(run.folder / "curves.png") as unfinished:
        unfinished.write_bytes(drawing)


def curves(run: RunSummary) -> bytes:
    """Draw what was measured against labels, tokens and seconds, those that were spent, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    stages = [(measured, costs) for _, measured, costs in run.stages if measured] or [({}, (0, 0, 0.0))]
    if run.evaluated and not run.start:
        stages.insert(0, ({}, (0, 0, 0.0)))
    looks = [measured for measured, _ in stages]
    if run.evaluated:
        looks[0] = {"win_rate": 0.5, "kl": 0.0, **looks[0]}
    drawn = [name for name in CURVES if name in run.measures] or list(run.measures[:1]) or ["reward"]
    spent = dict(zip(AXES, zip(*(costs for _, costs in stages), strict=True), strict=True))
    size = (0.3 + 3.6 * len(run.spent_on), 0.4 + 2.4 * len(drawn))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.04, hspace=0.06))
    axes = figure.subplots(len(drawn), len(run.spent_on), sharex="col", sharey="row", squeeze=False)
    for column, cost in enumerate(run.spent_on):
        for row, name in enumerate(drawn):
            values = [_or_gap(look.get(name)) for look in looks]
            _curve(axes[row, column], spent[cost], values, CURVES.get(name, INK))
            if MEASURES[name][1].endswith("%"):
                axes[row, column].axhline(0.5, color=FRAME, linewidth=1, linestyle="--", zorder=0)
                axes[row, column].set_ylim(-0.05, 1.15)
        axes[-1, column].set_xlabel(AXES[cost], color=INK)
    for row, name in enumerate(drawn):
        axes[row, 0].set_ylabel(f"{'held-out ' * (name not in TRAINING)}{MEASURES[name][0]}", color=INK)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    return png.getvalue()


def count_axis(axis: Any, largest: float) -> None:
    """Write the amounts beside an axis: thousands as k, small ones as they are."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep="") if largest >= 1000 else "{x:g}")


def _or_gap(value: float | None) -> float:
    return math.nan if value is None else value


def _curve(axes: Any, costs: Sequence[float], values: Sequence[float], color: str) -> None:
    """Draw one curve from the start (a ring) over the rounds (dots), with first and last value beside it."""
    axes.plot(costs, values, color=color, linewidth=2.2, solid_capstyle="round")
    fill = ["white", *[color] * (len(costs) - 1)]
    axes.scatter(costs, values, s=38, color=fill, edgecolors=color, linewidths=1.6, zorder=3)
    rises = len(values) > 1 and values[1] > values[0]  # then the curve runs above its first point
    falls = len(values) > 2 and values[-1] < values[-2]  # then above its last one
    for position, lift in {0: -17 if rises else 8, len(values) - 1: -17 if falls else 8}.items():
        if not math.isnan(values[position]):
            point = (costs[position], values[position])
            text = f"{values[position]:.2f}"
            axes.annotate(text, point, (0, lift), textcoords="offset points", color=color, ha="center")
    axes.margins(x=0.1, y=0.2)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=INK, length=0)
    count_axis(axes.xaxis, max(costs))
