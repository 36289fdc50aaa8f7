"""What each round trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from choosy.data.pool import Keep
from choosy.errors import refuse_none, refuse_unknown
from choosy.methods.loss_inputs import Loss, form_of
from choosy.methods.pairing import PairingRule, Threshold
from choosy.methods.weighting import GapSource
from choosy.rounds.context import TrainOn


@dataclass(frozen=True)
class Training:
    """Which pairs each round trains on, in which batches.

    Attributes:
        batch_size: Pairs of one optimiser step, over all ranks.
        epochs_per_round: Passes over the pairs in each round.
        train_on: All labeled pairs of the `pool`, or those labeled in this `round`.
        keep: Which labeled responses of a prompt stay in the pool: the `newest`, or `all`.
        pairing: Which responses make pairs where all of a prompt are scored (see `methods/pairing.py`); `auto` is `all`
            for a loss on pairs, and `best_worst` for one on lists or single responses or with a term of own samples.
        threshold: The reward above which a prompt's single response is good, and below which it is bad: a number, or
            the `mean` or `median` of the rewards of the round's single responses.
        reward_gap: Whether weights and margins read the gap of `bought` rewards, the one that the learned reward has
            `predicted` from the labels of earlier rounds, or the `difference` that the verdicts on all other pairs
            predict (RDO, 2408.09385). The latter two serve labelers that only compare.
    """

    batch_size: int = 16
    epochs_per_round: int = 1
    train_on: TrainOn = "pool"
    keep: Keep = "newest"
    pairing: PairingRule | Literal["auto"] = "auto"
    threshold: Threshold = 0.0
    reward_gap: GapSource = "bought"

    def __post_init__(self) -> None:
        refuse_none("batching.batch_size", self.batch_size)
        refuse_none("epochs_per_round", self.epochs_per_round)
        refuse_unknown("train_on", self.train_on, get_args(TrainOn))
        refuse_unknown("pool.keep", self.keep, get_args(Keep))
        refuse_unknown("reward_gap", self.reward_gap, get_args(GapSource))
        refuse_unknown("pairing", self.pairing, ("auto", *get_args(PairingRule)))
        if isinstance(self.threshold, str):
            refuse_unknown("threshold", self.threshold, ("a number", "mean", "median"))

    def pairing_for(self, loss: Loss) -> PairingRule:
        """The pairing rule of a run with this loss."""
        if self.pairing != "auto":
            return self.pairing
        return "all" if form_of(loss.needs) == "pair" and "own" not in loss.needs else "best_worst"
