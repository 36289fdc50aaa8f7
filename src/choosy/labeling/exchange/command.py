"""Run `choosy labels stats|export|import`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from choosy.labeling.exchange.argilla import from_record, to_record
from choosy.labeling.exchange.label_studio import INTERFACE, from_task, to_task
from choosy.labeling.exchange.rows import (
    LabelRow,
    RowReaders,
    as_object,
    checked,
    exported,
    from_csv,
    from_jsonl,
    json_text,
    parse_json,
    to_csv,
    to_jsonl,
)
from choosy.labeling.ledger import Ledger
from choosy.types import MIRRORED

FileFormat = Literal["jsonl", "csv", "label-studio", "argilla"]
FILE_FORMATS: tuple[FileFormat, ...] = ("jsonl", "csv", "label-studio", "argilla")
BY_SUFFIX: dict[str, FileFormat] = {".jsonl": "jsonl", ".csv": "csv"}


def format_of(path: Path) -> FileFormat:
    """Return the format of a file by its name; refuse a name that does not tell."""
    if file_format := BY_SUFFIX.get(path.suffix.lower()):
        return file_format
    raise ValueError(f"{path}: the name does not tell its format; type --format with one of {', '.join(FILE_FORMATS)}")


# -- export ------------------------------------------------------------------------------------------------------

WRITERS: dict[FileFormat, Callable[[Iterable[LabelRow]], str]] = {
    "jsonl": to_jsonl,
    "csv": to_csv,
    "label-studio": lambda rows: json_text([to_task(row) for row in rows], indent=1),
    "argilla": lambda rows: json_text([to_record(row) for row in rows], indent=1),
}


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
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError as error:
        raise ValueError(f"{path} exists already; name another file") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}); name a file in a folder that has room") from error
    return len(rows)


# -- import ------------------------------------------------------------------------------------------------------


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
        path: The file, as `export_labels` or the annotation tool writes it.
        ledger: Where the labels are written.
        file_format: Of the file; None goes by its name and, of .json, by its content.
        labeler: Under whose name they are stored; None takes each row's own.
        skip_bad: Leave bad rows out, instead of an error that lists them all.
    """
    wanted = {row["key"]: row for row in ledger.rows("wanted")}
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
            row = checked(row, wanted, labeler)
            earlier, same = good.setdefault(row["key"], (place, row))
            if (same["score"], verdict_in_order_of(same, row)) != (row["score"], row["verdict"]):
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


def verdict_in_order_of(row: LabelRow, other: LabelRow) -> str | None:
    """Return the row's verdict for its responses in the order of the other row."""
    verdict: str | None = row["verdict"]
    if verdict is None or row["response_first"] == other["response_first"]:
        return verdict
    return MIRRORED[verdict]  # type: ignore[index]


def read_labels(path: Path, file_format: FileFormat | None) -> RowReaders:
    """Read each row of a file; refuse a file that cannot be read as a whole."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"No file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8 ({error})") from error
    if file_format is None and path.suffix.lower() != ".json":
        file_format = format_of(path)
    if file_format == "csv":
        yield from from_csv(text)
    elif file_format == "jsonl":
        yield from from_jsonl(text)
    else:
        items = parse_json(text, f"{path} is not JSON")
        if not isinstance(items, list):
            found = type(items).__name__
            raise ValueError(f"{path}: wanted a list of Label Studio tasks or Argilla records, found {found}")
        for number, item in enumerate(items, start=1):
            yield f"item {number}", partial(from_item, item, file_format)


def from_item(item: Any, file_format: FileFormat | None) -> LabelRow:
    """Return the row of a Label Studio task or an Argilla record; of format None, a record has fields."""
    item = as_object(item)
    of_argilla = "fields" in item if file_format is None else file_format == "argilla"
    return from_record(item) if of_argilla else from_task(item)


# -- statistics --------------------------------------------------------------------------------------------------


def stats(ledger: Ledger, out: Console | None = None) -> None:
    """Print the labels, ties and money of each labeler and run, and how many labels are wanted."""
    out = out or Console(highlight=False)
    labels, wanted = ledger.rows("labels"), ledger.rows("wanted")
    out.print(
        stats_table("Labelers", ("labeler", "fingerprint"), [((r["labeler"], r["fingerprint"][:8]), r) for r in labels])
    )
    out.print(stats_table("Runs", ("run", "for"), [((r["run"], r["purpose"]), r) for r in labels]))
    out.print(f"{len(labels):,} labels, {len(wanted):,} wanted, in {ledger.path}")


def stats_table(title: str, by: tuple[str, str], rows: Sequence[tuple[tuple[str, str], LabelRow]]) -> Table:
    """Build a table with one line for each group of rows; each row comes with the names of its group."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in by:
        table.add_column(name)
    for name in ("labels", "ties", "invalid", "first shown", "annotators", "money"):
        table.add_column(name, justify="right")
    groups: dict[tuple[str, str], list[LabelRow]] = {}
    for names, row in rows:
        groups.setdefault(names, []).append(row)
    for names, members in sorted(groups.items()):
        verdicts = [row["verdict"] for row in members if row["verdict"] is not None]
        decided = [verdict for verdict in verdicts if verdict in ("first", "second")]
        undecided = [f"{verdicts.count(one):,}" if verdicts else "–" for one in ("tie", "invalid")]
        shown = f"{decided.count('first') / len(decided):.0%}" if decided else "–"
        money = math.fsum(row["cost"] for row in members)
        people = len({row["annotator"] for row in members if row["annotator"]})
        table.add_row(*names, f"{len(members):,}", *undecided, shown, f"{people:,}", f"{money:,.4f}")
    return table


# -- the command -------------------------------------------------------------------------------------------------


def labels_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser("choosy labels", description="Show, export and import the labels of a ledger.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shown = verbs.add_parser("stats", help="labels, ties and money of each labeler and run")
    out = verbs.add_parser("export", help="write the labels, or the questions that runs wait for, into a new file")
    into = verbs.add_parser("import", help="write the labels of a file into the ledger, all or none")
    for verb in (shown, out, into):
        verb.add_argument("ledger", help="the file, such as runs/NAME/ledger.sqlite")
    for verb in (out, into):
        verb.add_argument("file")
        verb.add_argument("--format", choices=FILE_FORMATS, help="of the file, where its name does not tell")
    out.add_argument("--wanted", action="store_true", help="the questions that runs wait for, instead of the labels")
    into.add_argument("--labeler", help="the name to store them under, instead of each row's own")
    into.add_argument("--skip-bad", action="store_true", help="leave bad rows out, instead of refusing the file")
    return parser


def labels_command(args: Sequence[str]) -> None:
    """Run `choosy labels stats|export|import` with the arguments that follow `choosy labels`."""
    typed = labels_parser().parse_args(args)
    if typed.verb != "import" and not os.path.exists(typed.ledger):
        raise ValueError(f"No ledger {typed.ledger}; check the path, such as runs/NAME/ledger.sqlite")
    ledger = Ledger(typed.ledger)
    ledger.create()
    if typed.verb == "stats":
        stats(ledger)
    elif typed.verb == "export":
        count = export_labels(ledger, typed.file, file_format=typed.format, wanted=typed.wanted)
        print(f"{count:,} {'wanted' if typed.wanted else 'labels'} in {typed.file}")
        if typed.wanted and typed.format == "label-studio":
            print(f"Labeling interface of the project:\n{INTERFACE}")
    else:
        done = import_labels(
            typed.file, ledger, file_format=typed.format, labeler=typed.labeler, skip_bad=typed.skip_bad
        )
        print(f"{done.added:,} labels added, {done.there:,} were there, {done.unanswered:,} rows have no answer yet")
        if done.bad:
            print(f"{len(done.bad):,} bad rows left out:\n  " + "\n  ".join(done.bad))
