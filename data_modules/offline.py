"""Offline data: responses that are given, of which each round chooses the pairs that are worth a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from lightning.pytorch import LightningDataModule

from choosy.data.batches import ItemBatches
from choosy.data.encode import TooLong, with_tokens, within_limit
from choosy.data.formats import read_candidates, read_prompts
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.dataset import Dataset
from choosy.methods.weighting import Weighting
from choosy.module import WeightedDPO
from choosy.parallel.ranks import current_ranks, shard
from choosy.reporting.phases import Phases
from choosy.rounds.context import ChosenPrompt, Done, PairSelector, PromptSelector, Round, TrainOn
from choosy.rounds.needs import check_needs
from choosy.rounds.run import Reference, Run
from choosy.sampling.protocol import Sampler
from choosy.types import Candidates, Prompt


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
        """Return the candidates with the rewards and pairs that earlier rounds have bought."""
        mine = shard(chosen, at.ranks)
        row_of = at.pool.current()
        known = at.pool.candidates(row_of[p.id] for p, _ in mine if p.id in row_of)
        stored = {c.prompt.id: c for c in known}
        return [replace(stored.get(p.id, self.given[p.id]), prompt=p, utility=utility) for p, utility in mine]


class OfflineData(LightningDataModule):
    """Prompts with given responses, one pair or several scored ones; nothing is generated to train on.

    Each round the selectors choose among the pairs that have no label yet.

    Args:
        train: Pairs or scored responses, in any format of `choosy.data.formats`.
        heldout: Prompts to evaluate on; None = no evaluation.
        run_dir: Folder of the run.
        sampler: The engine that samples answers to held-out prompts, and those an entropy filter needs.
        labels: Where labels are bought.
        weighting: The factor on each pair's loss.
        seed: Of the run.
        rounds: How many are planned.
        batch_size: Pairs of one optimiser step, over all ranks.
        epochs_per_round: Passes over the pairs in each round.
        train_on: All labeled pairs (`pool`), or those labeled in this `round`.
        reference: The policy at the start (`initial`), or as it was before each round (`previous_round`).
        max_prompt_tokens: Longest prompt, chat template included.
        max_response_tokens: Longest response; longer ones are cut.
        too_long: What happens to longer prompts: `drop` or `error`.
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
        rounds: int = 1,
        batch_size: int = 16,
        epochs_per_round: int = 1,
        train_on: TrainOn = "pool",
        reference: Reference = "initial",
        max_prompt_tokens: int = 512,
        max_response_tokens: int = 512,
        too_long: TooLong = "drop",
        as_chat: bool = True,
        limit: int | None = None,
        heldout_limit: int | None = None,
    ) -> None:
        super().__init__()
        if max_response_tokens < 1:
            raise ValueError(f"data.max_response_tokens={max_response_tokens} leaves no response; choose at least 1.")
        if heldout is not None and labels.evaluator and isinstance(labels.evaluator.labeler, Dataset):
            raise ValueError(
                f"data.heldout={heldout} is answered by sampled responses, for which labeler=dataset has no scores; "
                "choose data.heldout=null, or a labeler that judges them, such as labeler@labels.evaluation=vader."
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
            keep="newest",
            reference=reference,
        )
        self.train_source = train
        self.heldout_source = heldout
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.too_long: TooLong = too_long
        self.as_chat = as_chat
        self.limit = limit
        self.heldout_limit = heldout_limit
        self.resuming = False
        self.given: dict[str, Candidates] = {}
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
        if self.given:
            return
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        policy = module.policy
        check_needs(module.loss, self.run.weighting, self.run.labels)
        self.run.labels.use_policy(policy)
        candidates = within_limit(
            read_candidates(self.train_source, as_chat=self.as_chat, limit=self.limit),
            policy,
            limit=self.max_prompt_tokens,
            too_long=self.too_long,
            source=self.train_source,
        )
        if self.run.weighting.needs == "given":
            refuse_unweighted(candidates, self.train_source)
        encoded = with_tokens(candidates, policy, max_response_tokens=self.max_response_tokens)
        self.given = {c.prompt.id: c for c in encoded}
        if self.heldout_source:
            prompts = read_prompts(self.heldout_source, as_chat=self.as_chat, limit=self.heldout_limit)
            self.heldout = within_limit(
                prompts, policy, limit=self.max_prompt_tokens, too_long=self.too_long, source=self.heldout_source
            )
        self.run.ask([c.prompt for c in self.given.values()])
        resuming = self.resuming or self.trainer.ckpt_path is not None
        self.run.open(current_ranks(), resuming=resuming)

    def train_dataloader(self) -> ItemBatches:
        """Choose and label this epoch's pairs, then train."""
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        number = self.trainer.current_epoch
        self.run.play(
            number,
            [c.prompt for c in self.given.values()],
            policy=module.policy,
            sample=GivenResponses(self.given),
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


def refuse_unweighted(candidates: Sequence[Candidates], source: str) -> None:
    """A weighting by the data's column needs that column to be full."""
    lack = [c.prompt.id for c in candidates if c.weight is None]
    if lack:
        raise ValueError(
            f"weighting=column needs a weight column in the data, and {len(lack)} of {len(candidates)} rows of "
            f"{source} have no weight, the first of them prompt {lack[0]}; fill it in, or choose weighting=uniform."
        )
