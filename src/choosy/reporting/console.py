"""Prints what a person wants to see when a run ends."""

from __future__ import annotations

import math

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choosy.reporting.display import duration
from choosy.reporting.page import COLORS, REWARD, WIN_RATE
from choosy.reporting.summary import HEADINGS, RunSummary, as_text


def print_report(run: RunSummary, out: Console | None = None) -> None:
    """Print held-out answers before and after, the rounds, the time, and where everything is."""
    out = out or Console(highlight=False)
    width = min(out.width, 132)
    if run.answers:
        out.print(_answers_table(run, width))
    out.print(_rounds_table(run))
    seconds = run.phase_seconds()
    total = math.fsum(seconds.values())
    out.print(Text.assemble((f"{duration(total)}  ", "bold"), run.costs))
    room = width - len(seconds)
    out.print(Text.assemble(*(("━" * round(s / total * room), COLORS[phase]) for phase, s in seconds.items())))
    parts = [Text.assemble(("●", COLORS[phase]), f" {phase} {duration(s)}") for phase, s in seconds.items()]
    out.print(Columns(parts, padding=(0, 2)), "")
    out.print(Text.assemble("Left behind in ", (str(run.folder), "bold")), soft_wrap=True)
    for name, what in run.contents.items():
        link = (run.folder / name).resolve().as_uri()  # to click on, in terminals that know links
        out.print(Text.assemble("  ", (f"{name:14}", f"link {link}"), (what, "dim")))


def _answers_table(run: RunSummary, width: int) -> Table:
    table = Table(title="The same prompts, before and after", box=box.SIMPLE_HEAD, width=width)
    for name, ratio in (("prompt", 3), ("before", 4), ("after", 4)):
        table.add_column(name, ratio=ratio)
    for answer in run.answers[:5]:
        before, after = as_text(answer.reward_before, "+.2f"), as_text(answer.reward_after, "+.2f")
        color = {"up": "green", "down": "red", "": "dim"}[answer.trend]
        table.add_row(
            Text(crop(answer.prompt, 120), "dim"),
            Text.assemble((before, "dim"), "\n", crop(answer.before, 200)),
            Text.assemble((f"{after} {answer.verdict}", color), "\n", crop(answer.after, 200)),
            end_section=True,
        )
    return table


def _rounds_table(run: RunSummary) -> Table:
    table = Table(title=run.headline, box=box.SIMPLE_HEAD, pad_edge=False)
    styles = {"reward": REWARD, "win rate": WIN_RATE}
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "round" else "right", style=styles.get(name))
    for row in run.table():
        table.add_row(*row)
    return table


def crop(text: str, length: int) -> str:
    r"""Return the beginning of a text on one line, cut between words, without what could steer a terminal.

    Example:
        >>> crop("The film\x1b[31m was\n\nvery good indeed", 24)
        'The film [31m was very …'
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if len(line) <= length:
        return line
    words, space, _ = line[: length - 1].rpartition(" ")
    return (words if space else line[: length - 2]) + " …"
