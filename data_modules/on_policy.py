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
from choosy.types import Candidates, Prompt, seed_of


class OnPolicyData(LightningDataModule):
    """Trains on labeled pairs of fresh responses to the prompts that the selectors choose each round.

    Args:
        train: Prompts to train on: a JSONL or Parquet file, a `datasets` folder, a hub id, `choosy:prompts/...`.
        run: Plays the rounds.
        reader: Reads the prompts.
        heldout: Prompts to evaluate on, likewise; None = no evaluation.
        responses: N, the fresh responses to each chosen prompt.
        prompts_per_round: Stream the prompts: each round sees the next so many of one shuffled pass, which is repeated;
            None = every round sees all prompts.
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
        prompts_per_round: int | None = None,
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
        if prompts_per_round is not None and prompts_per_round < 1:
            raise ValueError(f"data.prompts_per_round={prompts_per_round} samples nothing; choose at least 1, or null.")
        self.run = run
        self.reader = reader
        self.train_source = train
        self.heldout_source = heldout
        self.heldout_pairs_source = heldout_pairs
        self.responses = responses
        self.prompts_per_round = prompts_per_round
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
        prompts = [] if self.run.spent_out(number) else self.prompts_of(number)
        self.run.play(number, prompts, FreshResponses(self.responses))
        return self.run.loader(number)

    def prompts_of(self, number: int) -> list[Prompt]:
        """Return the prompts that a round may sample: all, or the next ones of the stream."""
        if self.prompts_per_round is None or self.prompts_per_round >= len(self.prompts):
            return self.prompts
        stream = sorted(self.prompts, key=lambda p: seed_of(self.run.seed, "stream", p.id))
        first = number * self.prompts_per_round
        return [stream[(first + i) % len(stream)] for i in range(self.prompts_per_round)]

    def teardown(self, stage: str) -> None:
        self.run.sampler.close()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)
