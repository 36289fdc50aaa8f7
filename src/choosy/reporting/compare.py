"""Compares the arms of a sweep at equal labels, tokens, seconds, money."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
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
from choosy.reporting.courses import Arm, Course, Interval, Versus, each_course, versus
from choosy.reporting.curves import count_axis
from choosy.reporting.earlier import write_compared
from choosy.reporting.pages import write_page
from choosy.reporting.summary import MEASURES, as_spread
from choosy.reporting.sweeps import read_sweep, warn_of_few_seeds

COSTS = ("labels", "seconds", "tokens")
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
    """What the user pays for a label and for an hour of the machine; 0 = it does not count."""

    label: float = 0.0
    hour: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The arms of a sweep, and each of them beside the baseline.

    Attributes:
        arms: The runs of each arm by seed.
        baseline: The arm that the others are compared with.
        costs: The costs that are compared.
        beside: For each other arm, its comparison at each cost.
        itself: The baseline beside itself at each cost: what its own final quality costs it.
        skipped: Folders of runs, and arms, that are not compared, each with the reason.
    """

    arms: Mapping[str, Arm]
    baseline: str
    costs: tuple[str, ...]
    beside: Mapping[str, Mapping[str, Versus]]
    itself: Mapping[str, Versus]
    skipped: Mapping[str, str]

    @property
    def measure(self) -> str:
        """What the quality is: reward, win rate or accuracy."""
        return next(iter(self.arms[self.baseline].values())).measure.replace("_", " ")

    def final(self, name: str) -> str:
        """The mean of an arm's final quality, with its standard deviation over the seeds."""
        runs = self.arms[name].values()
        form = MEASURES[next(iter(runs)).measure][1]
        return as_spread([run.quality[-1] for run in runs], form)

    def rows(self, cost: str) -> list[tuple[str, Versus]]:
        """The arms at a cost: the baseline, then the others, the cheapest first."""

        def dearness(name: str) -> tuple[float, float]:
            found = self.beside[name][cost]
            return (math.inf if math.isnan(found.ratio.value) else found.ratio.value, -found.gain.value)

        others = [(name, self.beside[name][cost]) for name in sorted(self.beside, key=dearness)]
        return [(self.baseline, self.itself[cost]), *others]

    @property
    def headline_cost(self) -> str:
        """The cost that the sentence is about."""
        return "money" if "money" in self.costs else "labels"

    @property
    def best(self) -> str:
        """The cheapest of the arms that are shown to pay; if none is, the cheapest of all."""
        _, *others = self.rows(self.headline_cost)
        return next((name for name, found in others if self.pays(found)), others[0][0])

    def pays(self, found: Versus) -> bool:
        """Whether an arm is shown to need less than the baseline, as one of several (Bonferroni)."""
        return found.ratio.high < 1 and found.gain.value > 0 and found.p * len(self.beside) < 0.05

    @property
    def sentence(self) -> str:
        """Which arm pays here, by how much; or that none does, and what would tell."""
        cost, baseline = self.headline_cost, self.baseline
        if len(self.arms) == 1:
            return f"There is only one arm, {baseline}; run another one on the same seeds to compare."
        if not self.beside:
            reasons = sorted({self.skipped[name] for name in self.arms.keys() - {baseline}})
            return f"The {len(self.arms)} arms are listed in compare.csv and not compared: {'; '.join(reasons)}."
        best, found = self.best, self.beside[self.best][cost]
        ratio, gain = found.ratio, found.gain.value
        lead = f"{warn_of_few_seeds(found.seeds)} ".lstrip()
        if math.isnan(ratio.value):
            return f"{lead}{baseline} ends no better than it began, so that no cost of its quality can be compared."
        if math.isinf(ratio.value):
            return f"{lead}No arm reaches the final quality of {baseline}; the nearest is {best} ({gain:+.2f})."
        needs = f"{as_share(ratio.value)} of the {cost} of {baseline} for its final quality"
        if cost == "money" and ratio.value:
            needs += (
                f", {as_amount(found.paid.value, cost)} instead of {as_amount(found.paid.value / ratio.value, cost)}"
            )
        if gain < 0:
            needs += f", and ends {-gain:.2f} lower"
        if lead:
            return f"{lead}In these runs {best} needs {needs}."
        known = f"95 % interval {as_range(ratio, as_share)}, " if not math.isnan(ratio.low) else ""
        shown = f"{known}p {as_p(found.p)}, {found.seeds} seeds"
        if self.pays(found):
            return f"{best} pays here: it needs {needs} ({shown})."
        if gain <= 0 or not math.isfinite(found.more_seeds):
            return f"No arm is shown to pay more than {baseline}. The best, {best}, needs {needs} ({shown})."
        return (
            f"No arm is shown to pay more than {baseline} yet. The best, {best}, needs {needs} ({shown}); about "
            f"{math.ceil(max(found.more_seeds, 3))} more seeds would tell, if the difference is what it seems."
        )


def as_share(ratio: float) -> str:
    """A ratio as a percentage; infinity is what an arm needs that never reaches the quality, nan is not known.

    Example:
        >>> as_share(0.456), as_share(math.inf), as_share(math.nan)
        ('46%', 'never', '–')
    """
    return "–" if math.isnan(ratio) else f"{ratio:.0%}" if math.isfinite(ratio) else "never"


def as_amount(amount: float, cost: str) -> str:
    """An amount of a cost.

    Example:
        >>> as_amount(1234.5, "labels"), as_amount(1234.5, "money"), as_amount(0.0123, "money"), as_amount(math.inf, "")
        ('1,234', '1,234.50', '0.012', 'never')
        >>> as_amount(1.34, "seconds")
        '1.3'
    """
    if not math.isfinite(amount):
        return as_share(amount)
    if cost == "seconds" and amount < 100:
        return f"{amount:.1f}"
    return f"{amount:,.0f}" if cost != "money" else f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def as_difference(difference: float) -> str:
    """A difference with its sign, a dash where it is not known."""
    return "–" if math.isnan(difference) else f"{difference:+.2f}"


def as_p(p: float) -> str:
    """A p value with its sign, as in "p = 0.062".

    Example:
        >>> as_p(0.0625), as_p(0.00002)
        ('= 0.062', '< 0.001')
    """
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def as_range(found: Interval, text: Callable[[float], str]) -> str:
    """The ends of an interval, or both in one where they read alike; a dash where they are not known.

    Example:
        >>> [as_range(found, as_share) for found in (Interval(0.5, 0.25, math.inf), Interval(1, 1, 1), Interval(0.5))]
        ['25% to never', '100%', '–']
    """
    low, high = text(found.low), text(found.high)
    return low if low == high else f"{low} to {high}"


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


def compared(
    arms: Mapping[str, Arm],
    baseline: str | None = None,
    *,
    costs: Sequence[str] = COSTS,
    skipped: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare each arm with the baseline at each cost.

    Args:
        arms: The runs of each arm by seed.
        baseline: The arm to compare with; None = the one that chooses at random, else the first.
        costs: What is compared; each run knows what it spent of it.
        skipped: What is left out, with the reason.

    Raises:
        ValueError: There is no such baseline, or not all runs measure the same quality.
    """
    if baseline is None:
        baseline = next((name for name in arms if "random" in name), next(iter(arms)))
    if baseline not in arms:
        raise ValueError(f"baseline={baseline} is none of the arms: {', '.join(arms)}")
    measures = sorted({run.measure for arm in arms.values() for run in arm.values()})
    if len(measures) > 1:
        raise ValueError(f"Some runs measure {measures[0]}, others {measures[1]}; compare runs with one evaluation.")
    its_own = arms[baseline]
    apart = {name: f"no seed in common with {baseline}" for name, arm in arms.items() if not arm.keys() & its_own}
    for name, arm in arms.items():
        if other := next((arm[s].judge for s in arm.keys() & its_own if arm[s].judge != its_own[s].judge), None):
            apart[name] = f"judged by {other}, and {baseline} by {next(iter(its_own.values())).judge}"
    others = {name: arm for name, arm in arms.items() if name != baseline and name not in apart}
    beside = {
        name: {cost: versus(arm, its_own, cost, comparisons=len(others)) for cost in costs}
        for name, arm in others.items()
    }
    itself = {cost: versus(its_own, its_own, cost) for cost in costs}
    return Comparison(arms, baseline, tuple(costs), beside, itself, {**(skipped or {}), **apart})


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
    out.print(comparison.sentence, soft_wrap=True)


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
        pictures={x: base64.b64encode(draw(comparison, [x])).decode() for x in panels(comparison)},
        share=as_share,
        amount=as_amount,
        difference=as_difference,
        range=as_range,
        p=as_p,
        partial=partial,
    )
    return folder / "compare.html"


def colors(comparison: Comparison) -> dict[str, str]:
    """The color of each arm, the baseline first."""
    names = [comparison.baseline, *(name for name in comparison.arms if name != comparison.baseline)]
    return dict(zip(names, cycle(ARM_COLORS), strict=False))


def panels(comparison: Comparison) -> list[str]:
    """What quality is drawn against: each cost that any run had, and KL where every run measured it."""
    runs = [run for arm in comparison.arms.values() for run in arm.values()]
    had = [cost for cost in comparison.costs if any(run.spent[cost][-1] for run in runs)]
    return [*had, *(["KL from the start"] if all(run.kl for run in runs) else [])]


def draw(comparison: Comparison, against: Sequence[str] | None = None) -> bytes:
    """Draw the mean quality of each arm, with a band of one standard error, as a PNG.

    Args:
        comparison: The arms.
        against: A panel each, of those in `panels`; None = all, with the arms' names below.
    """
    from matplotlib.figure import Figure

    wanted = against or panels(comparison)
    columns = 2 if len(wanted) in (2, 4) else min(3, len(wanted))
    lines = math.ceil(len(wanted) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    for number, x in enumerate(wanted, 1):
        axes = figure.add_subplot(lines, columns, number)
        for place, (name, color) in enumerate(colors(comparison).items()):
            style = "-" if place < len(ARM_COLORS) else "--"  # of a color that is used a second time
            _draw_arm(axes, list(comparison.arms[name].values()), x, name, color, style)
        axes.set_xlabel(x)
        count_axis(axes.xaxis, axes.get_xlim()[1])
        axes.set_ylabel(f"held-out {comparison.measure}")
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    if against is None:
        fewest, most = (extreme(map(len, comparison.arms.values())) for extreme in (min, max))
        each = f"{fewest} to {most} seeds" if fewest < most else f"{most} seeds" if most > 1 else "one seed"
        figure.suptitle(f"{each} of each arm" + ", with a band of one standard error" * (fewest > 1), fontsize=10)
        key = axes.get_legend_handles_labels()
        figure.legend(*key, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    return drawn.getvalue()


def _draw_arm(axes: Any, courses: Sequence[Course], x: str, name: str, color: str, style: str) -> None:
    if x in courses[0].spent:
        amounts, each = each_course(courses, x)
    else:  # KL follows from training: both are means over the runs at each evaluation that all of them have
        n = min(len(one.quality) for one in courses)
        amounts = np.mean([one.kl[:n] for one in courses], axis=0)
        each = np.array([one.quality[:n] for one in courses])
    mean = each.mean(axis=0)
    axes.plot(amounts, mean, color=color, linestyle=style, linewidth=2, label=name)
    if len(courses) > 1:
        error = each.std(axis=0, ddof=1) / math.sqrt(len(courses))
        axes.fill_between(amounts, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
