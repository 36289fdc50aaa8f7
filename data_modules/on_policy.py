"""On-policy data: every epoch plays one round, which samples fresh responses to the chosen prompts."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import LightningDataModule

from choosy.data.batches import ItemBatches
from choosy.data.encode import Reader
from choosy.module import WeightedDPO
from choosy.rounds.evaluate import as_pairs
from choosy.rounds.needs import check_needs
from choosy.rounds.run import Run
from choosy.rounds.sample import FreshResponses
from choosy.types import Candidates, Prompt


class OnPolicyData(LightningDataModule):
    """Trains on labeled pairs of fresh responses to the prompts that the selectors choose each round.

    Args:
        train: Prompts to train on: a JSONL or Parquet file, a `datasets` folder, a hub id, `choosy:prompts/...`.
        run: Plays the rounds.
        reader: Reads the prompts.
        heldout: Prompts to evaluate on, likewise; None = no evaluation.
        responses: N, the fresh responses to each chosen prompt.
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
        responses: int = 2,
        limit: int | None = None,
        heldout_limit: int | None = None,
    ) -> None:
        super().__init__()
        if responses < 1:
            raise ValueError(f"data.responses={responses} leaves nothing to judge; choose at least 2.")
        if run.labels.terms.given_only:
            raise ValueError(
                "labeler=dataset reads the scores of given responses, and the fresh ones of data=on_policy have none; "
                "choose data=offline, or a labeler such as labeler=vader."
            )
        run.labels.check_heldout(heldout)
        if run.weighting.needs == "given":
            raise ValueError(
                "weighting=column needs a weight column in the data, and fresh responses have none; "
                "choose data=offline, or weighting=uniform."
            )
        self.run = run
        self.reader = reader
        self.train_source = train
        self.heldout_source = heldout
        self.heldout_pairs_source = heldout_pairs
        self.responses = responses
        self.limit = limit
        self.heldout_limit = heldout_limit
        self.prompts: list[Prompt] = []
        self.heldout: list[Prompt] = []
        self.heldout_pairs: list[Candidates] = []

    def setup(self, stage: str) -> None:
        if self.prompts:
            return
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        source = f"data.responses={self.responses}"
        check_needs(self.run, module.loss, responses=[self.responses], source=source)
        self.prompts = self.reader.prompts(self.train_source, module.policy, limit=self.limit)
        if self.heldout_source:
            self.heldout = self.reader.prompts(self.heldout_source, module.policy, limit=self.heldout_limit)
        if self.heldout_pairs_source:
            given = self.reader.candidates(self.heldout_pairs_source, module.policy, limit=self.heldout_limit)
            self.heldout_pairs = as_pairs(given, self.heldout_pairs_source)
        self.run.open(module.policy, module.loss, self.prompts)

    def train_dataloader(self) -> ItemBatches:
        """Play this epoch's round, then train on its pairs."""
        assert self.trainer is not None
        number = self.trainer.current_epoch
        prompts = [] if self.run.spent_out(number) else self.prompts
        self.run.play(number, prompts, FreshResponses(self.responses))
        return self.run.loader(number)

    def teardown(self, stage: str) -> None:
        self.run.sampler.close()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)
