"""Reports a run, on the terminal or as a page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from choosy.console import Terminal, console
from choosy.data.heldout import heldout_source
from choosy.foreign import visible
from choosy.models.locate import shown_name
from choosy.options.typed import in_the_shell, program, quoted
from choosy.reporting.choices import choices_of
from choosy.reporting.curves import CURVES
from choosy.reporting.display import PHASES, duration
from choosy.reporting.pages import write_page
from choosy.reporting.run_page import (
    MOST_RUNS,
    choices_table,
    clouds,
    curve_charts,
    loading_code,
    measured_otherwise,
    money_table,
    names_of,
    ridges,
    rounds_table,
    seconds_table,
    settings_table,
    tiles,
)
from choosy.reporting.shown_prompts import SPLITS, shown_prompts
from choosy.reporting.summary import LEARNED, MEASURES, RunSummary
from choosy.reporting.sweeps import OF_ONE_RUN, config_of, early_stoppers, values_of, words_of

PHASE_COLORS = dict(zip(PHASES, ("#2563eb", "#0891b2", "#7c3aed", "#db2777", "#d97706", "#65a30d"), strict=True))


def print_report(run: RunSummary, out: Terminal | None = None) -> None:
    """Print held-out answers before and after, the rounds, the time, and where everything is."""
    out = out or console()
    width = min(out.width, 132)
    if run.answers:
        out.print(_answers_table(run, width))
    out.print(Text(run.headline, "bold"), soft_wrap=True)  # a table would fold it to its own width
    out.print(_rounds_table(run))
    if run.notes:
        out.print(Text(run.notes, "dim"), soft_wrap=True)
    seconds = run.phase_seconds()
    total = math.fsum(seconds.values())
    out.print(Text.assemble((duration(total), "bold"), f" after start-up  {run.costs}"))
    if run.full_costs:
        out.print(run.full_costs)
    room = width - len(seconds)
    out.print(Text.assemble(*(("━" * round(s / total * room), PHASE_COLORS[phase]) for phase, s in seconds.items())))
    parts = [Text.assemble(("●", PHASE_COLORS[phase]), f" {phase} {duration(s)}") for phase, s in seconds.items()]
    out.print(Columns(parts, padding=(0, 2)), "")
    out.print(Text.assemble("Left behind in ", (str(run.folder), "bold")), soft_wrap=True)
    widest = max(map(len, run.contents), default=0)
    for name, what in run.contents.items():
        link = (run.folder / name).resolve().as_uri()  # to click on, in terminals that know links
        out.print(Text.assemble("  ", (f"{name:{widest}}", f"link {link}"), (f"  {what}", "dim")))
    if lines := [*next_lines(run)]:
        out.print("Next:")
    for line in lines:
        out.print(f"  {line}", soft_wrap=True)


def next_lines(run: RunSummary) -> Iterator[str]:
    """Yield what may be typed after a run, word for word, in the folder in which it was played."""
    file, folder = run.folder / "config.yaml", shlex.quote(str(run.folder))
    config, choosy = config_of(run.folder), shlex.quote(program("choosy"))
    if run.finished and {"adapter", "model"} & run.contents.keys() and "evaluation" in config:
        yield f"{choosy} chat {folder}"
        data = config["data"]
        data["heldout"] = heldout_source(data["train"], data.get("heldout"))
        name = next(name for name in ("heldout", "heldout_pairs", "train") if data.get(name))
        source = data[name]
        one = source if isinstance(source, str) else next(iter(source))
        known = "trained on" if name == "train" else "reported above"
        yield f"{choosy} eval {folder} {shlex.quote(one)}  # type a file of other prompts: this one is {known}"
    why, more = ("for more rounds", [f"rounds={2 * len(run.rounds)}"]) if run.finished else ("to continue", [])
    words = words_of(run.folder)
    if words is not None:
        if run.stopped_early:
            why, more = "for the other rounds", [f"callbacks.{name}=null" for name in early_stoppers(config)]
        own = (*OF_ONE_RUN, *(["rounds"] if run.finished and not run.stopped_early else []))
        kept = [word for word in words if word.lstrip("+").split("=")[0] not in own]
        typed = [*in_the_shell(kept), f"run_dir={quoted(str(run.folder))}", *more, "ckpt_path=last"]
        again = [program("choosy"), "train", *typed]
        yield f"{shlex.join(again)}  # {why}"
    elif "labels" in config:  # `choosy fit` has played it
        again = [program("choosy"), "fit", "--config", str(file), *(f"--{word}" for word in (*more, "ckpt_path=last"))]
        yield f"{shlex.join(again)}  # {why}"


def _answers_table(run: RunSummary, width: int) -> Table:
    shown = run.answers[:5]
    some = f", {len(shown)} of {len(run.answers)}" if len(shown) < len(run.answers) else ""
    table = Table(title=f"The same prompts, before and after{some}", box=box.SIMPLE_HEAD, width=width)
    for name, ratio in (("prompt", 3), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio)
    for answer in shown:
        before, after = (f"{mark}\n" if mark else "" for mark in answer.marks)
        color = {"up": "green", "down": "red", "": "dim"}[answer.trend]
        table.add_row(
            Text(crop(answer.prompt, 120), "dim"),
            Text.assemble((before, "dim"), crop(answer.before, 200)),
            Text.assemble((after, color), crop(answer.after, 200)),
            end_section=True,
        )
    return table


def _rounds_table(run: RunSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    styles = {MEASURES[name][0]: color for name, color in CURVES.items()}
    rows = run.table()
    for name, cells in zip(run.headings, zip(*rows, strict=True), strict=True):
        widest = max(map(len, cells))  # a heading may take two lines, a number may not be cut
        table.add_column(name, justify="left" if name == "round" else "right", style=styles.get(name), min_width=widest)
    for row in rows:
        table.add_row(*row)
    return table


def crop(text: str, length: int) -> str:
    r"""Return the beginning of a text on one line, cut between words, without what could steer a terminal.

    Example:
        >>> crop("The film\x1b[31m was\n\nvery good indeed", 28)
        'The film\\x1b[31m was very …'
    """
    line = visible(" ".join(text.split()))
    if len(line) <= length:
        return line
    words, space, _ = line[: length - 1].rpartition(" ")
    return (words if space else line[: length - 2]) + " …"


def write_report(run: RunSummary, *others: RunSummary) -> None:
    """Write `report.html`, which needs no other file and no network, into the folder of a run.

    Args:
        run: The run.
        others: Runs whose curves and settings the page shows beside those of the run.

    Raises:
        ValueError: There are more runs than colors and dashes tell apart.
    """
    if len(others) >= MOST_RUNS:
        raise ValueError(
            f"A report shows {MOST_RUNS} runs or fewer beside each other, found {1 + len(others)}; type fewer, or "
            "choosy compare SWEEP_DIR for the runs of a sweep."
        )
    runs = dict(zip(names_of([one.folder.resolve() for one in (run, *others)]), (run, *others), strict=True))
    choices, (prompts, left_out), loading = choices_of(run), shown_prompts(run), loading_code(run)
    words = words_of(run.folder)
    write_page(
        "report.html.j2",
        run.folder / "report.html",
        run=run,
        title=f"Choosy run {next(iter(runs))}",
        tiles=[*tiles(run)],
        runs=runs,
        apart=[name for name, other in runs.items() if measured_otherwise(run, other)],
        settings=settings_table(runs, [shown_settings(one.folder) for one in runs.values()]),
        typed="" if words is None else shlex.join(["choosy", "train", *in_the_shell(words)]),
        panels=curve_charts(runs),
        rounds=rounds_table(run),
        learned_headings=LEARNED,
        ridges=ridges(choices),
        choices=choices_table(choices),
        clouds=clouds(choices),
        money=money_table(run),
        seconds=seconds_table(run),
        bar=run.phase_seconds(),
        colors=PHASE_COLORS,
        prompts=prompts,
        left_out=left_out,
        splits=SPLITS,
        loading=loading,
        hidden=[name for name, there in {"prompts": prompts, "load": loading[0]}.items() if not there],
    )


def shown_settings(run_dir: Path) -> dict[str, str]:
    """What a reader first asks of a run: its model, what labeled, chose, weighted and trained it."""
    found = values_of(run_dir, ("model.name", "labeler", "selector", "loss", "weighting", "lr"))
    model = found.pop("model.name")
    return {name: value for name, value in {"model": model and shown_name(model), **found}.items() if value}
