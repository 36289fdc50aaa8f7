"""Optimiser batches of the pool's items: exact in items, packed by tokens, resumable between any two.

Which items form a batch depends on the seed, the round and the items alone; ranks share each batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from choosy.data.pool import Pool
from choosy.methods.loss_inputs import NO_STEPS_YET, Facts, LossInputs, Need, Partners, TokenLogps, form_of
from choosy.methods.pairing import ranked
from choosy.methods.weighting import mean_weight
from choosy.models.logprobs import sum_by_response
from choosy.models.rows import Group, Ids, deduplicated, packed, together
from choosy.parallel.neighbours import share_of
from choosy.types import Candidates, seed_of

ItemKey = tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]


class Item(NamedTuple):
    """A prompt with the responses that a loss takes together, the best first.

    These are chosen and rejected, a ranked list, or a single response. The log-probabilities are the reference's.
    """

    prompt_id: str
    prompt_ids: Ids
    response_ids: Sequence[Ids]
    ref_logps: Sequence[float]  # of the responses; nan if not known
    weight: float = 1.0  # factor on the item's loss
    rewards: Sequence[float] = (math.nan, math.nan)  # the labeler's, or a predicted gap and 0; nan where there are none
    good: bool = True  # whether a single response is good
    ref_token_logps: Sequence[Sequence[float]] = ()  # of the responses' tokens, for a loss that needs tokens
    on_policy: bool = False  # whether the policy sampled the responses in this round, for a loss that needs its own
    own_ids: Sequence[Ids] = ()  # the round's other samples to the prompt, for a loss that needs the policy's own
    own_ref_logps: Sequence[float] = ()
    masks: Sequence[Sequence[bool]] = ()  # of the responses: which tokens the assistant says; empty: all
    own_logps: Sequence[float] = ()  # of the responses, if on policy, and of the others, when they were sampled

    @property
    def key(self) -> ItemKey:
        """What distinguishes the item from others."""
        return self.prompt_id, tuple(self.prompt_ids), tuple(map(tuple, self.response_ids))

    @property
    def group(self) -> Group:
        """The prompt with the item's responses and the policy's other samples, for a forward pass."""
        return Group(self.prompt_ids, [*self.response_ids, *self.own_ids], self.masks)

    @property
    def said_ids(self) -> list[Ids]:
        """The tokens of each response that the assistant says."""
        return [[ids[at] for at in said] for ids, said in zip(self.response_ids, self.group.places, strict=False)]


class PoolItems:
    """The items that a round trains on, each built from the pool when it is needed.

    Args:
        needs: What the loss needs: it decides the form of the items, and what they hold.
        round: The present round, whose responses are samples of the present policy.
        only_round: Leave out items that were labeled in earlier rounds.
        neutral: The reward that says nothing; a list leaves it out.
    """

    def __init__(
        self,
        pool: Pool,
        needs: Collection[Need],
        *,
        round: int,
        only_round: bool = False,
        neutral: float | None = None,
    ) -> None:
        self.pool = pool
        self.needs = needs
        self.round = round
        self.neutral = neutral
        self.form = form_of(needs)
        labeled_in = round if only_round else None
        pairs = pool.pair_rows(round=labeled_in)
        self.places = [(row, p) for row, p, _ in pairs]  # row, position among the row's items
        self.weights = np.array([weight for *_, weight in pairs])
        if self.form == "list":
            self.places = [(row, 0) for row in dict.fromkeys(row for row, *_ in pairs)]
            number = np.unique([row for row, *_ in pairs], return_inverse=True)[1]
            self.weights = np.bincount(number, self.weights) / np.maximum(np.bincount(number), 1)
        elif self.form == "single":
            lone = pool.lone_rows(round=labeled_in)
            self.places = [(row, 2 * p + bad) for row, p, _ in pairs for bad in (0, 1)] + [(row, 0) for row, _ in lone]
            self.weights = np.concatenate([np.repeat(self.weights, 2), [weight for _, weight in lone]])

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> list[int]:
        """The pool's row of each item."""
        return [row for row, _ in self.places]

    def __getitem__(self, n: int) -> Item:
        row, position = self.places[n]
        (c,) = self.pool.candidates([row])
        order, good = _order(c, self.form, position, self.neutral)
        responses = [c.responses[i] for i in order]
        rewards = [math.nan if r.reward is None else r.reward for r in responses]
        if self.form == "pair" and not math.isnan(gap := c.pairs[position].predicted_gap):
            rewards = [gap, 0.0]
        on_policy = "own" in self.needs and c.round == self.round and not any(math.isnan(r.logp) for r in c.responses)
        others = [r for i, r in enumerate(c.responses) if on_policy and i not in _labeled(c)]
        others = [*others, *c.own] if position == 0 and "own" in self.needs else []
        return Item(
            c.prompt.id,
            c.prompt_ids,
            [r.ids for r in responses],
            [r.logp_ref for r in responses],
            float(self.weights[n]),
            rewards,
            good,
            [r.token_logps_ref for r in responses] if "tokens" in self.needs else (),
            on_policy,
            [r.ids for r in others],
            [r.logp_ref for r in others],
            [r.mask for r in responses],
            [r.logp for r in [*(responses if on_policy else ()), *others]],
        )


def _labeled(c: Candidates) -> set[int]:
    """The responses that are in some item."""
    in_pairs = {i for pair in c.pairs for i in (pair.chosen, pair.rejected)}
    return in_pairs or {i for i, r in enumerate(c.responses) if r.reward is not None}


def _order(c: Candidates, form: Need, position: int, neutral: float | None) -> tuple[Sequence[int], bool]:
    """Positions of an item's responses, the best first, and whether it is good."""
    if form == "list":
        return ranked([r.reward for r in c.responses], neutral), True
    if not c.pairs:
        return (0,), (c.responses[0].reward or 0.0) > c.threshold
    if form == "pair":
        return (c.pairs[position].chosen, c.pairs[position].rejected), True
    pair, bad = c.pairs[position // 2], position % 2 == 1
    return (pair.rejected if bad else pair.chosen,), not bad


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

    @property
    def named_groups(self) -> list[tuple[str, Group]]:
        """The prompt of each item with its responses, behind the prompt's id."""
        return [(item.prompt_id, item.group) for item in self.items]

    def loss_inputs(
        self, logp_T: Tensor, facts: Facts = NO_STEPS_YET, partners: Mapping[ItemKey, Sequence[float]] | None = None
    ) -> LossInputs:
        """What the loss is given: the log-probs of the groups' response tokens with what the pool knows about them.

        Args:
            logp_T: The log-probs, (T,), or (2, T) with the collisions below them.
            facts: What no part of a step shows by itself.
            partners: Of the items' pairs, for a loss that needs the step.
        """
        logp_T, *collision_T = logp_T.view(-1, logp_T.shape[-1])
        device, items = logp_T.device, self.items
        if partners:
            numbers = torch.tensor([partners[item.key] for item in items], device=device)
            facts = facts._replace(partners=Partners(*numbers.T))
        logp_S = sum_by_response(logp_T, self.groups)  # S: of each item its responses, then its other samples
        ref_S = torch.tensor([ref for x in items for ref in (*x.ref_logps, *x.own_ref_logps)], device=device)
        item_S = torch.tensor([n for n, x in enumerate(items) for _ in x.group.response_ids])
        other_S = torch.tensor([i >= len(x.response_ids) for x in items for i in range(len(x.group.response_ids))])
        place_R = (~other_S).nonzero().flatten().to(device)
        own_S = other_S | torch.tensor([x.on_policy for x in items])[item_S]
        place_K = own_S.nonzero().flatten().to(device)
        sampled_K = torch.tensor([logp for x in items for logp in x.own_logps], device=device)
        length_R = torch.tensor([len(ids) for x in items for ids in x.said_ids], dtype=torch.long)
        return LossInputs(
            logp_S[place_R],
            ref_S[place_R],
            sizes=[len(x.response_ids) for x in items],
            length_R=length_R.to(device),
            collision_R=sum_by_response(collision_T[0], self.groups)[place_R] if collision_T else None,
            good_R=torch.tensor([x.good and i == 0 for x in items for i in range(len(x.response_ids))], device=device),
            reward_R=torch.tensor([reward for x in items for reward in x.rewards], dtype=torch.float64),
            own=(logp_S[place_K], ref_S[place_K], item_S.to(device)[place_K], sampled_K),
            facts=facts,
            tokens=self._token_logps(logp_T, length_R) if items[0].ref_token_logps else None,
        )

    def _token_logps(self, logp_T: Tensor, length_R: Tensor) -> TokenLogps:
        """Log-probabilities of the tokens of the items' responses, without those of other samples."""
        items, device = self.items, logp_T.device
        other_T = [n >= len(x.response_ids) for x in items for n, said in enumerate(x.group.places) for _ in said]
        ref_T = [ref for x in items for of_response in x.ref_token_logps for ref in of_response]
        id_T = [token for x in items for ids in x.said_ids for token in ids]
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
        """The batch in pieces that fit the token budget; the pieces' summed losses are the batch's.

        Items of a prompt stay together where they fit: a response that they have in common is computed once.
        """
        groups = self.groups
        joined = together(groups, tokens_per_step)
        laid = [deduplicated([groups[i] for i in positions])[0][0] for positions in joined]
        for numbers in packed(laid, tokens_per_step, one_row=one_row):
            yield self.some([i for n in numbers for i in joined[n]])


def batch_of(items: Sequence[Item], *, rank: int = 0, size: int = 1, mean_weight: float = 1.0) -> Batch:
    """This rank's share of an optimiser batch, its weights divided by the mean weight of the round if wanted.

    It takes neighbours, for they may have a prompt in common.
    """
    return batch_from(items[share_of(len(items), rank, size)], len(items), mean_weight)


def batch_from(mine: Sequence[Item], total: int, mean_weight: float) -> Batch:
    """A batch of this rank's items, of so many over all ranks."""
    weight_B = torch.tensor([item.weight for item in mine], dtype=torch.float32) / mean_weight
    return Batch(tuple(mine), weight_B, total)


def shuffled(n: int, *, seed: int, round: int, passes: int) -> list[list[int]]:
    """A fresh shuffle of n positions for each pass of a round."""
    generators = [torch.Generator().manual_seed(seed_of(seed, "order", round, one)) for one in range(passes)]
    return [torch.randperm(n, generator=generator).tolist() for generator in generators]


def by_prompt(order: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The order with the items of a prompt side by side, at the place of its first; their responses are computed once.

    Args:
        rows: The pool's row of each item.

    Example:
        >>> by_prompt([3, 0, 2, 1], rows=[7, 7, 8, 8])
        [3, 2, 0, 1]
    """
    first: dict[int, int] = {}
    for place, item in enumerate(order):
        first.setdefault(rows[item], place)
    return sorted(order, key=lambda item: first[rows[item]])


class ItemBatches:
    """A loader over the items of one round that can be put back to any batch.

    Every pass takes all items; the last batch of a pass may be short, and nothing is dropped. Without items it
    gives one empty batch, so that the round still ends.

    Args:
        batch_size: Items of one optimiser step, over all ranks.
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
        orders = [by_prompt(one, items.rows) for one in shuffled(len(items), seed=seed, round=round, passes=passes)]
        self.batches = [one[at : at + batch_size] for one in orders for at in range(0, len(one), batch_size)] or [[]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        start, self.given = self.given, 0
        for number, positions in enumerate(self.batches[start:], start=start):
            self.given = number + 1
            mine = [self.items[i] for i in positions[share_of(len(positions), self.rank, self.size)]]
            yield batch_from(mine, len(positions), self.mean_weight)
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
