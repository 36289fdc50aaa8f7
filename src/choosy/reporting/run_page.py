"""Puts together the figures of a run's page, each with its interval or the number of what it is of."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from choosy.labeling.statistics import as_money
from choosy.reporting.charts import Chart, Point, line_chart, ridge_chart, scatter_chart
from choosy.reporting.choices import Choice
from choosy.reporting.courses import Z95, Interval
from choosy.reporting.display import PHASES, duration
from choosy.reporting.summary import COSTS, MEASURES, OF_JUDGE, OF_PAIRS, TRAINING, RunSummary, as_text
from choosy.reporting.sweeps import judged_by, words_of

MOST_ROWS, MOST_CLOUDS, MOST_DOTS = 12, 6, 400  # rounds of a ridge, clouds, dots of a cloud
MOST_POINTS = 100  # of a curve
MOST_RUNS = 6  # which colors and dashes tell apart
AT_EQUAL_LENGTHS = {"win_rate_lc": ("win rate at equal lengths", ".0%")}
MEANS = ("parts/", "sources/")  # of parts of the reward, and of the prompts of each source
DRAWN = tuple(name for name in MEASURES if name != "ties")


class Stage(NamedTuple):
    """The start or a round of a run: what was measured in it, what was spent by then, items that it trained on."""

    name: str
    measured: Mapping[str, float | None]
    costs: tuple[int, int, float]
    items: int


class Tile(NamedTuple):
    """A figure at the top of the page, what it is, and its interval or number."""

    value: str
    label: str
    note: str = ""


def stages(run: RunSummary) -> list[Stage]:
    """The start, if it was measured, and each round, with the means of its training."""
    played = [{}] * (len(run.stages) - len(run.rounds)) + [one.get("trained") or {} for one in run.rounds]
    trained = [0] * (len(run.stages) - len(run.rounds)) + spent(run, "pairs_trained")
    return [
        Stage(name, {**training, **measured}, costs, items)
        for (name, measured, costs), training, items in zip(run.stages, played, trained, strict=True)
    ]


def spent(run: RunSummary, *path: str) -> list[Any]:
    """What each round added to a count that is kept since the start."""

    def at(about: Any) -> Any:
        for key in path:
            about = (about or {}).get(key)
        return about or 0

    return [now - before for before, now in pairwise([0, *map(at, run.rounds)])]


# -- intervals -------------------------------------------------------------------------------------------------


def interval_of(measured: Mapping[str, float | None], name: str) -> Interval:
    """A measure with its 95 % interval; nan where one is not known.

    Example:
        >>> value, low, high = interval_of({"kl": 2.0, "kl_error": 0.5}, "kl")
        >>> value, round(low, 2), round(high, 2)
        (2.0, 1.02, 2.98)
    """
    value, low, high, error = (measured.get(f"{name}{end}") for end in ("", "_low", "_high", "_error"))
    if value is None:
        return Interval(math.nan)
    if low is not None and high is not None:
        return Interval(value, low, high)
    return Interval(value) if error is None else Interval(value, value - Z95 * error, value + Z95 * error)


def spread(run: RunSummary, stage: Stage, name: str) -> str:
    """Write the interval of a measure, or of how many numbers it is; "" if neither is known."""
    found = interval_of(stage.measured, name)
    if math.isnan(found.value):
        return ""
    if not math.isnan(found.low):
        return found.ends(MEASURES.get(name, ("", ".0%"))[1])
    n = number_of(run, stage, name)
    return f"n = {n:,.0f}" if n else ""


def number_of(run: RunSummary, stage: Stage, name: str) -> float | None:
    """Of how many answers, pairs or items a measure is; None if that is not known."""
    if name in TRAINING:
        return stage.items
    if name in OF_PAIRS:
        return stage.measured.get("pairs")
    return stage.measured.get("judged") if name in ("win_rate", "win_rate_lc", "ties") else len(run.answers)


def gain(run: RunSummary) -> Interval:
    """How much the reward of the same held-out prompts has grown since the start, with its 95 % interval."""
    answers = [(a.reward_before, a.reward_after) for a in run.answers]
    grown = [after - before for before, after in answers if before is not None and after is not None]
    if len(grown) < 2:
        return Interval(math.nan)
    half = Z95 * statistics.stdev(grown) / math.sqrt(len(grown))
    return Interval(mean := statistics.fmean(grown), mean - half, mean + half)


# -- parts of the page -----------------------------------------------------------------------------------------


def tiles(run: RunSummary) -> Iterator[Tile]:
    """Yield the figures at the top of the page."""
    every, (grown, low, high) = stages(run), gain(run)
    last = {name: stage for stage in every for name, value in stage.measured.items() if value is not None}
    hidden = {"ties"} | ({"train_loss"} if run.evaluated or run.start else set())
    headings = {"reward": MEASURES["reward"], "win_rate": MEASURES["win_rate"], **AT_EQUAL_LENGTHS, **MEASURES}
    for name, (heading, form) in headings.items():
        if name not in last or name in hidden:
            continue
        values = [stage.measured[name] for stage in every if stage.measured.get(name) is not None]
        first = [] if name in ("win_rate", "win_rate_lc", "kl", "log_ratio") else values[:-1][:1]
        shown = " → ".join(as_text(value, form) for value in (*first, values[-1]))
        note = spread(run, last[name], name)
        if name == "reward" and not math.isnan(grown):
            note = f"gain {grown:+{form}} ({low:+{form}} to {high:+{form}})"
        yield Tile(shown, heading if name in TRAINING else f"held-out {heading}", note)
    numbers = run.numbers()
    labels, money = numbers["labels"], numbers["money"]
    yield Tile(f"{labels['spent']:,}", f"labels {run.bought}", f"{labels['reused']:,} reused")
    if money.get("spent"):
        each = f"{as_money(money['spent'] / labels['spent'])} each" if labels["spent"] else ""  # edits alone cost some
        yield Tile(as_money(money["spent"]), "spent on labels", each)
    if numbers["tokens_generated"]:
        yield Tile(f"{numbers['tokens_generated']:,}", "tokens generated")
    rounds = f"in {len(run.rounds)} of {run.latest['rounds']} rounds"
    yield Tile(duration(numbers["seconds"]["total"]), "after start-up", rounds)


def settings_table(runs: Mapping[str, RunSummary], shown: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The settings of each run by name: the main ones, the seed, and what was typed for some run and not for others."""
    typed = [dict(word.lstrip("+").partition("=")[::2] for word in words_of(run.folder) or ()) for run in runs.values()]
    table = {name: tuple(of.get(name, "") for of in shown) for name in dict.fromkeys(n for of in shown for n in of)}
    table["seed"] = tuple(str(run.latest["seed"]) for run in runs.values())
    table["rounds"] = tuple(f"{len(run.rounds)} of {run.latest['rounds']}" for run in runs.values())
    if len(runs) > 1:
        names = sorted({name for of in typed for name in of} - {"run_dir", "name", "ckpt_path", "overwrite"} - {*table})
        others = {name: tuple(of.get(name, "–") for of in typed) for name in names}
        table |= {name: values for name, values in others.items() if len(set(values)) > 1}
    return table


def measured_otherwise(run: RunSummary, other: RunSummary) -> bool:
    """Whether another run has another judge or other held-out data, so that its figures cannot be compared."""
    return other is not run and judged_by(run.folder) != judged_by(other.folder)


def looks_of(measure: str) -> tuple[str, str]:
    """What a measure is called, and how it is written; the mean of a part of the reward, or of a source, by name."""
    heading, form = MEASURES.get(measure, (measure.replace("/", ": "), ".2f"))
    return heading if measure in TRAINING else f"held-out {heading}", form


def curve_charts(runs: Mapping[str, RunSummary]) -> dict[str, list[Chart]]:
    """By the cost on the horizontal axis, a chart of each measure, with a line for each run."""
    first, *_ = runs.values()
    apart = {name for name, run in runs.items() if measured_otherwise(first, run)}
    every = {name: _from_the_start(run) for name, run in runs.items()}
    known = {n: None for s in every[next(iter(runs))] for n, value in s.measured.items() if value is not None}
    measures = [*(name for name in DRAWN if name in known), *(name for name in known if name.startswith(MEANS))]

    def points(name: str, measure: str, cost: int) -> list[Point]:
        if name in apart and (measure in (*OF_JUDGE, *OF_PAIRS) or measure.startswith(MEANS)):
            return []
        known = [stage for stage in every[name] if stage.measured.get(measure) is not None]
        some = evenly(known, MOST_POINTS)
        return [Point(stage.costs[cost], *interval_of(stage.measured, measure)) for stage in some]

    return {
        cost: [
            line_chart(
                looks_of(measure)[0],
                cost,
                looks_of(measure)[1],
                {name: points(name, measure, COSTS.index(cost)) for name in runs},
            )
            for measure in measures
        ]
        for cost in first.spent_on
    }


def _from_the_start(run: RunSummary) -> list[Stage]:
    """The stages of a run; at the start the win rate is one half, and the KL is 0."""
    every = stages(run)
    if not run.evaluated:
        return every
    if not run.start:
        every.insert(0, Stage("start", {}, (0, 0, 0.0), 0))
    start = {
        name: value for name, value in {"win_rate": 0.5, "kl": 0.0, "log_ratio": 0.0}.items() if name in run.measures
    }
    return [every[0]._replace(measured={**start, **every[0].measured}), *every[1:]]


def rounds_table(run: RunSummary) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """The headings, and for each stage its cells: a text, and its interval or number."""
    every = stages(run)
    measures = [name for name in MEASURES if any(stage.measured.get(name) is not None for stage in every)]
    rows = []
    for stage in every:
        cells = [(as_text(stage.measured.get(name), MEASURES[name][1]), spread(run, stage, name)) for name in measures]
        costs = zip(COSTS, stage.costs, strict=True)
        rows.append([(stage.name, ""), *cells, *((f"{cost:,.0f}", "") for name, cost in costs if name in run.spent_on)])
    return ["round", *(MEASURES[name][0] for name in measures), *run.spent_on], rows


def ridges(choices: Sequence[Choice]) -> list[Chart]:
    """The rewards and the gaps of each round as histograms."""
    some = evenly(choices, MOST_ROWS)
    kinds = {"rewards of the responses": "rewards", "reward gaps of the pairs": "gaps"}
    rows = {title: {f"round {c.round + 1}": getattr(c, name) for c in some} for title, name in kinds.items()}
    charts = [
        ridge_chart(title, kinds[title][:-1].replace("gap", "reward gap"), of)
        for title, of in rows.items()
        if any(map(len, of.values()))
    ]
    for chart in charts:
        chart.note = f"{len(some)} of {len(choices)} rounds." if len(some) < len(choices) else ""
    return charts


def clouds(choices: Sequence[Choice]) -> list[Chart]:
    """Draw the utilities of what each round chose against what came of it, unless all are equal, as by chance."""
    charts = []
    unequal = [c for c in choices if len({utility for utility, _ in c.utilities}) > 1]
    for choice in evenly(unequal, MOST_CLOUDS):
        some, found = evenly(choice.utilities, MOST_DOTS), choice.correlation
        note = f"{correlation_text(found)}, n = {len(choice.utilities):,}"
        note += f", {len(some):,} of them drawn" if len(some) < len(choice.utilities) else ""
        charts.append(
            scatter_chart(
                f"round {choice.round + 1}: {choice.outcome} by utility", "utility", choice.outcome, some, note
            )
        )
    return charts


def correlation_text(found: Interval) -> str:
    """Write a rank correlation with its interval."""
    if math.isnan(found.value):
        return "no rank correlation"
    known = found.ends(".2f")
    return f"ρ = {found.value:.2f}" + (f" ({known})" if known else "")


def choices_table(choices: Sequence[Choice]) -> list[tuple[str, ...]]:
    """For each round what it sampled and chose, and the means of utilities and of gaps as text."""

    def mean(values: Sequence[float] | np.ndarray) -> str:
        return f"{np.mean(values):.3g}" if len(values) else "–"

    return [
        (
            str(c.round + 1),
            *(f"{n:,}" for n in (c.prompts, len(c.rewards), c.pairs, c.undecided)),
            mean([utility for utility, _ in c.utilities]),
            mean(c.gaps),
            correlation_text(c.correlation) if c.utilities else "–",
        )
        for c in choices
    ]


def money_table(run: RunSummary) -> tuple[list[str], list[tuple[str, ...]]]:
    """The headings, and for each round and for all the labels that were bought and their price, evaluation apart."""
    columns: dict[str, list[Any]] = {
        "labels": spent(run, "labels", "spent"),
        "reused": spent(run, "labels", "reused"),
        "ties": spent(run, "judged", "run", "ties"),
        "invalid": spent(run, "judged", "run", "invalid"),
        "price": spent(run, "money", "spent"),
        "evaluation labels": spent(run, "labels", "evaluation"),
        "evaluation price": spent(run, "money", "evaluation"),
    }
    both = zip(columns["price"], columns["labels"], strict=True)
    columns["price of one"] = [price / n if n else 0.0 for price, n in both]
    order = ("labels", "reused", "ties", "invalid", "price", "price of one", "evaluation labels", "evaluation price")
    wanted = [name for name in order if name == "labels" or any(columns[name])]
    totals = {name: math.fsum(values) for name, values in columns.items()}
    totals["price of one"] = totals["price"] / totals["labels"] if totals["labels"] else 0.0
    rows = [
        (str(played["round"] + 1), *(_amount(name, columns[name][at]) for name in wanted))
        for at, played in enumerate(run.rounds)
    ]
    return ["round", *wanted], [*rows, ("all", *(_amount(name, totals[name]) for name in wanted))]


def _amount(name: str, value: float) -> str:
    return as_money(value) if "price" in name else f"{value:,.0f}"


def seconds_table(run: RunSummary) -> tuple[list[str], list[tuple[str, ...]]]:
    """The headings, and for each round and for all the time of each phase."""
    phases = {phase: spent(run, "seconds", phase) for phase in PHASES}
    phases = {phase: values for phase, values in phases.items() if any(values)}
    phases["all"] = [math.fsum(of) for of in zip(*phases.values(), strict=True)] or [0.0] * len(run.rounds)
    rows = [
        (str(played["round"] + 1), *(duration(values[at]) for values in phases.values()))
        for at, played in enumerate(run.rounds)
    ]
    return ["round", *phases], [*rows, ("all", *(duration(math.fsum(values)) for values in phases.values()))]


def loading_code(run: RunSummary) -> tuple[str, str]:
    """The folder of the tuned model, and the lines of its card that load it; both "" where there is no card."""
    for name in ("adapter", "model"):
        card = run.folder / name / "README.md"
        if card.is_file() and (code := re.search(r"```python\n(.*?)\n```", card.read_text("utf-8"), re.DOTALL)):
            return name, code[1]
    return "", ""


def names_of(folders: Sequence[Path]) -> list[str]:
    """What each run is called: the end of its path, as long as tells them apart; the number of a job is no name.

    Example:
        >>> names_of([Path("runs/a"), Path("runs/b")]), names_of([Path("one/a"), Path("two/a")])
        (['a', 'b'], ['one/a', 'two/a'])
    """
    longest = max(len(folder.parts) for folder in folders)
    for depth in range(1 + any(folder.name.isdigit() for folder in folders), longest + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len({*names}) == len({*folders}):
            break
    return names


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced, the first and the last among them.

    Example:
        >>> evenly(range(10), 4), evenly("ab", 4)
        ([0, 3, 6, 9], ['a', 'b'])
    """
    if len(items) <= most:
        return [*items]
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]
