"""Optimiser batches of the pool's items: exact in items, packed by tokens, resumable between any two.

Which items form a batch depends on the seed, the round and the items alone; ranks share each batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from choosy.data.items import Item, ItemKey, PoolItems
from choosy.methods.loss_inputs import LossInputs, TokenLogps
from choosy.methods.weighting import mean_weight
from choosy.models.logprobs import sum_by_response
from choosy.models.rows import Group, packed
from choosy.types import seed_of


@dataclass(frozen=True)
class Batch:
    """This rank's items of one optimiser step."""

    items: tuple[Item, ...]  # may be empty on a rank of a short last batch
    weight_B: Tensor
    total: int  # items of the step over all ranks, by which the summed loss is divided

    def __len__(self) -> int:
        return len(self.items)

    @property
    def groups(self) -> list[Group]:
        """The prompt of each item with its responses."""
        return [item.group for item in self.items]

    def loss_inputs(self, logp_T: Tensor, *, kl: float = 0.0) -> LossInputs:
        """What the loss is given: the log-probs of the groups' response tokens with what the pool knows about them."""
        device, items = logp_T.device, self.items
        logp_S = sum_by_response(logp_T, self.groups)  # S: of each item its responses, then its other samples
        ref_S = torch.tensor([ref for x in items for ref in (*x.ref_logps, *x.own_ref_logps)], device=device)
        item_S = torch.tensor([n for n, x in enumerate(items) for _ in x.group.response_ids])
        other_S = torch.tensor([i >= len(x.response_ids) for x in items for i in range(len(x.group.response_ids))])
        place_R = (~other_S).nonzero().flatten().to(device)
        own_S = other_S | torch.tensor([x.on_policy for x in items])[item_S]
        place_K = own_S.nonzero().flatten().to(device)
        length_R = torch.tensor([len(ids) for x in items for ids in x.response_ids], dtype=torch.long)
        return LossInputs(
            logp_S[place_R],
            ref_S[place_R],
            sizes=[len(x.response_ids) for x in items],
            length_R=length_R.to(device),
            good_R=torch.tensor([x.good and i == 0 for x in items for i in range(len(x.response_ids))], device=device),
            reward_R=torch.tensor([reward for x in items for reward in x.rewards], dtype=torch.float64),
            own=(logp_S[place_K], ref_S[place_K], item_S.to(device)[place_K]),
            kl=kl,
            tokens=self._token_logps(logp_T, length_R) if items[0].ref_token_logps else None,
        )

    def _token_logps(self, logp_T: Tensor, length_R: Tensor) -> TokenLogps:
        """Log-probabilities of the tokens of the items' responses, without those of other samples."""
        items, device = self.items, logp_T.device
        other_T = [n >= len(x.response_ids) for x in items for n, ids in enumerate(x.group.response_ids) for _ in ids]
        ref_T = [ref for x in items for of_response in x.ref_token_logps for ref in of_response]
        id_T = [token for x in items for ids in x.response_ids for token in ids]
        return TokenLogps(
            logp_T[~torch.tensor(other_T, device=device)],
            torch.tensor(ref_T, device=device),
            torch.tensor(id_T, device=device),
            torch.repeat_interleave(length_R).to(device),
        )

    def some(self, positions: Sequence[int]) -> Batch:
        """Some items of the same step; the others still count in the total."""
        return Batch(tuple(self.items[i] for i in positions), self.weight_B[list(positions)], self.total)

    def without(self, items: Collection[ItemKey]) -> Batch:
        """The batch without some items."""
        return self.some([i for i, item in enumerate(self.items) if item.key not in items])

    def parts(self, tokens_per_step: int, *, one_row: bool = False) -> Iterator[Batch]:
        """The batch in pieces that fit the token budget; the pieces' summed losses are the batch's."""
        for positions in packed(self.groups, tokens_per_step, one_row=one_row):
            yield self.some(positions)


def batch_of(items: Sequence[Item], *, rank: int = 0, size: int = 1, mean_weight: float = 1.0) -> Batch:
    """This rank's share of an optimiser batch, its weights divided by the mean weight of the round if wanted."""
    weight_B = torch.tensor([item.weight for item in items], dtype=torch.float32) / mean_weight
    return Batch(tuple(items[rank::size]), weight_B[rank::size], len(items))


def shuffled(n: int, *, seed: int, round: int, passes: int) -> list[list[int]]:
    """A fresh shuffle of n positions for each pass of a round."""
    generators = [torch.Generator().manual_seed(seed_of(seed, "order", round, one)) for one in range(passes)]
    return [torch.randperm(n, generator=generator).tolist() for generator in generators]


class ItemBatches:
    """A loader over the items of one round that can be put back to any batch.

    Every pass takes all items; the last batch of a pass may be short, and nothing is dropped. Without items it
    gives one empty batch, so that the round still ends.

    Args:
        batch_size: Items of one optimiser step, over all ranks.
        passes: Passes over the items in the round.
        normalize: Whether weights are divided by their mean over the round.
    """

    def __init__(
        self,
        items: PoolItems,
        *,
        batch_size: int,
        seed: int,
        round: int,
        passes: int = 1,
        rank: int = 0,
        size: int = 1,
        normalize: bool = False,
    ) -> None:
        self.items = items
        self.rank = rank
        self.size = size
        self.mean_weight = mean_weight(torch.from_numpy(items.weights)) if normalize else 1.0
        self.given = 0
        orders = shuffled(len(items), seed=seed, round=round, passes=passes)
        self.batches = [one[at : at + batch_size] for one in orders for at in range(0, len(one), batch_size)] or [[]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        start, self.given = self.given, 0
        for number, positions in enumerate(self.batches[start:], start=start):
            self.given = number + 1
            mine = [self.items[i] for i in positions]
            yield batch_of(mine, rank=self.rank, size=self.size, mean_weight=self.mean_weight)
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        """How many batches have been given, and of how many."""
        return {"given": self.given, "of": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that had been given; other batches are refused."""
        if state["given"] and state.get("of", len(self)) != len(self):
            raise ValueError(
                f"The checkpoint was written after {state['given']} of {state['of']} steps in the middle of a round, "
                f"which has {len(self)} steps as the run is set up now; continue with the old batching.batch_size, "
                "epochs_per_round and train_on, or from a round's checkpoint, ckpt_path=.../round_NNN.ckpt."
            )
        self.given = int(state["given"])
