"""A run: its rounds in order, what they cost, and how they are kept, resumed and read back."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from choosy.batching import PairBatches
from choosy.ledger import Desk
from choosy.policy import Policy
from choosy.pool import Keep, Pool, is_readable, round_file
from choosy.progress import Phases
from choosy.ranks import OneRank, Ranks
from choosy.rounds import PairSelector, PromptSelector, Round, Sample, TrainOn, play_round, refuse_many, rescored
from choosy.sampling import Sampler
from choosy.types import Prompt
from choosy.weighting import Weighting

log = logging.getLogger(__name__)

SAMPLED = ("tokens_generated", "prompts_sampled", "responses_cut", "responses_empty", "sync_milliseconds")

Reference = Literal["initial", "previous_round"]


class Run:
    """Holds the pool and the two slots, and plays each round once.

    Args:
        folder: Of the run; rounds are kept in `rounds/` below it.
        seed: Of the run.
        rounds: How many are planned.
        sampler: The sampling engine.
        desk: Where labels are bought.
        weighting: The factor on each pair's loss.
        batch_size: Pairs of one optimiser step, over all ranks.
        epochs_per_round: Passes over the pairs in each round.
        train_on: All pairs of the `pool`, or those made in this `round`.
        keep: What the pool keeps of a prompt: its `latest` responses, or `all` that made pairs.
        reference: The policy at the start (`initial`), or as it was before each round (`previous_round`).
    """

    def __init__(
        self,
        folder: str,
        *,
        seed: int,
        rounds: int,
        sampler: Sampler,
        desk: Desk,
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
            ("pool.keep", keep, ("latest", "all")),
            ("reference", reference, ("initial", "previous_round")),
        ):
            if given not in known:
                raise ValueError(f"{name}={given} is none of {', '.join(known)}.")
        if weighting.needs == "gap" and not desk.scores:
            raise ValueError(
                f"{type(weighting).__name__} weighs a pair by its rewards, and labeler {desk.labeler.name} gives none: "
                "it only compares. Choose weighting=uniform, or a labeler that scores, such as labeler=vader."
            )
        self.folder = Path(folder)
        self.seed = seed
        self.rounds = rounds
        self.sampler = sampler
        self.desk = desk
        self.weighting = weighting
        self.batch_size = batch_size
        self.epochs_per_round = epochs_per_round
        self.train_on = train_on
        self.keep = keep
        self.reference = reference
        self.pool = Pool()
        self.phases = Phases()
        self.counts: Counter[str] = Counter()
        self.ranks: Ranks = OneRank()
        self.slots: dict[str, PromptSelector | PairSelector] = {}
        self.heldout_rows: list[Mapping[str, Any]] = []
        self.evaluation: dict[str, float] | None = None

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

    def open(self, *, resuming: bool) -> None:
        """Open the ledger; refuse a folder that holds another run's rounds.

        Raises:
            ValueError: The folder holds rounds and this is no resume, or it cannot be written to.
        """
        refuse_used_folder(self.folder, resuming=resuming)
        refuse_unwritable(self.rounds_folder)
        self.desk.open(str(self.folder.resolve()))

    def expect(self, responses: int) -> None:
        """Before anything is sampled: refuse more responses to a prompt than can be judged as the run is set up."""
        if "pairs" not in self.slots and not self.desk.scores:
            refuse_many(responses, self.desk.labeler.name)

    def play(
        self,
        number: int,
        prompts: Sequence[Prompt],
        *,
        policy: Policy,
        sample: Sample,
        ranks: Ranks,
        beta: float,
    ) -> None:
        """Play the round, unless the pool has got it or its file is there from before an interruption."""
        self.ranks = ranks
        if self.pool.round >= number:
            return
        self.phases.display.round(number, self.rounds)
        moved = self.reference == "previous_round" and number > 0
        if moved:
            policy.refer_to_current()
        if is_readable(round_file(self.rounds_folder, number)):
            self._adopt(number)
            return
        self.evaluation, self.heldout_rows = None, []
        at = Round(number, self.seed, policy, self.sampler, self.pool, ranks, self.phases, beta)
        if moved and len(self.pool):
            at = Round(number, self.seed, policy, self.sampler, rescored(at), ranks, self.phases, beta)
        self.pool = play_round(
            at,
            prompts,
            sample=sample,
            prompt_selector=self.slots.get("prompts"),  # type: ignore[arg-type]
            pair_selector=self.slots.get("pairs"),  # type: ignore[arg-type]
            desk=self.desk,
            weighting=self.weighting,
            keep=self.keep,
        )
        for counts in ranks.gather([at.counts]):
            self.counts.update(counts)
        if not self.pool.pair_rows():
            raise ValueError(
                f"Round {number} made no pair out of {len(self.pool)} prompts: every verdict was a tie, invalid, or "
                "beyond the label budget. Check the labeler, and that the sampler gives different responses."
            )
        self.write()

    def _adopt(self, number: int) -> None:
        self.pool, about = Pool.load(self.rounds_folder, number)
        self.counts = Counter({k: about.get(k, 0) for k in SAMPLED}) + Counter(
            pairs_trained=self.counts["pairs_trained"]  # the file may have counted this round's training already
        )
        self.phases.load_state_dict({"seconds": about["seconds"]})

    def spent_out(self, ranks: Ranks) -> bool:
        """Whether fresh responses could get no label any more, so that they are not worth sampling."""
        if len(self.pool) == 0 or not ranks.once(lambda: self.desk.exhausted):
            return False
        self.phases.display.say(f"The label budget of {self.desk.budget} is spent; training goes on with its pairs.")
        return True

    def loader(self, number: int) -> PairBatches:
        """The batches of a round's training."""
        rows = self.pool.pair_rows(round=number if self.train_on == "round" else None)
        self.pairs_this_round = len(rows) * self.epochs_per_round
        return PairBatches(
            self.pool,
            rows,
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
        desk = self.desk
        return {
            "round": self.pool.round,
            "rounds": self.rounds,
            "seed": self.seed,
            "budget": desk.budget,
            "labels": {"spent": desk.spent, "reused": desk.reused, "evaluation": desk.evaluation},
            **{k: self.counts[k] for k in (*SAMPLED, "pairs_trained")},
            "seconds": dict(self.phases.seconds),
            "evaluation": self.evaluation,
        }

    def write(self) -> None:
        """Write the round's file, on rank 0."""
        if self.ranks.rank == 0:
            self.pool.save(self.rounds_folder, self.about(), self.heldout_rows)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the round, whose file holds the rest."""
        return {"round": self.pool.round, "phases": self.phases.state_dict(), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the pool of the checkpoint's round."""
        if state["round"] >= 0:
            self.pool, _ = Pool.load(self.rounds_folder, state["round"])
        self.phases.load_state_dict(state["phases"])
        self.counts = Counter(state["counts"])


def refuse_used_folder(folder: Path, *, resuming: bool) -> None:
    """A folder that holds rounds is only for going on with them.

    Raises:
        ValueError: It holds a run, and this is no resume.
    """
    if not resuming and any((folder / "rounds").glob("*.parquet")):
        state = "a finished run" if (folder / "summary.json").exists() else "an unfinished run"
        raise ValueError(
            f"{folder} already holds {state}; choose another name=..., "
            "or go on with it: the same command with ckpt_path=last."
        )


def refuse_scattered(folder: Path, ranks: Ranks) -> None:
    """All processes of a run share one folder.

    Raises:
        ValueError: They disagree, as when each has named the run after its own clock.
    """
    found = sorted(set(ranks.gather([str(folder.resolve())])))
    if len(found) > 1:
        raise ValueError(
            f"The {ranks.size} processes of this run chose {len(found)} folders ({found[0]}, {found[1]}); "
            "give the run a name, so that all choose the same: name=..."
        )


def refuse_unwritable(folder: Path) -> None:
    """Make the folder of a run, or say why it cannot be.

    Raises:
        ValueError: It cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error}); choose another run_dir=..."
        ) from error
