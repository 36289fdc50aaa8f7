"""Compares the arms of a sweep at equal labels, tokens, seconds, money."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from choosy.console import Terminal, console
from choosy.files import replacing
from choosy.reporting.comparison import COSTS, Comparison, compared
from choosy.reporting.courses import Course, each_course
from choosy.reporting.curves import count_axis
from choosy.reporting.earlier import write_compared
from choosy.reporting.figures import as_amount, as_difference, as_p, as_range, as_share
from choosy.reporting.pages import write_page
from choosy.reporting.sweeps import read_sweep

MOST_SAID = 5  # runs that are left out, on the terminal
ARM_COLORS = (
    "#6b7280",
    "#2563eb",
    "#d97706",
    "#15803d",
    "#db2777",
    "#7c3aed",
    "#0891b2",
    "#b91c1c",
    "#65a30d",
    "#a16207",
)


@dataclass(frozen=True)
class UnitPrices:
    """What the user pays for a label and for an hour of the machine; 0 = it does not count.

    Raises:
        ValueError: One is below 0 or not finite, or both are 0.
    """

    label: float = 0.0
    hour: float = 0.0

    def __post_init__(self) -> None:
        """Refuse prices that compare nothing."""
        if not (any(both := (self.label, self.hour)) and all(0 <= price < math.inf for price in both)):
            raise ValueError(
                "Wanted prices of 0 or more, at least one of them above 0; found "
                f"{self.label:g} for a label and {self.hour:g} for an hour. Type --label-price 0.05 or --hour-price 2, "
                "or both"
            )


def compare(
    sweep_dir: str | Path,
    *,
    baseline: str | None = None,
    prices: UnitPrices | None = None,
    arm_of: Callable[[Path], tuple[str, ...] | None] | None = None,
) -> Comparison:
    """Compare the runs below a folder, finished or not, as far as each of them came (see `read_sweep`, `compared`).

    Args:
        sweep_dir: The folder of a sweep.
        baseline: The arm to compare with, as the page names it; None = the one that chooses at random, else the first.
        prices: What a label and an hour cost; None = money is not compared.
        arm_of: Names the arm of a run by its folder, or leaves the run out; None = by what was typed for it.

    Raises:
        ValueError: There is no evaluated run below the folder, or no such baseline.
    """
    arms, skipped = read_sweep(sweep_dir, arm_of)
    if prices is None:
        return compared(arms, baseline, skipped=skipped)
    arms = {name: {seed: with_money(run, prices) for seed, run in arm.items()} for name, arm in arms.items()}
    return compared(arms, baseline, costs=("money", *COSTS), skipped=skipped)


def with_money(run: Course, prices: UnitPrices) -> Course:
    """A course with the money that its labels and seconds cost.

    Example:
        >>> with_money(Course({"labels": (0, 10), "seconds": (0, 360)}, (0.0, 1.0)), UnitPrices(0.05, 2)).spent["money"]
        (0.0, 0.7)
    """
    both = zip(run.spent["labels"], run.spent["seconds"], strict=True)
    money = tuple(labels * prices.label + seconds / 3600 * prices.hour for labels, seconds in both)
    return replace(run, spent={**run.spent, "money": money})


def print_comparison(comparison: Comparison, out: Terminal | None = None) -> None:
    """Print what each arm needs of the headline's cost for the baseline's final quality, then the sentence.

    Where no arm is compared there is no page: the sentence and the runs that are left out are all that is printed.
    """
    out = out or console()
    if not comparison.beside:
        left = [f"{run} is left out: {why}" for run, why in comparison.skipped.items() if run not in comparison.arms]
        out.print("\n".join([comparison.sentence, *left]), soft_wrap=True)
        return
    cost = comparison.headline_cost
    amount = partial(as_amount, cost=cost)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("arm", "seeds", f"final {comparison.measure}", cost, "95 % interval", "share", "gain"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name, found in comparison.rows(cost):
        paid = (amount(found.paid.value), as_range(found.paid, amount), as_share(found.ratio.value))
        table.add_row(
            name,
            str(found.seeds),
            comparison.final(name),
            *paid,
            as_difference(found.gain.value) if name != comparison.baseline else "",
        )
    out.print(f"{cost} to the final {comparison.measure} of {comparison.baseline}:", soft_wrap=True)
    out.print(table)
    left = [f"{name} is left out: {why}" for name, why in comparison.skipped.items()]
    more = [f"{len(left) - MOST_SAID} more are left out: see compare.html"] if len(left) > MOST_SAID else []
    out.print("\n".join([*left[:MOST_SAID], *more, *comparison.uneven, comparison.sentence]), soft_wrap=True)


def write_comparison(comparison: Comparison, sweep_dir: str | Path) -> Path:
    """Write `compare.csv` into the folder of a sweep and, where arms are compared, `compare.png` and `compare.html`.

    Returns:
        The page; without it the table.
    """
    folder = Path(sweep_dir)
    with replacing(table := folder / "compare.csv") as unfinished:
        write_compared(comparison.arms, comparison.costs, unfinished)
    if not comparison.beside:
        return table
    with replacing(folder / "compare.png") as unfinished:
        unfinished.write_bytes(draw(comparison))
    write_page(
        "compare.html.j2",
        folder / "compare.html",
        title=f"Choosy comparison {folder.resolve().name}",
        comparison=comparison,
        colors=colors(comparison),
        labels=labels(comparison),
        pictures={x: base64.b64encode(draw(comparison, [x])).decode() for x in panels(comparison)},
        share=as_share,
        amount=as_amount,
        difference=as_difference,
        range=as_range,
        p=as_p,
        partial=partial,
    )
    return folder / "compare.html"


def drawn(comparison: Comparison) -> dict[str, list[Course]]:
    """The runs that are drawn: the baseline's, and those of each compared arm on its seeds."""
    its_own = comparison.arms[comparison.baseline]
    names = (comparison.baseline, *comparison.beside)
    return {name: [run for seed, run in comparison.arms[name].items() if seed in its_own] for name in names}


def labels(comparison: Comparison) -> dict[str, str]:
    """What the legend says of each arm: its seeds where not all arms have as many, and how many are not finished."""
    arms = drawn(comparison)
    differ = len({len(runs) for runs in arms.values()}) > 1

    def label(name: str, runs: Sequence[Course]) -> str:
        seeds = [f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"] if differ else []
        unfinished = sum(not run.finished for run in runs)
        notes = [*seeds, *([f"{unfinished} not finished"] if unfinished else [])]
        return f"{name} ({', '.join(notes)})" if notes else name

    return {name: label(name, runs) for name, runs in arms.items()}


def colors(comparison: Comparison) -> dict[str, str]:
    """The color of each arm, the baseline first."""
    return dict(zip(drawn(comparison), cycle(ARM_COLORS), strict=False))


def panels(comparison: Comparison) -> list[str]:
    """What quality is drawn against: each cost that any run had, and the distance where every run knows it."""
    runs = [run for arm in drawn(comparison).values() for run in arm]
    had = [cost for cost in comparison.costs if any(run.spent[cost][-1] for run in runs)]
    return [*had, *(["distance from the start"] if all(run.kl for run in runs) else [])]


def draw(comparison: Comparison, against: Sequence[str] | None = None) -> bytes:
    """Draw the mean quality of each arm, with a band of one standard error, as a PNG.

    Args:
        comparison: The arms.
        against: A panel each, of those in `panels`; None = all, with the arms' names below.
    """
    from matplotlib.figure import Figure

    wanted = against or panels(comparison)
    arms, names, hues = drawn(comparison), labels(comparison), colors(comparison)
    columns = 2 if len(wanted) in (2, 4) else min(3, len(wanted))
    lines = math.ceil(len(wanted) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    for number, x in enumerate(wanted, 1):
        axes = figure.add_subplot(lines, columns, number)
        for place, (name, runs) in enumerate(arms.items()):
            style = "-" if place < len(ARM_COLORS) else "--"  # of a color that is used a second time
            _draw_arm(axes, runs, x, names[name], hues[name], style)
        axes.set_xlabel(x)
        count_axis(axes.xaxis, axes.get_xlim()[1])
        axes.set_ylabel(f"held-out {comparison.measure}")
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    if against is None:
        fewest, most = (extreme(map(len, arms.values())) for extreme in (min, max))
        each = f"{fewest} to {most} seeds" if fewest < most else f"{most} seeds" if most > 1 else "one seed"
        figure.suptitle(f"{each} of each arm" + ", with a band of one standard error" * (fewest > 1), fontsize=10)
        key = axes.get_legend_handles_labels()
        figure.legend(*key, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def _draw_arm(axes: Any, courses: Sequence[Course], x: str, name: str, color: str, style: str) -> None:
    if x in courses[0].spent:
        amounts, each = each_course(courses, x)
    else:  # the distance follows from training: both are means over the runs at each evaluation that all of them have
        n = min(len(one.quality) for one in courses)
        amounts = np.mean([one.kl[:n] for one in courses], axis=0)
        each = np.array([one.quality[:n] for one in courses])
    mean = each.mean(axis=0)
    axes.plot(amounts, mean, color=color, linestyle=style, linewidth=2, label=name)
    if len(courses) > 1:
        error = each.std(axis=0, ddof=1) / math.sqrt(len(courses))
        axes.fill_between(amounts, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
