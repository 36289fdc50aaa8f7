"""Sampling that a crash does not lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from choosy.resume.partial_rounds import PartWriter, read_begun, unlabeled
from choosy.rounds.context import ChosenPrompt, Round, Sample
from choosy.rounds.label_ahead import LabelAhead
from choosy.types import Candidates, Prompt


@dataclass(frozen=True)
class Resumable:
    """Samples what an interrupted run has not sampled, and writes it to disk during the sampling.

    Attributes:
        sample: What samples.
        prompts: All prompts of the run.
        folder: Folder of the rounds.
        ahead: Buys labels of what is on the disk while the rest is sampled; None = labels are bought afterwards.
    """

    sample: Sample
    prompts: Sequence[Prompt]
    folder: Path
    ahead: LabelAhead | None = None

    def __call__(self, at: Round, chosen: Sequence[ChosenPrompt]) -> list[Candidates]:
        """Return the candidates of this rank's share of the chosen prompts."""
        n = self.sample.responses
        begun, seconds = read_begun(self.folder, at.number, self.prompts, responses=n)
        at.ranks.gather([])  # no rank writes before all have read
        at.phases.resume(seconds)
        parts = PartWriter(self.folder, at.number, at.ranks, seconds=lambda: at.phases.seconds)
        if self.ahead is not None and at.ranks.rank == 0:
            feed = unlabeled(self.folder, at.number, [prompt for prompt, _ in chosen], responses=n)
            self.ahead.start(feed, prompts=len(chosen), responses=n)
        ticked = 0
        with at.phases("sample", total=len(chosen), unit="prompts") as tick:

            def keep(some: Sequence[Candidates]) -> None:
                nonlocal ticked
                ticked += len(some)
                tick(len(some) * at.ranks.size)
                parts.add(some)
                if self.ahead is not None and at.ranks.size == 1:  # several ranks learn of an error before they label
                    self.ahead.check()

            mine = self.sample(at, chosen, begun=begun, done=keep)
            parts.write()
            tick((len(mine) - ticked) * at.ranks.size)
        return mine
