"""The items of the pool that a round trains on: pairs, lists or single responses, as the loss needs them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from choosy.data.pool import Pool
from choosy.methods.loss_inputs import Need, form_of
from choosy.methods.pairing import ranked
from choosy.models.rows import Group, Ids
from choosy.types import Candidates

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
    rewards: Sequence[float] = (math.nan, math.nan)  # the labeler's; nan where there are none
    good: bool = True  # whether a single response is good
    ref_token_logps: Sequence[Sequence[float]] = ()  # of the responses' tokens, for a loss that needs tokens
    on_policy: bool = False  # whether the policy sampled the responses in this round, for a loss that needs its own
    own_ids: Sequence[Ids] = ()  # the round's other samples to the prompt, for a loss that needs the policy's own
    own_ref_logps: Sequence[float] = ()

    @property
    def key(self) -> ItemKey:
        """What distinguishes the item from others."""
        return self.prompt_id, tuple(self.prompt_ids), tuple(map(tuple, self.response_ids))

    @property
    def group(self) -> Group:
        """The prompt with the item's responses and the policy's other samples, for a forward pass."""
        return Group(self.prompt_ids, [*self.response_ids, *self.own_ids])


class PoolItems:
    """The items that a round trains on, each built from the pool when it is needed.

    Args:
        needs: What the loss needs: it decides the form of the items, and what they hold.
        round: The present round, whose responses are samples of the present policy.
        only_round: Leave out items that were labeled in earlier rounds.
    """

    def __init__(self, pool: Pool, needs: Collection[Need], *, round: int, only_round: bool = False) -> None:
        self.pool = pool
        self.needs = needs
        self.round = round
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

    def __getitem__(self, n: int) -> Item:
        row, position = self.places[n]
        (c,) = self.pool.candidates([row])
        order, good = _order(c, self.form, position)
        responses = [c.responses[i] for i in order]
        rewards = [math.nan if r.reward is None else r.reward for r in responses]
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
        )


def _labeled(c: Candidates) -> set[int]:
    """The responses that are in some item."""
    in_pairs = {i for pair in c.pairs for i in (pair.chosen, pair.rejected)}
    return in_pairs or {i for i, r in enumerate(c.responses) if r.reward is not None}


def _order(c: Candidates, form: Need, position: int) -> tuple[Sequence[int], bool]:
    """Positions of an item's responses, the best first, and whether it is good."""
    if form == "list":
        return ranked([r.reward for r in c.responses]), True
    if not c.pairs:
        return (0,), (c.responses[0].reward or 0.0) > 0
    if form == "pair":
        return (c.pairs[position].chosen, c.pairs[position].rejected), True
    pair, bad = c.pairs[position // 2], position % 2 == 1
    return (pair.rejected if bad else pair.chosen,), not bad
