"""Reports a run, on the terminal or as a page."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from choosy.console import Terminal, console
from choosy.data.heldout import heldout_source
from choosy.files import replacing
from choosy.foreign import visible
from choosy.models.locate import shown_name
from choosy.options.typed import in_the_shell, program, quoted
from choosy.reporting.display import PHASES, duration
from choosy.reporting.summary import LEARNED, MEASURES, TRAINING, RunSummary, as_text
from choosy.reporting.sweeps import OF_ONE_RUN, config_of, values_of, words_of

PHASE_COLORS = dict(zip(PHASES, ("#2563eb", "#0891b2", "#7c3aed", "#db2777", "#d97706", "#65a30d"), strict=True))
GRID, FRAME, INK = "#e5e7eb", "#9ca3af", "#4b5563"
COSTS = {"labels": "labels bought", "tokens": "tokens generated", "seconds": "seconds"}
CURVES = {"reward": "#2563eb", "win_rate": "#d97706", "accuracy": "#7c3aed", "train_accuracy": "#7c3aed"}


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
            why, more = "for the other rounds", ["callbacks.early_stopping=null"]
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


def write_report(run: RunSummary) -> None:
    """Write `curves.png` and `report.html`, which needs no other file and no network, into the folder of a run."""
    drawing, seconds, folder = curves(run), run.phase_seconds(), run.folder.resolve()
    with replacing(run.folder / "curves.png") as unfinished:
        unfinished.write_bytes(drawing)
    write_page(
        "report.html.j2",
        run.folder / "report.html",
        run=run,
        title=f"Choosy run {f'{folder.parent.name}/' if folder.name.isdigit() else ''}{folder.name}",
        settings=shown_settings(run.folder),
        headings=run.headings,
        learned_headings=LEARNED,
        curves=drawing,
        seconds=seconds,
        total=math.fsum(seconds.values()),
        colors=PHASE_COLORS,
    )


def shown_settings(run_dir: Path) -> dict[str, str]:
    """What a reader first asks of a run: its model, what labeled, chose, weighted and trained it."""
    found = values_of(run_dir, ("model.name", "labeler", "selector", "loss", "weighting", "lr"))
    model = found.pop("model.name")
    return {name: value for name, value in {"model": model and shown_name(model), **found}.items() if value}


def filled(template: str, **values: Any) -> str:
    """Fill a template in `templates/`."""
    pages = Environment(
        loader=PackageLoader("choosy.reporting"),
        autoescape=True,  # whatever a model wrote stays text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(as_text=as_text, duration=duration, base64=lambda data: base64.b64encode(data).decode())
    return pages.get_template(template).render(values)


def write_page(template: str, path: str | Path, **values: Any) -> None:
    """Fill a template in `templates/`, and write the page."""
    with replacing(path, private=True) as unfinished:
        unfinished.write_text(filled(template, **values), encoding="utf-8")


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
    spent = dict(zip(COSTS, zip(*(costs for _, costs in stages), strict=True), strict=True))
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
        axes[-1, column].set_xlabel(COSTS[cost], color=INK)
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
