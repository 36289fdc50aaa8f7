"""On-policy data: every epoch plays one round, which samples fresh responses to the chosen prompts."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import LightningDataModule

from choosy.data.batches import ItemBatches
from choosy.data.encode import TooLong, within_limit
from choosy.data.formats import read_prompts
from choosy.data.pool import Keep
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.dataset import Dataset
from choosy.methods.weighting import Weighting
from choosy.models.policy import Policy
from choosy.module import WeightedDPO
from choosy.parallel.ranks import current_ranks
from choosy.reporting.phases import Phases
from choosy.rounds.context import PairSelector, PromptSelector, TrainOn
from choosy.rounds.needs import check_needs
from choosy.rounds.run import Reference, Run
from choosy.rounds.sample import FreshResponses
from choosy.sampling.protocol import Sampler
from choosy.types import Prompt


class OnPolicyData(LightningDataModule):
    """Prompts in, labeled pairs out, regenerated each round where the selectors think it pays.

    Args:
        train: Prompts to train on: a JSONL or Parquet file, a `datasets` folder, a hub id, `choosy:prompts/...`.
        heldout: Prompts to evaluate on, likewise; None = no evaluation.
        run_dir: Folder of the run.
        sampler: The sampling engine.
        labels: Where labels are bought.
        weighting: The factor on each pair's loss.
        seed: Of the run.
        rounds: How many are planned.
        responses: N, the fresh responses to each chosen prompt.
        batch_size: Pairs of one optimiser step, over all ranks.
        epochs_per_round: Passes over the pairs in each round.
        train_on: All pairs of the `pool`, or those made in this `round`.
        keep: Which labeled responses of a prompt are trained on: the `newest`, or `all`.
        reference: The policy at the start (`initial`), or as it was before each round (`previous_round`).
        max_prompt_tokens: Longest prompt, chat template included.
        too_long: What happens to longer ones: `drop` or `error`.
        as_chat: Make a plain prompt the user's turn of a chat.
        limit: Most prompts to train on; None = all.
        heldout_limit: Most prompts to evaluate on; None = all.
    """

    def __init__(
        self,
        train: str,
        *,
        run_dir: str,
        sampler: Sampler,
        labels: LabelBuyer,
        weighting: Weighting,
        heldout: str | None = None,
        seed: int = 0,
        rounds: int = 4,
        responses: int = 2,
        batch_size: int = 16,
        epochs_per_round: int = 1,
        train_on: TrainOn = "pool",
        keep: Keep = "newest",
        reference: Reference = "initial",
        max_prompt_tokens: int = 512,
        too_long: TooLong = "drop",
        as_chat: bool = True,
        limit: int | None = None,
        heldout_limit: int | None = None,
    ) -> None:
        super().__init__()
        if responses < 2:
            raise ValueError(f"data.responses={responses} leaves nothing to compare; choose at least 2.")
        if isinstance(labels.labeler, Dataset):
            raise ValueError(
                "labeler=dataset reads the scores of given responses, and the fresh ones of data=on_policy have none; "
                "choose data=offline, or a labeler such as labeler=vader."
            )
        if weighting.needs == "given":
            raise ValueError(
                "weighting=column needs a weight column in the data, and fresh responses have none; "
                "choose data=offline, or weighting=uniform."
            )
        self.run = Run(
            run_dir,
            seed=seed,
            rounds=rounds,
            sampler=sampler,
            labels=labels,
            weighting=weighting,
            batch_size=batch_size,
            epochs_per_round=epochs_per_round,
            train_on=train_on,
            keep=keep,
            reference=reference,
        )
        self.train_source = train
        self.heldout_source = heldout
        self.responses = responses
        self.max_prompt_tokens = max_prompt_tokens
        self.too_long: TooLong = too_long
        self.as_chat = as_chat
        self.limit = limit
        self.heldout_limit = heldout_limit
        self.resuming = False
        self.prompts: list[Prompt] = []
        self.heldout: list[Prompt] = []

    @property
    def phases(self) -> Phases:
        """The run's stopwatch."""
        return self.run.phases

    @property
    def pairs_this_round(self) -> int:
        """Pairs that this round's training sees, over all ranks and passes."""
        return self.run.pairs_this_round

    def use(self, *, prompts: PromptSelector | None = None, pairs: PairSelector | None = None) -> None:
        """Give a slot its selector; called by the selectors' callbacks."""
        self.run.use(prompts=prompts, pairs=pairs)

    def setup(self, stage: str) -> None:
        if self.prompts:
            return
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        policy = module.policy
        check_needs(module.loss, self.run.weighting, self.run.labels)
        self.run.labels.use_policy(policy)
        self.prompts = self._read(self.train_source, policy, self.limit)
        self.heldout = self._read(self.heldout_source, policy, self.heldout_limit) if self.heldout_source else []
        self.run.ask(self.prompts)
        resuming = self.resuming or self.trainer.ckpt_path is not None
        self.run.open(current_ranks(), resuming=resuming)

    def _read(self, source: str, policy: Policy, limit: int | None) -> list[Prompt]:
        prompts = read_prompts(source, as_chat=self.as_chat, limit=limit)
        return within_limit(prompts, policy, limit=self.max_prompt_tokens, too_long=self.too_long, source=source)

    def train_dataloader(self) -> ItemBatches:
        """Play this epoch's round, then train on its pairs."""
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        number = self.trainer.current_epoch
        self.run.play(
            number,
            [] if self.run.spent_out(number, current_ranks()) else self.prompts,
            policy=module.policy,
            sample=FreshResponses(self.responses),
            ranks=current_ranks(),
            loss=module.loss,
        )
        return self.run.loader(number, module.loss)

    def teardown(self, stage: str) -> None:
        self.run.sampler.close()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)
