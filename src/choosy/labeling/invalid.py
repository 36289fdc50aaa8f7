"""Invalid verdicts: how many a labeler may give before the run stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from choosy.labeling.ledger import Question
from choosy.labeling.protocols import Answer
from choosy.redaction import scrub

ENOUGH = 20  # verdicts, before their share of invalid ones says anything


class InvalidVerdicts:
    """Counts a labeler's verdicts, and stops the run if too many are invalid: each costs as much as a useful one."""

    def __init__(self, labeler: str, limit: float | None) -> None:
        self.labeler = labeler
        self.limit = limit  # the largest share that may be invalid; None = no limit
        self._counts: Counter[str] = Counter()
        self._examples: list[str] = []

    def add(self, bought: Sequence[tuple[Question, Answer]]) -> None:
        """Count verdicts that are in the ledger; if too many are invalid, raise an error that quotes the labeler."""
        self._counts.update(str(answer.value) for question, answer in bought if len(question.responses) == 2)
        examples = [answer.raw or "nothing" for _, answer in bought if answer.value == "invalid"]
        self._examples = [*self._examples, *examples][-3:]
        invalid, total = self._counts["invalid"], self._counts.total()
        if self.limit is None or total < ENOUGH or invalid <= self.limit * total:
            return
        quoted = "\n  ".join(repr(scrub(words)[:200]) for words in self._examples)
        raise ValueError(
            f"{invalid} of the {total} verdicts of labeler {self.labeler} are invalid, and "
            f"labels.max_invalid={self.limit} allows a share of no more. It said, for instance:\n  {quoted}\n"
            "All labels are in the ledger. Mend the labeler, or type a larger labels.max_invalid, and resume the run"
        )

    def remove(self, answer: Answer) -> None:
        """Count a verdict no more that was taken back."""
        self._counts[str(answer.value)] -= 1
