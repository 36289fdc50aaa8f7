"""Run `choosy labels stats|export|import|check`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from choosy.console import Terminal, console
from choosy.files import for_owner
from choosy.labeling.exchange.rows import (
    FILE_FORMATS,
    INTERFACE,
    WRITERS,
    FileFormat,
    LabelRow,
    checked,
    exported,
    format_of,
    read_labels,
)
from choosy.labeling.ledger import Ledger
from choosy.labeling.ledger_check import check, fault, save
from choosy.labeling.run_ledger import ledger_of
from choosy.options.words import Words
from choosy.terminal import say
from choosy.types import MIRRORED


def export_labels(
    ledger: Ledger, path: str | Path, *, file_format: FileFormat | None = None, wanted: bool = False
) -> int:
    """Write all labels of a ledger into a new file, or the questions that its runs wait for.

    Its format goes by its name, .jsonl or .csv, unless it is given. Returns the number of rows.
    """
    path = Path(path)
    rows = [exported(row) for row in ledger.rows("wanted" if wanted else "labels")]
    text = WRITERS[file_format or format_of(path)](rows)
    try:
        with open(path, "x", encoding="utf-8", newline="", opener=for_owner) as file:
            file.write(text)
    except FileExistsError as error:
        raise ValueError(f"{path} exists already; name another file") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}); name a file in a folder that has room") from error
    return len(rows)


class Imported(NamedTuple):
    """Counts of a file's rows: labels that are new, labels that the ledger had, rows without an answer, bad rows."""

    added: int
    there: int
    unanswered: int
    bad: list[str]


def import_labels(
    path: str | Path,
    ledger: Ledger,
    *,
    file_format: FileFormat | None = None,
    labeler: str | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Write the labels of a file into a ledger, all or none; a label that the ledger has is not replaced.

    A row with the key of a question that a run waits for (`Ledger.rows("wanted")`) needs no more than an answer, and
    counts as a label that this run has bought.

    Args:
        file_format: Of the file, where its name does not tell; items of annotation tools are known by their content.
        labeler: Under whose name the labels are stored; None takes each row's own.
        skip_bad: Leave bad rows out, instead of an error that lists them all.
    """
    wanted = {row["key"]: row for row in ledger.rows("wanted")}
    fingerprints = {row["labeler"]: row["fingerprint"] for row in wanted.values()}  # the newest of each
    good: dict[str, tuple[str, LabelRow]] = {}
    bad: list[str] = []
    total = unanswered = 0
    for place, read in read_labels(Path(path), file_format):
        total += 1
        try:
            row = read()
            if row.get("verdict") is None and row.get("score") is None:
                unanswered += 1
                continue
            row = checked(row, wanted, fingerprints, labeler)
            earlier, same = good.setdefault(row["key"], (place, row))
            same_order = same["response_first"] == row["response_first"]
            verdict = same["verdict"] if same_order else MIRRORED[same["verdict"]]
            if (same["score"], verdict) != (row["score"], row["verdict"]):
                raise ValueError(f"asks the same as {earlier} and answers differently; keep one of the two")
        except ValueError as error:
            bad.append(f"{place}: {error}")
    if bad and not skip_bad:
        raise ValueError(
            f"{path}: {len(bad)} of {total} rows cannot be imported, and nothing was written:\n  "
            + "\n  ".join(bad)
            + "\nCorrect these, or leave them out with --skip-bad."
        )
    if not good:
        raise ValueError(f"{path} holds no label: none of its {total} rows has a verdict or a score")
    added = ledger.insert([row for _, row in good.values()])
    return Imported(added, len(good) - added, unanswered, bad)


def stats(ledger: Ledger, out: Terminal | None = None) -> None:
    """Print the labels, ties and money of each labeler and run, and how many labels are wanted."""
    out = out or console()
    labels, wanted = ledger.rows("labels"), ledger.rows("wanted")
    out.print(stats_table("Labelers", ("labeler", "fingerprint"), labels))
    out.print(stats_table("Runs", ("run", "purpose"), labels))
    out.print(f"{len(labels):,} labels, {len(wanted):,} wanted, in {ledger.path}")


def stats_table(title: str, by: tuple[str, str], labels: Sequence[LabelRow]) -> Table:
    """Build a table with one line for each group of labels that agree in two columns."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in (*by, "labels", "ties", "invalid", "first shown", "annotators", "money"):
        table.add_column(name, justify="left" if name in by else "right", overflow="fold")
    names_of = itemgetter(*by)
    for (who, what), rows in groupby(sorted(labels, key=names_of), names_of):
        group = list(rows)
        said = Counter(row["verdict"] for row in group)
        compared, decided = len(group) - said[None], said["first"] + said["second"]
        undecided = [f"{said[verdict]:,}" if compared else "–" for verdict in ("tie", "invalid")]
        shown = f"{said['first'] / decided:.0%}" if decided else "–"
        people = len({name for row in group for name in (row["annotator"] or "").split(", ")} - {""})
        money = sum(row["cost"] for row in group)
        what = what[:8]  # enough of a fingerprint, and all of a purpose
        table.add_row(who, what, f"{len(group):,}", *undecided, shown, f"{people:,}", f"{money:,.4f}")
    return table


def labels_parser() -> Words:
    """Build the parser of the command line."""
    parser = Words("choosy labels", description="Show, export, import and check the labels of a ledger.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shown = verbs.add_parser("stats", help="labels, ties and money of each labeler and run")
    out = verbs.add_parser("export", help="write the labels, or the questions that runs wait for, into a new file")
    into = verbs.add_parser("import", help="write the labels of a file into the ledger, all or none")
    read = verbs.add_parser("check", help="read every label, name those that are damaged, and save the others")
    for verb in (shown, out, into, read):
        verb.add_argument("ledger", metavar="LEDGER", help="the folder of a run, or a file such as labels.sqlite")
    for verb in (out, into):
        verb.add_argument("file", metavar="FILE", help="the file of labels")
        verb.add_argument("--format", choices=FILE_FORMATS, help="the form of the file, if its name does not say it")
    out.add_argument("--wanted", action="store_true", help="the questions that runs wait for, instead of the labels")
    into.add_argument("--labeler", help="the name to store them under, instead of each row's own")
    into.add_argument("--skip-bad", action="store_true", help="leave bad rows out, instead of refusing the file")
    read.add_argument("--save", metavar="NEW", help="the file of a new ledger for all labels that are whole")
    return parser


def check_ledger(path: Path, new: str | None) -> None:
    """Read every label of a ledger, say which are damaged, and save the others into a new one if it is named.

    Raises:
        ValueError: Something is damaged, and nothing was saved.
    """
    found, why = check(path), fault(path)
    for name in found.damaged:
        say(f"damaged: {name}")
    for name in found.damaged_rest:
        say(f"damaged: {name}, which holds no labels")
    say(f"{len(found.whole):,} labels are whole and {len(found.damaged):,} damaged in {path}")
    if new is not None:
        save(found, new)
        say(f"{len(found.whole):,} labels saved in {new}: type labels.ledger={new}")
    elif why is not None:
        raise ValueError(f"{path} {why}; save what is whole: choosy labels check {path} --save NEW.sqlite")


def labels_command(args: Sequence[str]) -> None:
    """Run `choosy labels stats|export|import|check` with the arguments that follow `choosy labels`."""
    typed = labels_parser().parse_args(args)
    path = ledger_of(Path(typed.ledger)) if os.path.isdir(typed.ledger) else Path(typed.ledger)
    if typed.verb != "import" and not path.exists():
        raise ValueError(f"No ledger {path}; type the folder of a run, or a file such as runs/NAME/ledger.sqlite")
    if typed.verb == "import" and not os.path.exists(typed.file):
        raise ValueError(f"No file {typed.file}; check the path")
    if typed.verb == "check":
        check_ledger(path, typed.save)
        return
    ledger = Ledger(str(path))
    ledger.create()
    if typed.verb == "stats":
        stats(ledger)
    elif typed.verb == "export":
        count = export_labels(ledger, typed.file, file_format=typed.format, wanted=typed.wanted)
        say(f"{count:,} {'wanted' if typed.wanted else 'labels'} in {typed.file}")
        if typed.wanted and typed.format == "label-studio":
            say(f"Labeling interface of the project:\n{INTERFACE}")
    else:
        done = import_labels(
            typed.file, ledger, file_format=typed.format, labeler=typed.labeler, skip_bad=typed.skip_bad
        )
        say(f"{done.added:,} labels added, {done.there:,} were there, {done.unanswered:,} rows have no answer yet")
        if done.bad:
            say(f"{len(done.bad):,} bad rows left out:\n  " + "\n  ".join(done.bad))
