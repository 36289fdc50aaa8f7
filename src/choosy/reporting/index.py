"""Lists the finished runs of a sweep: what varied, what each reached and spent, means over seeds."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from choosy.console import Terminal, console
from choosy.files import replacing
from choosy.foreign import csv_text
from choosy.options.typed import program
from choosy.reporting.folders import run_folders
from choosy.reporting.pages import write_page
from choosy.reporting.summary import MEASURES, OF_PAIRS, as_spread, as_text
from choosy.reporting.sweeps import OF_ONE_RUN, judged_by, values_of, warn_of_few_seeds, words_of
from choosy.sealed import read_json

COURSES = ("reward", *OF_PAIRS)  # measured at the start too
QUALITIES = ("reward", "win_rate", "accuracy")  # the first that was measured decides which is best
MOST_COLUMNS = 6  # of options that vary, all of which index.csv has
COSTS = ("labels", "tokens", "seconds")


class Means(NamedTuple):
    """The runs that differ in their seeds only.

    Attributes:
        options: Their values of the options that vary.
        jobs: Their folders, the best first.
        measures: The last value of each measure in each of them.
    """

    options: tuple[str, ...]
    jobs: tuple[str, ...]
    measures: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Index:
    """The finished runs of a sweep.

    Attributes:
        folder: The folder of the sweep.
        options: The names of the options that vary, and the seed.
        measures: What some run has measured.
        jobs: A row for each run: its folder, its options, its measures and costs.
        judges: For each run who has judged it, on which data.
    """

    folder: Path
    options: tuple[str, ...]
    measures: tuple[str, ...]
    jobs: tuple[Mapping[str, Any], ...]
    judges: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """The options that vary, besides the seed."""
        return tuple(name for name in self.options if name != "seed")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in which the options are shown: one each, or one for all where they are many."""
        return self.arms if len(self.arms) <= MOST_COLUMNS else ("settings",)

    def cells(self, options: Sequence[str]) -> tuple[str, ...]:
        """What these columns show of the options of a run."""
        return tuple(options) if self.columns == self.arms else (self.setting(options),)

    def setting(self, options: Sequence[str]) -> str:
        """The options of a run as they are typed; where they are many, those that most runs do not have."""
        usual = [statistics.mode(self.values(job)[at] for job in self.jobs) for at in range(len(self.arms))]
        own = zip(self.arms, options, usual, strict=True)
        return " ".join(f"{name}={v}" for name, v, others in own if self.columns == self.arms or v not in ("", others))

    def values(self, job: Mapping[str, Any]) -> tuple[str, ...]:
        """The options of a run that vary, besides the seed."""
        return tuple(str(job[name]) for name in self.arms)

    @property
    def quality(self) -> str:
        """The measure that says which is best; "" if nothing was judged."""
        return next((name for name in QUALITIES if name in self.measures), "")

    @property
    def means(self) -> list[Means]:
        """The runs of each setting, the best setting first."""
        found: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
        for judge, job in zip(self.judges, self.jobs, strict=True):
            found[judge, *self.values(job)].append(job)
        quality = last_of(self.quality) if self.quality else "labels"

        def best_first(job: Mapping[str, Any]) -> float:
            return -(job[quality] if job[quality] is not None else float("-inf"))

        def of_group(options: tuple[str, ...], jobs: list[Mapping[str, Any]]) -> Means:
            names = (*self.measures, "labels")
            values = {n: [job[last_of(n)] for job in jobs if job[last_of(n)] is not None] for n in names}
            return Means(options[1:], tuple(job["job"] for job in sorted(jobs, key=best_first)), values)

        groups = [of_group(*group) for group in found.items()]
        if not self.quality:
            return groups
        ranked = zip(found, groups, strict=True)
        return [each for _, each in sorted(ranked, key=lambda one: (one[0][0], -mean(one[1].measures[self.quality])))]

    @property
    def best(self) -> str:
        """Which setting and which run reached most, in a sentence; "" if nothing was judged."""
        if not self.quality:
            return ""
        if others := sorted({*self.judges})[1:]:
            return (
                f"No run is called best: here are {len(others) + 1} labelers or held-out data, such as "
                f"{min(self.judges)} and {others[0]}, whose numbers cannot be compared; type choosy index on a folder "
                "with one."
            )
        name, form = MEASURES[self.quality]
        means = self.means
        reached = mean(means[0].measures[self.quality])
        best = [each for each in means if mean(each.measures[self.quality]) == reached]
        typed = " and ".join(self.setting(each.options) for each in best)
        if len(best) > 1:
            return f"Best: {typed}, with the same {name} of {as_text(reached, form)}."
        runs = f"{len(best[0].jobs)} run{'s' * (len(best[0].jobs) > 1)}"
        spread = f"{name} {as_spread(best[0].measures[self.quality], form)} in {runs}"
        found = f"Best: {typed + ': ' if typed else ''}{spread}, the best of them {self.folder / best[0].jobs[0]}."
        return f"{found} {warn_of_few_seeds(len(best[0].jobs))}".strip() if len(means) > 1 else found

    @property
    def headings(self) -> dict[str, str]:
        """The headings of the measures."""
        return {name: ("held-out " if name in self.arms else "") + MEASURES[name][0] for name in self.measures}

    def print(self, out: Terminal | None = None) -> None:
        """Print the mean and the standard deviation of each setting over its seeds, the best, and what to type next."""
        out = out or console()
        if self.best:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            left = (*self.columns, "best run")
            for name in (*left, "runs", *self.headings.values(), "labels"):
                table.add_column(name, justify="left" if name in left else "right")
            for each in self.means:
                cells = (as_spread(each.measures[name], MEASURES[name][1]) for name in self.measures)
                labels = as_spread(each.measures["labels"], ".0f")
                table.add_row(*self.cells(each.options), each.jobs[0], str(len(each.jobs)), *cells, labels)
            out.print(table)
            out.print(self.best, soft_wrap=True)
        out.print(f"All runs: {self.folder}/index.html", soft_wrap=True)
        if self.best and len(self.means) > 1 and len({*self.judges}) == 1:
            out.print(f"Next: {shlex.quote(program('choosy'))} compare {shlex.quote(str(self.folder))}", soft_wrap=True)


def mean(values: Sequence[float]) -> float:
    """The mean; minus infinity of no values."""
    return sum(values) / len(values) if values else float("-inf")


def last_of(measure: str) -> str:
    """The column with the last value of a measure."""
    return f"{measure}_final" if measure in COURSES else measure


def read_index(sweep_dir: str | Path) -> Index:
    """Read what the finished runs below a folder have left.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(sweep_dir)
    if not folder.is_dir():
        raise ValueError(f"Wanted the folder of a sweep; there is no folder {folder}.")
    finished = [run for run in run_folders(folder) if (run / "summary.json").exists()]
    runs = sorted(finished, key=lambda run: _by_number(run.name))
    reached = [measured(run / "summary.json") for run in runs]
    options = [
        {**varied, "seed": of_run.pop("seed")} for varied, of_run in zip(varying_options(runs), reached, strict=True)
    ]
    measures = tuple(name for name in MEASURES if any(row.get(last_of(name)) is not None for row in reached))
    columns = [c for n in measures for c in ((f"{n}_initial", last_of(n)) if n in COURSES else (n,))] + [*COSTS]
    jobs = tuple(
        {"job": run.relative_to(folder).as_posix(), **of_run, **{name: row[name] for name in columns}}
        for run, of_run, row in zip(runs, options, reached, strict=True)
    )
    return Index(folder, tuple(options[0] if options else ()), measures, jobs, tuple(map(judged_by, runs)))


def varying_options(runs: Sequence[Path]) -> list[dict[str, str]]:
    """For each run its values of the options that differ between the runs; the seed apart."""
    typed = [typed_options(run) for run in runs]
    names = dict.fromkeys(name for words in typed for name in words if name not in ("seed", *OF_ONE_RUN))
    found = [
        {**words, **values_of(run, [name for name in names if not words.get(name)])}
        for run, words in zip(runs, typed, strict=True)
    ]
    varying = [name for name in names if len({of_run[name] for of_run in found}) > 1]
    varying.sort(key=lambda name: name != "selector")
    return [{name: of_run[name] for name in varying} for of_run in found]


def typed_options(run_dir: Path) -> dict[str, str]:
    """What was typed for a run, by the name of the option."""
    pairs = (word.lstrip("+").partition("=") for word in words_of(run_dir) or ())
    return {name: value for name, _, value in pairs}


def measured(file: Path) -> dict[str, float | None]:
    """The seed, the measures and the costs in a summary.json."""
    summary = read_json(file)
    try:
        courses = {"reward": summary["reward"], **summary["heldout_pairs"]}
        found = {f"{name}_{when}": value for name, course in courses.items() for when, value in course.items()}
        costs = {"labels": summary["labels"]["spent"], "tokens": summary["tokens_generated"]}
        costs |= {"seconds": summary["seconds"]["total"], "seed": summary["seed"]}
        return {**found, "win_rate": summary["win_rate"], **costs}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: it does not hold the numbers of a run ({error}).") from error


def write_index(index: Index) -> None:
    """Write `index.csv` and `index.html` into the folder of the sweep."""
    with replacing(index.folder / "index.csv") as unfinished:
        table = csv_text(list(index.jobs[0]) if index.jobs else ["job"], index.jobs)
        unfinished.write_text(table, encoding="utf-8", newline="")
    write_page(
        "index.html.j2",
        index.folder / "index.html",
        title=f"Choosy sweep {index.folder.resolve().name}",
        index=index,
        forms={name: MEASURES[name][1] for name in index.measures},
        courses=COURSES,
        spread=as_spread,
    )


def _by_number(name: str) -> tuple[float, str]:
    return (int(name) if name.isdigit() else math.inf, name)
