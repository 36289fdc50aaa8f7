"""From the pool's pairs to optimiser batches: exact in pairs, packed by tokens, resumable between any two.

Which pairs form a batch depends on the seed, the round and the pairs alone; ranks share each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from choosy.data.pool import PairKey, Pool, TrainingPair
from choosy.methods.weighting import mean_weight
from choosy.models.rows import Group, packed
from choosy.types import seed_of


@dataclass(frozen=True)
class Batch:
    """This rank's pairs of one optimiser step.

    Attributes:
        pairs: The pairs; may be empty on a rank of a short last batch.
        weight_B: Their weights.
        total: Pairs of the step over all ranks, by which the summed loss is divided.
    """

    pairs: tuple[TrainingPair, ...]
    weight_B: Tensor
    total: int

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def groups(self) -> list[Group]:
        """Per pair its prompt with chosen and rejected response."""
        return [Group(p.prompt_ids, [p.chosen_ids, p.rejected_ids]) for p in self.pairs]

    @property
    def logp_ref_B2(self) -> Tensor:
        """Reference log-probs of chosen and rejected."""
        return torch.tensor([[p.chosen_logp_ref, p.rejected_logp_ref] for p in self.pairs]).view(-1, 2)

    @property
    def gap_B(self) -> Tensor:
        """reward(chosen) - reward(rejected); nan where there are no rewards."""
        return torch.tensor([p.gap for p in self.pairs])

    def none(self) -> Batch:
        """The same step for a rank that has no pair of it."""
        return Batch((), torch.empty(0), self.total)

    def without(self, pairs: Sequence[PairKey]) -> Batch:
        """The batch without some pairs, which still count in the total."""
        kept = [i for i, pair in enumerate(self.pairs) if pair.key not in pairs]
        return Batch(tuple(self.pairs[i] for i in kept), self.weight_B[kept], self.total)

    def parts(self, tokens_per_step: int, *, one_row: bool = False) -> Iterator[Batch]:
        """The batch in pieces that fit the token budget; the pieces' summed losses are the batch's."""
        for positions in packed(self.groups, tokens_per_step, one_row=one_row):
            yield Batch(tuple(self.pairs[i] for i in positions), self.weight_B[positions], self.total)


def batch_of(pairs: Sequence[TrainingPair], *, rank: int = 0, size: int = 1, mean_weight: float = 1.0) -> Batch:
    """This rank's share of an optimiser batch, its weights divided by the mean weight of the round if wanted."""
    weight_B = torch.tensor([pair.weight for pair in pairs], dtype=torch.float32) / mean_weight
    return Batch(tuple(pairs[rank::size]), weight_B[rank::size], len(pairs))


def pair_order(n: int, *, seed: int, round: int, passes: int) -> list[int]:
    """A fresh shuffle of n positions for each pass of a round.

    Example:
        >>> order = pair_order(4, seed=0, round=1, passes=2)
        >>> sorted(order[:4]), sorted(order[4:])
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    order: list[int] = []
    for one in range(passes):
        generator = torch.Generator().manual_seed(seed_of(seed, "order", round, one))
        order += torch.randperm(n, generator=generator).tolist()
    return order


class PairBatches:
    """A loader over the pairs of one round that can be put back to any batch.

    Every pass takes all pairs; the last batch of a pass may be short, and nothing is dropped. Without pairs it
    gives one empty batch, so that the round still ends.
    """

    def __init__(
        self,
        pool: Pool,
        rows: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        seed: int,
        round: int,
        passes: int = 1,
        rank: int = 0,
        size: int = 1,
        normalize: bool = False,
    ) -> None:
        self.pool = pool
        self.rows = rows
        self.rank = rank
        self.size = size
        self.mean_weight = mean_weight(torch.from_numpy(pool.weights(rows))) if normalize else 1.0
        self.given = 0
        order = pair_order(len(rows), seed=seed, round=round, passes=passes)
        by_pass = [order[at : at + len(rows)] for at in range(0, len(order), len(rows) or 1)]
        self.batches = [one[at : at + batch_size] for one in by_pass for at in range(0, len(one), batch_size)] or [[]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        start, self.given = self.given, 0
        for number, positions in enumerate(self.batches[start:], start=start):
            self.given = number + 1
            pairs = [self.pool.training_pair(*self.rows[i]) for i in positions]
            yield batch_of(pairs, rank=self.rank, size=self.size, mean_weight=self.mean_weight)
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        """How many batches have been given, and of how many."""
        return {"given": self.given, "of": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that had been given.

        Raises:
            ValueError: They were other batches.
        """
        if state["given"] and state.get("of", len(self)) != len(self):
            raise ValueError(
                f"The checkpoint was written after {state['given']} of {state['of']} steps in the middle of a round, "
                f"which has {len(self)} steps as the run is set up now; go on with the old batching.batch_size, "
                "epochs_per_round and train_on, or from a round's checkpoint, ckpt_path=.../round_NNN.ckpt."
            )
        self.given = int(state["given"])
