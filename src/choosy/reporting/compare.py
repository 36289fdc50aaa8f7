"""Compares the arms of a sweep at equal labels, tokens, seconds, money."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from choosy.files import replacing
from choosy.reporting.courses import Arm, Course, Versus, mean_course, versus
from choosy.reporting.report import write_page
from choosy.reporting.summary import RunSummary, costs_of, read_run

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
        skipped: Folders of runs that could not be read or were not evaluated, each with the reason.
    """

    arms: Mapping[str, Arm]
    baseline: str
    costs: tuple[str, ...]
    beside: Mapping[str, Mapping[str, Versus]]
    skipped: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """Which arm pays here, by how much; or that none does, and what would tell."""
        cost = "money" if "money" in self.costs else "labels"
        if not self.beside:
            return f"There is only one arm, {self.baseline}; run another one on the same seeds to compare."
        best = min(
            self.beside,
            key=lambda name: (_last_if_unknown(self.beside[name][cost].ratio), -self.beside[name][cost].gain),
        )
        found = self.beside[best][cost]
        if math.isnan(found.ratio):
            return f"{self.baseline} ends no better than it began, so that no cost of its quality can be compared."
        if math.isinf(found.ratio):
            return f"No arm reaches the final quality of {self.baseline}; the nearest is {best} ({found.gain:+.2f})."
        needs = f"{best} needs {as_share(found.ratio)} of the {cost} of {self.baseline} for its final quality"
        if found.seeds == 1:
            return f"{needs}, with one seed, which says nothing of chance: run seed=0,1,2,3,4,5,6,7."
        shown = f"95 % interval {as_share(found.low)} to {as_share(found.high)}, p = {found.p:.3f}, {found.seeds} seeds"
        if found.high < 1 and found.gain > 0 and found.p * len(self.beside) < 0.05:  # the best of several (Bonferroni)
            return f"{best} pays here: {needs} ({shown})."
        if found.gain <= 0 or not math.isfinite(found.more_seeds):
            return f"No arm is shown to pay more than {self.baseline}. The best, {needs} ({shown})."
        return (
            f"No arm is shown to pay more than {self.baseline} yet. The best, {needs} ({shown}); about "
            f"{math.ceil(max(found.more_seeds, 3))} more seeds would tell, if the difference is what it seems."
        )


def _last_if_unknown(ratio: float) -> float:
    return math.inf if math.isnan(ratio) else ratio


def as_share(ratio: float) -> str:
    """A ratio as a percentage; infinity is what an arm needs that never reaches the quality, nan is not known.

    Example:
        >>> as_share(0.456), as_share(math.inf), as_share(math.nan)
        ('46%', 'never', '–')
    """
    return "–" if math.isnan(ratio) else f"{ratio:.0%}" if math.isfinite(ratio) else "never"


def compare(
    sweep_dir: str | Path,
    *,
    baseline: str | None = None,
    prices: UnitPrices | None = None,
    arm_of: Callable[[Path], tuple[str, ...] | None] | None = None,
) -> Comparison:
    """Compare the runs below a folder, finished or not, as far as each of them came.

    Args:
        sweep_dir: The folder of a sweep.
        baseline: The arm to compare with, as the page names it; None = the one that chooses at random, else the first.
        prices: What a label and an hour cost; None = money is not compared.
        arm_of: Names the arm of a run by its folder, or leaves the run out; None = by what was typed for it.

    Raises:
        ValueError: There is no evaluated run below the folder, or no such baseline.
    """
    folder = Path(sweep_dir)
    found: dict[tuple[str, ...], dict[int, Course]] = defaultdict(dict)
    skipped: dict[str, str] = {}
    for run_dir in sorted({path.parents[1] for path in folder.rglob("rounds/round_*.parquet")}):
        if (words := (arm_of or typed)(run_dir)) is None:
            continue
        try:
            run = read_run(run_dir)
        except (ValueError, OSError) as error:
            skipped[str(run_dir.relative_to(folder))] = str(error)
            continue
        if not run.start or not run.evaluated:
            skipped[str(run_dir.relative_to(folder))] = "it has no evaluated round yet"
            continue
        found[words][int(run.latest["seed"])] = course(run, prices)
    if not found:
        raise ValueError(
            f"Wanted runs with evaluated rounds below {folder}; found none. First type choosy train -m ..."
        )
    arms = named(found)
    if baseline is None:
        baseline = next((name for name in arms if "random" in name), next(iter(arms)))
    if baseline not in arms:
        raise ValueError(f"baseline={baseline} is none of the arms: {', '.join(arms)}")
    costs = ("tokens", "seconds", *(("money",) if prices else ()), "labels")
    beside = {
        name: {cost: versus(arm, arms[baseline], cost) for cost in costs}
        for name, arm in arms.items()
        if name != baseline and arm.keys() & arms[baseline].keys()
    }
    return Comparison(arms, baseline, costs, beside, skipped)


def typed(run_dir: Path) -> tuple[str, ...]:
    """What was typed for a run, without its seed and its folder."""
    path = run_dir / ".hydra" / "overrides.yaml"
    words: list[str] = (yaml.safe_load(path.read_text()) or []) if path.exists() else [run_dir.parent.name]
    own = ("seed", "name", "run_dir", "ckpt_path")  # of one run of an arm
    return tuple(sorted(word for word in words if word.lstrip("+").split("=")[0] not in own))


def named(found: Mapping[tuple[str, ...], Arm]) -> dict[str, Arm]:
    """The arms by what tells them apart: the words that not all of them share."""
    shared = set.intersection(*map(set, found))
    names = {words: " ".join(w for w in words if w not in shared) for words in found}
    return {(name.removeprefix("selector=") or "all runs"): found[words] for words, name in sorted(names.items())}


def course(run: RunSummary, prices: UnitPrices | None) -> Course:
    """What a run had spent and reached at the start and after each evaluated round; labeling takes no seconds here.

    A label that another run had bought into a shared ledger counts as bought: the order of runs does not matter.
    """
    spent = [(0, 0, 0.0), *(costs_of(played, without=("label", "evaluate")) for played in run.evaluated)]
    bought, tokens, seconds = (tuple(map(float, amounts)) for amounts in zip(*spent, strict=True))
    reused = [0, *(played["labels"]["reused"] for played in run.evaluated)]
    labels = tuple(b + r for b, r in zip(bought, reused, strict=True))
    costs = {"labels": labels, "tokens": tokens, "seconds": seconds}
    if prices:
        costs["money"] = tuple(n * prices.label + s / 3600 * prices.hour for n, s in zip(labels, seconds, strict=True))
    evaluations = [run.start, *(played["evaluation"] for played in run.evaluated)]
    rewards = [e.get("reward") for e in evaluations]
    if None in rewards:  # the labeler only compares: against the start, which ties with itself
        rewards = [0.5, *(e["win_rate"] for e in evaluations[1:])]
    return Course(costs, tuple(map(float, rewards)))


def write_comparison(comparison: Comparison, sweep_dir: str | Path) -> Path:
    """Write `compare.csv`, `compare.png` and the returned `compare.html` into the folder of a sweep."""
    folder = Path(sweep_dir)
    drawing = draw(comparison)
    with replacing(folder / "compare.png") as unfinished:
        unfinished.write_bytes(drawing)
    with replacing(folder / "compare.csv") as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arm", "seed", "evaluation", *comparison.costs, "quality"))
        for name, arm in comparison.arms.items():
            for seed, run in sorted(arm.items()):
                rows = zip(*(run.spent[cost] for cost in comparison.costs), run.quality, strict=True)
                writer.writerows((name, seed, number, *row) for number, row in enumerate(rows))
    write_page(
        "compare.html.j2",
        folder / "compare.html",
        title=f"Choosy comparison {folder.resolve().name}",
        comparison=comparison,
        picture=base64.b64encode(drawing).decode(),
        share=as_share,
    )
    return folder / "compare.html"


def draw(comparison: Comparison) -> bytes:
    """Draw the mean reward of each arm against each cost, with a band of one standard error, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter

    costs = comparison.costs[::-1]
    figure = Figure(figsize=(4.4 * len(costs), 4.4), layout=ConstrainedLayoutEngine(wspace=0.04))
    axes = figure.subplots(1, len(costs), sharey=True)
    ordered = [comparison.baseline, *(name for name in comparison.arms if name != comparison.baseline)]
    for column, cost in enumerate(costs):
        for number, name in enumerate(ordered):
            _draw_arm(
                axes[column], list(comparison.arms[name].values()), cost, name, ARM_COLORS[number % len(ARM_COLORS)]
            )
        axes[column].set_xlabel(cost)
        axes[column].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[column].grid(color="#e5e7eb", linewidth=0.8)
        axes[column].spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out reward (or win rate)")
    axes[0].legend(frameon=False, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    return drawn.getvalue()


def _draw_arm(axes: Any, courses: Sequence[Course], cost: str, name: str, color: str) -> None:
    amounts, mean = mean_course(courses, cost)
    axes.plot(amounts, mean, color=color, linewidth=2, label=f"{name}, {len(courses)} seed{'s' * (len(courses) > 1)}")
    if len(courses) > 1:
        each = np.array([np.interp(amounts, one.spent[cost], one.quality) for one in courses])
        error = each.std(axis=0, ddof=1) / math.sqrt(len(courses))
        axes.fill_between(amounts, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
