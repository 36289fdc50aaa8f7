"""What a run has counted and measured, which is written with each round's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from choosy.labeling.statistics import COUNTED

SAMPLED = (
    *("tokens_generated", "prompts_sampled", "responses_sampled", "responses_cut", "responses_empty"),
    *("sync_milliseconds", "hidden_milliseconds", "labeled_ahead"),
    *("full_responses", "full_labels"),  # of sampling all prompts, and scoring all responses or comparing all pairs
)


@dataclass
class Record:
    """Counts of the run, and what was found in its newest round.

    Attributes:
        counts: What was sampled, judged and trained on in the whole run.
        judged: How the round's judgements ended.
        cut_share: Share of the round's fresh responses that were cut; None if there are none.
        importance: Of the round's weights, where it was sampled ahead.
        evaluation: What was measured on held-out data after the round, by name.
        heldout_rows: The held-out answers with their qualities.
        trained: Means over the round's training.
        start_pairs: How the start policy ranks held-out pairs.
    """

    counts: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    cut_share: float | None = None
    importance: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float | None] | None = None
    heldout_rows: Sequence[Mapping[str, Any]] = ()
    trained: Mapping[str, float] = field(default_factory=dict)
    start_pairs: Mapping[str, float | None] = field(default_factory=dict)

    def begin_round(self) -> None:
        """Forget what was measured after the round before."""
        self.evaluation, self.heldout_rows, self.trained = None, (), {}

    def count(self, of_round: Counter[str], importance: Mapping[str, float]) -> None:
        """Add a round's counts to the run's."""
        self.counts.update(of_round)
        self.judged = Counter({name: of_round[name] for name in COUNTED})
        sampled = of_round["responses_sampled"]
        self.cut_share = of_round["responses_cut"] / sampled if sampled else None
        self.importance = importance

    def evaluated(self, metrics: Mapping[str, float | None], rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take held-out results of the round, which are written with its table when the round ends."""
        self.evaluation = {**(self.evaluation or {}), **metrics}
        self.heldout_rows = [*self.heldout_rows, *rows]

    def as_written(self) -> dict[str, Any]:
        """What is written with the round's table, by name."""
        return {
            **{name: self.counts[name] for name in (*SAMPLED, "pairs_trained")},
            "judged": {"round": dict(self.judged), "run": {name: self.counts[name] for name in COUNTED}},
            "responses_cut_share": self.cut_share,
            "importance": dict(self.importance),
            "evaluation": self.evaluation,
            "trained": self.trained,
            "start_pairs": self.start_pairs,
        }

    def read(self, about: Mapping[str, Any]) -> None:
        """Take what was written with a round's table.

        The pairs that were trained on stay as they are, for a checkpoint knows them better: the file may have counted
        the round's training already.
        """
        trained = Counter(pairs_trained=self.counts["pairs_trained"])
        self.counts = Counter({name: about.get(name, 0) for name in SAMPLED}) + trained
        self.counts.update(about["judged"]["run"])
        self.judged = Counter(about["judged"]["round"])
        self.cut_share = about["responses_cut_share"]
        self.importance = about.get("importance", {})
        self.start_pairs = about.get("start_pairs") or self.start_pairs  # a file of an earlier version has none
