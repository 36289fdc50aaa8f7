"""A run: its rounds in order, what they cost, and how they are kept, resumed and read back."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from choosy.data.batches import ItemBatches
from choosy.data.items import PoolItems
from choosy.data.pool import Keep, Pool, round_file
from choosy.data.table_files import damage
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.statistics import COUNTED, shares
from choosy.methods.loss_inputs import Loss, form_of
from choosy.methods.weighting import Weighting
from choosy.models.policy import Policy
from choosy.parallel.ranks import OneRank, Ranks
from choosy.reporting.phases import Phases
from choosy.resume.partial_rounds import UnlabeledFeed, files_of, forget
from choosy.resume.run_folder import ledger_copy, open_folder
from choosy.rounds.context import PairSelector, Parts, PromptSelector, Round, Sample, TrainOn
from choosy.rounds.label import buy_labels, refuse_many
from choosy.rounds.label_ahead import LabelAhead, WhileSampling
from choosy.rounds.resumable import Resumable
from choosy.rounds.round import play_round
from choosy.rounds.score import rescore_pool
from choosy.sampling.protocol import Sampler
from choosy.types import Prompt, content_id

log = logging.getLogger(__name__)

SAMPLED = (
    *("tokens_generated", "prompts_sampled", "responses_cut", "responses_empty"),
    *("sync_milliseconds", "labeled_ahead"),
)

Reference = Literal["initial", "previous_round"]


class Run:
    """Holds the pool and the two slots, and plays each round once.

    Args:
        folder: Of the run; rounds are kept in `rounds/` below it.
        seed: Of the run.
        rounds: How many are planned.
        sampler: The sampling engine.
        labels: Where labels are bought.
        weighting: The factor on each pair's loss.
        batch_size: Pairs of one optimiser step, over all ranks.
        epochs_per_round: Passes over the pairs in each round.
        train_on: All pairs of the `pool`, or those made in this `round`.
        keep: Which labeled responses of a prompt are trained on: the `newest`, or `all`.
        reference: The policy at the start (`initial`), or as it was before each round (`previous_round`).
    """

    def __init__(
        self,
        folder: str,
        *,
        seed: int,
        rounds: int,
        sampler: Sampler,
        labels: LabelBuyer,
        weighting: Weighting,
        batch_size: int,
        epochs_per_round: int,
        train_on: TrainOn,
        keep: Keep,
        reference: Reference,
    ) -> None:
        for name, value in (
            ("rounds", rounds),
            ("batching.batch_size", batch_size),
            ("epochs_per_round", epochs_per_round),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} trains nothing; choose {name} >= 1.")
        for name, given, known in (
            ("train_on", train_on, ("pool", "round")),
            ("pool.keep", keep, ("newest", "all")),
            ("reference", reference, ("initial", "previous_round")),
        ):
            if given not in known:
                raise ValueError(f"{name}={given} is none of {', '.join(known)}.")
        self.folder = Path(folder)
        self.seed = seed
        self.rounds = rounds
        self.sampler = sampler
        self.labels = labels
        self.weighting = weighting
        self.batch_size = batch_size
        self.epochs_per_round = epochs_per_round
        self.train_on = train_on
        self.keep = keep
        self.reference = reference
        self.pool = Pool()
        self.phases = Phases()
        self.counts: Counter[str] = Counter()
        self.judged: Counter[str] = Counter()
        self.ranks: Ranks = OneRank()
        self.slots: dict[str, PromptSelector | PairSelector] = {}
        self.heldout_rows: list[Mapping[str, Any]] = []
        self.evaluation: dict[str, float] | None = None
        self.prompts_id = ""

    @property
    def rounds_folder(self) -> Path:
        """Where the rounds' files lie."""
        return self.folder / "rounds"

    def use(self, *, prompts: PromptSelector | None = None, pairs: PairSelector | None = None) -> None:
        """Give a slot its selector.

        Raises:
            ValueError: The slot has one already.
        """
        for slot, selector in (("prompts", prompts), ("pairs", pairs)):
            if selector is None:
                continue
            if slot in self.slots and self.slots[slot] is not selector:
                one, two = type(self.slots[slot]).__name__, type(selector).__name__
                raise ValueError(
                    f"{one} and {two} both choose {slot}, and that slot takes one selector; "
                    "type one of them, such as selector=certainty, or a composition such as selector=optune_certainty."
                )
            self.slots[slot] = selector

    def open(self, ranks: Ranks, *, resuming: bool) -> None:
        """Open the run's folder and its ledger once all ranks have met.

        Raises:
            ValueError: The folder holds another run, or the ledger has lost labels that the run has bought.
        """
        open_folder(self.folder, self.labels, ranks, resuming=resuming)

    def ask(self, prompts: Sequence[Prompt]) -> None:
        """Remember what the run asks, so that it goes on with the same prompts only."""
        self.prompts_id = content_id(*(part for p in prompts for part in (p.id, p.text)))

    def play(
        self,
        number: int,
        prompts: Sequence[Prompt],
        *,
        policy: Policy,
        sample: Sample,
        ranks: Ranks,
        loss: Loss,
    ) -> None:
        """Play a round, unless the pool has it or its file is there from before an interruption."""
        self.ranks = ranks
        if "pairs" not in self.slots and not self.labels.scores:
            refuse_many(sample.responses, self.labels.labeler.name)
        if self.pool.round >= number:
            return
        self.phases.display.round(number, self.rounds)
        moved = self.reference == "previous_round" and number > 0
        if moved:
            policy.refer_to_current()
        if ranks.on_rank_zero(lambda: self.is_there(round_file(self.rounds_folder, number))):
            self._adopt(number)
            return
        self.evaluation, self.heldout_rows = None, []
        at = Round(number, self.seed, policy, self.sampler, self.pool, ranks, self.phases, loss)
        if moved and len(self.pool):
            at = replace(at, pool=rescore_pool(at))
        self.pool = self._played(at, prompts, sample)
        of_round = sum(ranks.gather([at.counts]), Counter[str]())
        self.counts.update(of_round)
        self.judged = Counter({name: of_round[name] for name in COUNTED})
        if not PoolItems(self.pool, loss.needs, round=number):
            ties, invalid = self.judged["ties"], self.judged["invalid"]
            raise ValueError(
                f"Round {number} made no {form_of(loss.needs)} out of {len(self.pool)} prompts: every verdict was "
                f"a tie, invalid, or beyond the label budget ({ties} ties, {invalid} invalid). "
                "Check the labeler, and that the sampler gives different responses."
            )
        self.write()

    def _played(self, at: Round, prompts: Sequence[Prompt], sample: Sample) -> Pool:
        """Play a round that a crash does not lose, with labels bought during the sampling where that is possible."""
        pair_selector = self.slots.get("pairs")

        def feed(chosen: Sequence[Prompt]) -> UnlabeledFeed:
            return UnlabeledFeed(self.rounds_folder, at.number, chosen, responses=sample.responses)

        with LabelAhead(self.labels, lambda some: buy_labels(at, some, None, self.labels)) as labels:
            early = WhileSampling(sample, labels, feed) if pair_selector is None else sample  # all will be labeled
            parts = Parts(
                sample=Resumable(early, prompts, self.rounds_folder),
                labels=labels,
                weighting=self.weighting,
                keep=self.keep,
                prompt_selector=self.slots.get("prompts"),  # type: ignore[arg-type]
                pair_selector=pair_selector,  # type: ignore[arg-type]
            )
            pool = play_round(at, prompts, parts)
            if ahead := labels.finish():
                self.phases.display.say(f"{ahead} prompts were labeled while the round was sampled.")
                at.counts["labeled_ahead"] += ahead
        return pool

    def is_there(self, path: Path) -> bool:
        """Whether a file of the run is there and whole; one that is damaged is named, and will be written anew."""
        if not path.exists():
            return False
        if why := damage(path):
            self.phases.display.say(f"{path} is damaged ({why}); what it held is made again, with the same labels.")
        return why is None

    def _adopt(self, number: int) -> None:
        self.pool, about = Pool.load(self.rounds_folder, number)
        self.counts = Counter({k: about.get(k, 0) for k in SAMPLED}) + Counter(
            pairs_trained=self.counts["pairs_trained"]  # the file may have counted this round's training already
        )
        judged = about.get("judged", {"round": {}, "run": {}})  # which files of an earlier version have not
        self.counts.update(judged["run"])
        self.judged = Counter(judged["round"])
        self.phases.load_state_dict(about["seconds"])

    def spent_out(self, number: int, ranks: Ranks) -> bool:
        """Whether fresh responses could get no label any more, so that they are not worth sampling."""

        def nothing_left() -> bool:  # a round that was begun before, or whose file is damaged, has bought its labels
            begun = files_of(self.rounds_folder, number) or round_file(self.rounds_folder, number).exists()
            return self.labels.exhausted and not begun

        if len(self.pool) == 0 or not ranks.on_rank_zero(nothing_left):
            return False
        self.phases.display.say(f"The label budget of {self.labels.budget} is spent; training goes on with its pairs.")
        return True

    def loader(self, number: int, loss: Loss) -> ItemBatches:
        """The batches of a round's training."""
        items = PoolItems(self.pool, loss.needs, round=number, only_round=self.train_on == "round")
        self.pairs_this_round = len(items) * self.epochs_per_round
        return ItemBatches(
            items,
            batch_size=self.batch_size,
            seed=self.seed,
            round=number,
            passes=self.epochs_per_round,
            rank=self.ranks.rank,
            size=self.ranks.size,
            normalize=self.weighting.normalize,
        )

    def about(self) -> dict[str, Any]:
        """What is written about the run with each round's table."""
        labels = self.labels
        return {
            "round": self.pool.round,
            "rounds": self.rounds,
            "seed": self.seed,
            "budget": labels.budget,
            "labels": {"spent": labels.spent, "reused": labels.reused, "evaluation": labels.evaluation},
            **{k: self.counts[k] for k in (*SAMPLED, "pairs_trained")},
            "judged": {"round": dict(self.judged), "run": {name: self.counts[name] for name in COUNTED}},
            "money": {"spent": labels.money, "evaluation": labels.money_evaluation, "budget": labels.budget_money},
            "seconds": dict(self.phases.seconds),
            "evaluation": self.evaluation,
        }

    def write(self) -> None:
        """Write the round's file, on rank 0; then what was kept before its labels has served, and the ledger is copied.

        A ledger elsewhere serves several runs, and its copies are their owner's business.
        """
        if self.ranks.rank == 0:
            self.pool.save(self.rounds_folder, self.about(), self.heldout_rows)
            forget(self.rounds_folder, self.pool.round)
            if Path(self.labels.ledger.path).resolve().parent == self.folder.resolve():
                self.labels.ledger.copy(ledger_copy(self.folder))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the round, whose file holds the rest."""
        return {
            "round": self.pool.round,
            "phases": self.phases.state_dict(),
            "counts": dict(self.counts),
            "judged": dict(self.judged),
            "prompts": self.prompts_id,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the pool of the checkpoint's round."""
        if state["round"] >= 0:
            self.pool, _ = Pool.load(self.rounds_folder, state["round"])
        self.phases.load_state_dict(state["phases"])
        self.counts = Counter(state["counts"])
        self.judged = Counter(state.get("judged", {}))
        if self.prompts_id not in ("", state.get("prompts", self.prompts_id)):
            raise ValueError(
                "The prompts of data.train are others than when this run began, and its pool belongs to those; "
                "go on with the old ones, or choose another name=..."
            )


def labels_metrics(about: Mapping[str, Any]) -> dict[str, float]:
    """What a round's labels were like, for the loggers: counts of the run so far, shares of the round."""
    bought = {**about["labels"], "ahead": about["labeled_ahead"], "money": about["money"]["spent"]}
    found = {**bought, **shares(about["judged"]["round"])}
    return {f"labels/{name}": float(value) for name, value in found.items() if value is not None}
