"""Items of the pool: pairs, ranked lists, good and bad responses, with what each kind of loss needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
from pools import put

from choosy.data.batches import PoolItems
from choosy.data.pool import Pool
from choosy.methods.loss_inputs import Need
from choosy.types import Candidates, Pair, Prompt, Response

REWARDS = (0.5, None, 2.0, 0.5)


def scored(name: str, round: int, *pairs: Pair, rewards: tuple[float | None, ...] = REWARDS) -> Candidates:
    """A prompt with a response of n + 1 tokens for the n-th reward."""
    responses = tuple(
        Response(str(n), (n,) * (n + 1), True, -1.0 * n, -2.0 * n, reward, None, (-2.0,) * (n + 1))
        for n, reward in enumerate(rewards)
    )
    return Candidates(Prompt(name, "?"), responses, (9,), round, pairs=pairs)


ROWS = [
    scored("a", 0, Pair(2, 0, weight=0.5, round=0), Pair(2, 3, weight=1.5, round=1)),
    scored("b", 1, Pair(0, 2, weight=3.0, round=1)),
    scored("c", 1, rewards=(1.0,)),
    scored("d", 0, rewards=(-1.0,)),
    scored("nothing", 1),
    scored("no verdict", 1, rewards=(0.0,)),
]


def items(*needs: Need, **how: Any) -> PoolItems:
    return PoolItems(put(Pool(), ROWS, round=1), needs, round=1, **how)


def shown(found: Collection[Any]) -> list[tuple[str, list[tuple[int, ...]], float, bool]]:
    return [(x.prompt_id, x.response_ids, x.weight, x.good) for x in found]


ZERO, ONE, TWO, THREE = (0,), (1, 1), (2, 2, 2), (3, 3, 3, 3)


def test_pairs() -> None:
    assert shown(items("pair")) == [
        ("a", [TWO, ZERO], 0.5, True),
        ("a", [TWO, THREE], 1.5, True),
        ("b", [ZERO, TWO], 3.0, True),
    ]
    assert shown(items("pair", only_round=True)) == shown(items("pair"))[1:]
    assert shown(items()) == shown(items("pair")), "a loss of any form is given pairs"
    first = items("pair")[0]
    assert (first.prompt_ids, first.ref_logps, first.rewards) == ((9,), [-4.0, 0.0], [2.0, 0.5])
    assert first.key == ("a", (9,), (TWO, ZERO))


def test_lists_rank_the_responses_that_have_a_reward() -> None:
    """The list of a row weighs as much as its pairs do on average."""
    assert shown(items("list")) == [("a", [TWO, ZERO, THREE], 1.0, True), ("b", [TWO, ZERO, THREE], 3.0, True)]
    assert items("list")[0].rewards == [2.0, 0.5, 0.5]
    assert [x.weight for x in items("list", only_round=True)] == [1.5, 3.0]


def test_single_responses_are_good_or_bad() -> None:
    """Of a pair the chosen one is good and the other bad; a lone response is as good as its reward's sign."""
    assert shown(items("single")) == [
        ("a", [TWO], 0.5, True),
        ("a", [ZERO], 0.5, False),
        ("a", [TWO], 1.5, True),
        ("a", [THREE], 1.5, False),
        ("b", [ZERO], 3.0, True),
        ("b", [TWO], 3.0, False),
        ("c", [ZERO], 1.0, True),
        ("d", [ZERO], 1.0, False),
    ]
    assert [x.prompt_id for x in items("single", only_round=True)] == ["a", "a", "b", "b", "c"]


@pytest.mark.parametrize("form", ["pair", "single"])
def test_own_samples_are_the_other_responses_of_this_round(form: Need) -> None:
    """Once for each prompt, however many items it has; those of an earlier round are no samples of this policy."""
    own = {(x.prompt_id, x.response_ids[0]): (x.on_policy, x.own_ids, x.own_ref_logps) for x in items(form, "own")}
    assert own["a", TWO] == (False, [], [])
    assert own["b", ZERO] == (True, [ONE, THREE], [-2.0, -6.0])
    if form == "single":
        assert own["b", TWO] == own["c", ZERO] == (True, [], [])
        assert own["d", ZERO] == (False, [], [])


def test_given_responses_are_no_samples_of_the_policy() -> None:
    given = Candidates(Prompt("p", "?"), (Response("a", (1,)), Response("b", (2,))), (9,), 0, pairs=(Pair(0, 1),))
    (item,) = PoolItems(put(Pool(), [given], round=0), {"pair", "own"}, round=0)
    assert math.isnan(given.responses[0].logp)
    assert (item.on_policy, item.own_ids) == (False, [])


def test_samples_beside_given_responses_go_with_the_first_item_of_the_prompt() -> None:
    own = (Response("", (7, 7), logp=-4.0, logp_ref=-3.0),)
    responses = (Response("a", (1,)), Response("b", (2,)))
    given = Candidates(Prompt("p", "?"), responses, (9,), 0, pairs=(Pair(0, 1),), own=own)
    pool = put(Pool(), [given], round=4)
    first, second = PoolItems(pool, {"single", "own"}, round=4)
    assert (first.own_ids, first.own_ref_logps, first.own_logps) == ([(7, 7)], [-3.0], [-4.0])
    assert (second.own_ids, second.own_logps) == ([], [])
    assert [x.own_ids for x in PoolItems(pool, {"pair"}, round=4)] == [[]]
    later = put(pool, [], round=5)
    assert [x.own_ids for x in PoolItems(later, {"pair", "own"}, round=5)] == [[]], "they were another policy's"


def test_what_no_loss_needs_is_left_out() -> None:
    assert [x for x in items("pair") if x.on_policy or x.own_ids or x.ref_token_logps] == []
    assert items("pair", "tokens")[0].ref_token_logps == [(-2.0, -2.0, -2.0), (-2.0,)]


def test_an_empty_pool_has_no_items() -> None:
    for form in ("pair", "list", "single"):
        found = PoolItems(Pool(), {form}, round=0)  # type: ignore[arg-type]
        assert (len(found), list(found), found.weights.tolist()) == (0, [], [])
