"""Batches: the same pairs on any number of ranks, none dropped, resumable between any two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pools import put

from choosy.data.batches import Batch, Item, ItemBatches, PoolItems, batch_of, shuffled
from choosy.data.pool import Pool
from choosy.methods.loss_inputs import Facts
from choosy.types import Candidates, Pair, Prompt, Response

NEEDS = frozenset({"pair", "reference"})


def pool_of(pairs: int) -> Pool:
    """One pair a prompt, each with a weight and lengths of its own."""
    return put(
        Pool(),
        [
            Candidates(
                Prompt(f"p{i:02d}", "?"),
                (
                    Response("yes", (1,) * (i % 4 + 1), logp_ref=-1.0 - i, reward=2.0 + i),
                    Response("no", (2, 3), logp_ref=-2.0, reward=0.5),
                ),
                (5,) * (i % 3 + 1),
                pairs=(Pair(0, 1, weight=1.0 + i),),
            )
            for i in range(pairs)
        ],
        round=0,
    )


def batches(pairs: int = 11, **how: Any) -> ItemBatches:
    return ItemBatches(PoolItems(pool_of(pairs), NEEDS, round=1), **{"batch_size": 4, "seed": 0, "round": 1} | how)


def names(batch: Batch) -> list[str]:
    return [item.prompt_id for item in batch.items]


# -- which pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "sizes"), [(11, [4, 4, 3]), (8, [4, 4]), (3, [3]), (4, [4])])
def test_the_short_last_batch_is_kept(pairs: int, sizes: list[int]) -> None:
    loader = batches(pairs)
    given = list(loader)
    assert [len(batch) for batch in given] == [batch.total for batch in given] == sizes
    assert len(loader) == len(sizes)
    assert sorted(name for batch in given for name in names(batch)) == [f"p{i:02d}" for i in range(pairs)]


def test_every_pass_takes_all_pairs_in_an_order_of_its_own() -> None:
    given = list(batches(11, passes=2))
    assert [len(batch) for batch in given] == [4, 4, 3, 4, 4, 3]
    order = [name for batch in given for name in names(batch)]
    first, second = order[:11], order[11:]
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_order_is_a_function_of_seed_and_round() -> None:
    assert [names(b) for b in batches()] == [names(b) for b in batches()]
    orders = [shuffled(20, seed=seed, round=round, passes=1)[0] for seed, round in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len(set(map(tuple, orders))) == 4


def test_without_pairs_there_is_one_empty_batch() -> None:
    (batch,) = batches(0)
    assert (len(batch), batch.total, batch.groups, list(batch.parts(100))) == (0, 0, [], [])


# -- ranks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_ranks_together_take_what_one_takes_alone(size: int, normalize: bool) -> None:
    alone = list(batches(normalize=normalize))
    ranks = [list(batches(rank=rank, size=size, normalize=normalize)) for rank in range(size)]
    assert {len(given) for given in ranks} == {len(alone)}, "every rank takes every step"
    for whole, *shares in zip(alone, *ranks, strict=True):
        weight_of = dict(zip(names(whole), whole.weight_B.tolist(), strict=True))
        together = [(n, w) for share in shares for n, w in zip(names(share), share.weight_B.tolist(), strict=True)]
        assert sorted(together) == sorted(weight_of.items())
        assert {share.total for share in shares} == {whole.total}
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11])
def test_a_normalised_weight_depends_on_the_round_and_not_on_the_batch(batch_size: int) -> None:
    """Weights 1 ... 11 have mean 6: whatever its neighbours, a pair of weight w counts w / 6."""
    given = list(batches(11, batch_size=batch_size, normalize=True, passes=2))
    weights = [(n, w) for batch in given for n, w in zip(names(batch), batch.weight_B.tolist(), strict=True)]
    assert len(weights) == 22
    for name, weight in weights:
        assert weight == pytest.approx((1 + int(name[1:])) / 6)


def test_only_the_items_of_the_round_are_in_the_mean() -> None:
    """Weights 1 and 2 of round 0, 3 and 4 of round 1; rank 0 of 2 has the first two of four."""
    labeled = [replace(c, pairs=(replace(c.pairs[0], round=i // 2),)) for i, c in enumerate(pool_of(4).candidates())]
    items = PoolItems(put(Pool(), labeled, round=1), NEEDS, round=1, only_round=True)
    assert ItemBatches(items, batch_size=4, seed=0, round=1, normalize=True).mean_weight == 3.5
    every = list(PoolItems(put(Pool(), labeled, round=1), NEEDS, round=1))
    assert batch_of(every, rank=0, size=2, mean_weight=2.5).weight_B.tolist() == pytest.approx([0.4, 0.8])
    assert batch_of(every).weight_B.tolist() == [1, 2, 3, 4]


# -- resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", range(7))
def test_a_loader_put_back_gives_the_remaining_batches_exactly(given: int) -> None:
    uninterrupted = [names(batch) for batch in batches(passes=2)]
    loader = batches(passes=2)
    steps: Iterator[Batch] = iter(loader)
    before = [names(next(steps)) for _ in range(given)]
    resumed = batches(passes=2)
    resumed.load_state_dict(loader.state_dict())
    assert before + [names(batch) for batch in resumed] == uninterrupted


def test_a_loader_starts_over_after_its_last_batch() -> None:
    loader = batches()
    assert [names(batch) for batch in loader] == [names(batch) for batch in loader]
    assert loader.state_dict() == {"given": 0, "of": 3}


# -- contents -------------------------------------------------------------------------------------------


def test_a_batch_typed_in_full() -> None:
    batch = batch_of(list(PoolItems(pool_of(2), NEEDS, round=1)))
    assert [group[:2] for group in batch.groups] == [((5,), [(1,), (2, 3)]), ((5, 5), [(1, 1), (2, 3)])]
    assert batch.weight_B.tolist() == [1.0, 2.0]
    assert (len(batch), batch.total, batch.some(()).total, len(batch.some(()))) == (2, 2, 2, 0)
    s = batch.loss_inputs(torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]), Facts(kl=0.5))
    assert s.logp_R.tolist() == [-1.0, -5.0, -9.0, -13.0]
    assert s.ref_R.tolist() == [-1.0, -2.0, -2.0, -2.0]
    assert s.length_R.tolist() == [1, 2, 2, 2]
    assert s.item_R.tolist() == [0, 0, 1, 1]
    assert s.good_R.tolist() == [True, False, True, False]
    assert s.reward_R.tolist() == [2.0, 0.5, 3.0, 0.5]
    assert s.gap_B.tolist() == [1.5, 2.5]
    assert (len(s.own_K), s.facts.kl, s.tokens) == (0, 0.5, None)


def test_items_of_any_size_with_samples_of_the_policy_s_own_typed_in_full() -> None:
    """A list of three whose policy has moved on, and a bad single one with another sample of the round."""
    a = Item("a", (5,), [(1,), (2,), (3, 3)], [-1.0, -2.0, -3.0], 1.0, [3.0, 2.0, 1.0])
    own = {"on_policy": True, "own_ids": [(7,)], "own_ref_logps": [-5.0], "own_logps": [-12.0, -8.0]}
    b = Item("b", (6,), [(4, 4)], [-4.0], 2.0, [-1.0], good=False, **own)
    s = batch_of([a, b]).loss_inputs(-torch.arange(1.0, 8.0))
    assert s.logp_R.tolist() == [-1.0, -2.0, -7.0, -11.0]
    assert s.ref_R.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert s.item_R.tolist() == [0, 0, 0, 1]
    assert s.good_R.tolist() == [True, False, False, False]
    assert s.own_K.tolist() == [-11.0, -7.0]
    assert s.own_ref_K.tolist() == [-4.0, -5.0]
    assert s.own_item_K.tolist() == [1, 1]
    assert s.own_sampled_K.tolist() == [-12.0, -8.0]


def test_log_probs_of_single_tokens_are_those_of_the_items_alone() -> None:
    a = Item("a", (5,), [(1, 2), (3,)], [-3.0, -4.0], ref_token_logps=[(-1.0, -2.0), (-4.0,)])
    b = Item("b", (6,), [(4,), ()], [-5.0, 0.0], ref_token_logps=[(-5.0,), ()], own_ids=[(7, 7)], own_ref_logps=[-1.0])
    tokens = batch_of([a, b]).loss_inputs(-torch.arange(1.0, 7.0)).tokens
    assert tokens is not None
    assert tokens.logp_T.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert tokens.ref_T.tolist() == [-1.0, -2.0, -4.0, -5.0]
    assert tokens.id_T.tolist() == [1, 2, 3, 4]
    assert tokens.response_T.tolist() == [0, 0, 1, 2]


def test_tokens_that_others_say_count_nowhere() -> None:
    """Of two responses the masked one has two tokens of its own; another sample follows them."""
    responses = [(1, 2, 8, 3), (4,)]
    refs = [(-1.0, -1.0), (-2.0,)]
    masks = [(True, False, False, True), ()]
    x = Item("a", (5,), responses, [-2.0, -2.0], 1.0, (2.0, 1.0), True, refs, False, [(7, 7)], [-1.0], masks)
    s = batch_of([x]).loss_inputs(-torch.arange(1.0, 6.0))
    assert s.logp_R.tolist() == [-3.0, -3.0]
    assert s.length_R.tolist() == [2, 1]
    assert s.own_K.tolist() == [-9.0]
    assert s.tokens is not None
    assert s.tokens.logp_T.tolist() == [-1.0, -2.0, -3.0]
    assert s.tokens.id_T.tolist() == [1, 3, 4]
    assert s.tokens.response_T.tolist() == [0, 0, 1]


def all_pairs_pool(prompts: int) -> Pool:
    """Four scored responses to each prompt, in all six pairs."""
    responses = tuple(Response("", (i, i + 1), logp_ref=-1.0, reward=float(-i)) for i in range(4))
    pairs = tuple(Pair(i, j) for i in range(4) for j in range(i + 1, 4))
    return put(
        Pool(), [Candidates(Prompt(f"p{n}", "?"), responses, (n, 9), pairs=pairs) for n in range(prompts)], round=0
    )


def test_the_pairs_of_a_prompt_share_a_batch_a_rank_and_a_part() -> None:
    items = PoolItems(all_pairs_pool(6), NEEDS, round=1)
    given = [list(ItemBatches(items, batch_size=24, seed=0, round=1, rank=rank, size=2)) for rank in (0, 1)]
    assert [len(batch) for rank in given for batch in rank] == [12, 6, 12, 6]
    for batch in [batch for rank in given for batch in rank]:
        assert len(set(names(batch))) == len(batch) / 6, "whole prompts, each with its six pairs"
        parts = list(batch.parts(6))  # a prompt of 2 tokens and four responses, which add one each
        assert {len(part) for part in parts} == {6}
        assert all(len(set(names(part))) == 1 for part in parts)


@pytest.mark.parametrize("tokens_per_step", [1, 12, 1000])
def test_parts_cover_the_batch_once(tokens_per_step: int) -> None:
    (batch,) = batches(11, batch_size=11, normalize=True)
    parts = list(batch.parts(tokens_per_step))
    assert len(parts) == {1: 11, 1000: 1}.get(tokens_per_step, len(parts))
    pieces = [(n, w) for part in parts for n, w in zip(names(part), part.weight_B.tolist(), strict=True)]
    assert sorted(pieces) == sorted(zip(names(batch), batch.weight_B.tolist(), strict=True))
    assert all(part.total == batch.total == 11 for part in parts)
    assert math.fsum(part.weight_B.sum().item() for part in parts) == pytest.approx(batch.weight_B.sum().item())
