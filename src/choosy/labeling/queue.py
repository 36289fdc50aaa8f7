"""A labeler for labels that take days: it writes the questions to files; the run stops until they are answered."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

from choosy.files import replacing
from choosy.labeling.exchange.rows import LabelRow, exported, to_csv, to_jsonl
from choosy.labeling.ledger import Question
from choosy.labeling.protocols import ALL, Postponed, Terms
from choosy.types import Prompt, Response, Verdict


@dataclass(eq=False)
class Queue:
    """Writes the pairs that need a verdict to files, and ends the run in good order.

    `wanted.jsonl` and `wanted.csv` in the run's folder have one row for each pair, with an empty verdict: `first`,
    `second`, `tie` or `invalid`. Once one of them is filled in and imported, the same command with `ckpt_path=last`
    resumes the run.
    """

    folder: str  # the run's folder
    _: KW_ONLY
    ledger: str  # the ledger's file, for the command that imports the verdicts
    name: str = "queue"  # of the labels in the ledger, which runs with a queue of the same name reuse
    terms: ClassVar[Terms] = Terms(at_once=ALL, people=True)  # all pairs of a round go into one file

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        """Write the pairs to the files, and raise `Postponed` with the command that imports their verdicts."""
        questions = [Question(self.name, "", prompt, (first, second)) for prompt, first, second in items]
        rows: list[LabelRow] = [{**exported(question.columns), "verdict": None} for question in questions]
        path = Path(self.folder, "wanted.jsonl")
        for file, text in ((path, to_jsonl(rows)), (path.with_suffix(".csv"), to_csv(rows, tuple(rows[0])))):
            with replacing(file, private=True) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        raise Postponed(
            f"{len(rows)} pairs want a label: write first, second, tie or invalid as the verdict of each row of "
            f"{path} (or of wanted.csv beside it). Then type\n"
            f"  {shlex.join(['choosy', 'labels', 'import', self.ledger, str(path)])}"
        )
