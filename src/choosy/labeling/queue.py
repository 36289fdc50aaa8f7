"""Labels that take days: what is wanted is written to files, and the run stops until they are in the ledger."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from choosy.labeling import Postponed
from choosy.types import Prompt, Response, Verdict


class Queue:
    """Asks nobody by itself: it writes the pairs that want a verdict, and stops the run in good order.

    `wanted.jsonl` and `wanted.csv` in the run's folder hold one pair a row with an empty verdict: `first`, `second`,
    `tie` or `invalid`. Filled in and imported, they let the same command with `ckpt_path=last` go on.

    Args:
        folder: Of the run.
        ledger: The ledger's file, for the command that imports the verdicts.
        name: Under whose name the labels are kept. A name that another labeler has had reuses its labels.
    """

    at_once = None  # everything that a round wants, in one file

    def __init__(self, folder: str, *, ledger: str, name: str = "queue") -> None:
        self.folder = Path(folder)
        self.ledger = ledger
        self.name = name

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        """Write the pairs, and raise Postponed.

        Raises:
            Postponed: Always; it says where the pairs are and how their verdicts are imported.
        """
        rows = [wanted(self.name, *item) for item in items]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(self.folder / "wanted.jsonl", lines)
        replace_file(self.folder / "wanted.csv", as_csv(rows))
        path = self.folder / "wanted.jsonl"
        raise Postponed(
            f"{len(rows)} pairs want a label: fill in the verdicts (first, second, tie or invalid) in {path}, "
            f"or in wanted.csv beside it. Then type\n"
            f"  choosy labels import {shlex.quote(str(path))} --ledger {shlex.quote(self.ledger)}"
        )


def wanted(labeler: str, prompt: Prompt, first: Response, second: Response) -> dict[str, object]:
    """A row that wants a verdict, in the words of the ledger."""
    return {
        "labeler": labeler,
        "kind": "compare",
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "messages": [[message.role, message.content] for message in prompt.messages],
        "response_first": first.text,
        "response_second": second.text,
        "verdict": None,
    }


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV; a conversation is JSON in its cell."""
    cells = [row | {"messages": json.dumps(row["messages"], ensure_ascii=False)} for row in map(dict, rows)]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return table.getvalue()


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    half = path.with_name(f".{path.name}.half")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)
