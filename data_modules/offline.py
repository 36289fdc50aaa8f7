"""Offline data: responses that are given, of which each round chooses the pairs that are worth a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from lightning.pytorch import LightningDataModule

from choosy.data.batches import ItemBatches
from choosy.data.encode import Reader
from choosy.data.pool import Pool
from choosy.module import WeightedDPO
from choosy.parallel.ranks import shard
from choosy.rounds.choose import can_be_labeled
from choosy.rounds.context import ChosenPrompt, Done, Round
from choosy.rounds.evaluate import as_pairs
from choosy.rounds.needs import check_needs
from choosy.rounds.run import Run
from choosy.rounds.sample import sample_responses
from choosy.types import Candidates, Prompt


class OfflineData(LightningDataModule):
    """Trains on labeled pairs of given responses; each round labels some of those that have no label yet.

    Args:
        train: Pairs or scored responses, in any of the formats of `choosy.data.formats`.
        run: Plays the rounds.
        reader: Reads the prompts with their responses.
        heldout: Prompts to evaluate on; None = no evaluation.
        limit: Most prompts to train on; None = all.
        heldout_pairs: Labeled pairs to evaluate on, in any format of `choosy.data.formats`; None = none.
        heldout_limit: Most prompts, and most pairs, to evaluate on; None = all.
    """

    def __init__(
        self,
        train: str,
        *,
        run: Run,
        reader: Reader,
        heldout: str | None = None,
        heldout_pairs: str | None = None,
        limit: int | None = None,
        heldout_limit: int | None = None,
    ) -> None:
        super().__init__()
        run.labels.check_heldout(heldout)
        self.run = run
        self.reader = reader
        self.train_source = train
        self.heldout_source = heldout
        self.heldout_pairs_source = heldout_pairs
        self.limit = limit
        self.heldout_limit = heldout_limit
        self.given: dict[str, Candidates] = {}
        self.heldout: list[Prompt] = []
        self.heldout_pairs: list[Candidates] = []

    def setup(self, stage: str) -> None:
        if self.given:
            return
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        candidates = self.reader.candidates(self.train_source, module.policy, limit=self.limit)
        responses = [len(c.responses) for c in candidates]
        check_needs(self.run, module.loss, responses=responses, source=self.train_source)
        if self.run.weighting.needs == "given":
            refuse_unweighted(candidates, self.train_source)
        self.given = {c.prompt.id: c for c in candidates}
        if self.heldout_source:
            self.heldout = self.reader.prompts(self.heldout_source, module.policy, limit=self.heldout_limit)
        if self.heldout_pairs_source:
            given = self.reader.candidates(self.heldout_pairs_source, module.policy, limit=self.heldout_limit)
            self.heldout_pairs = as_pairs(given, self.heldout_pairs_source)
        self.run.open(module.policy, module.loss, [c.prompt for c in candidates])

    def train_dataloader(self) -> ItemBatches:
        """Choose and label this epoch's pairs, then train on the labeled ones."""
        assert self.trainer is not None
        number = self.trainer.current_epoch
        given = GivenResponses(self.given)
        known = given.with_labels(self.run.pool, self.given)
        selector, scores = self.run.pair_selector, self.run.labels.scores
        own = "own" in self.run.loss.needs  # every prompt gets a sample of the present policy
        left = [c.prompt for c in known if own or can_be_labeled(c, selector, scores=scores)]
        self.run.play(number, left, given)
        return self.run.loader(number)

    def teardown(self, stage: str) -> None:
        self.run.sampler.close()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)


@dataclass(frozen=True)
class GivenResponses:
    """Looks up the given responses to each chosen prompt (see `Sample`).

    Attributes:
        given: The candidates by prompt id.
    """

    given: Mapping[str, Candidates]

    @property
    def responses(self) -> int:
        return max(len(c.responses) for c in self.given.values())

    def __call__(
        self, at: Round, chosen: Sequence[ChosenPrompt], *, begun: Mapping[str, Candidates], done: Done
    ) -> list[Candidates]:
        """Return the candidates with the rewards and pairs that earlier rounds have bought.

        A loss that needs samples of the policy's own gets one fresh response to each prompt beside them.
        """
        mine = shard(chosen, at.ranks)
        known = self.with_labels(at.pool, [p.id for p, _ in mine])
        found = [replace(c, utility=utility) for c, (_, utility) in zip(known, mine, strict=True)]
        if "own" not in at.loss.needs:
            return found
        sampled = sample_responses(at, [p for p, _ in mine], n=1, purpose="own")
        return [replace(c, own=beside.responses) for c, beside in zip(found, sampled, strict=True)]

    def with_labels(self, pool: Pool, prompt_ids: Iterable[str]) -> list[Candidates]:
        """Return the given candidates with the rewards and pairs that are in the pool."""
        row_of, ids = pool.current(), list(prompt_ids)
        stored = {c.prompt.id: c for c in pool.candidates(row_of[name] for name in ids if name in row_of)}
        return [replace(stored.get(name, self.given[name]), prompt=self.given[name].prompt) for name in ids]


def refuse_unweighted(candidates: Sequence[Candidates], source: str) -> None:
    """Refuse data without a full weight column, where a weighting needs one.

    Raises:
        ValueError: Some rows have no weight.
    """
    lack = [c.prompt.id for c in candidates if c.weight is None]
    if lack:
        raise ValueError(
            f"weighting=column needs a weight column in the data, and {len(lack)} of {len(candidates)} rows of "
            f"{source} have no weight, the first of them prompt {lack[0]}; fill it in, or choose weighting=uniform."
        )
