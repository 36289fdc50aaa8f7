"""Which two scored responses make a pair."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from choosy.methods.pairing import all_unequal, best_and_worst, sweet_spot

REWARDS = st.integers(-20, 20).map(lambda n: n / 4)


def test_sweet_spot_worked_by_hand() -> None:
    """Two of 5, twelve of 0, -4, -8: mean -2 / 16 = -.125, squares 50 + 16 + 64 = 130, deviation 2.848: -5.82."""
    assert sweet_spot([-8.0, 5.0, *[0.0] * 12, 5.0, -4.0]) == [(1, 15)]


def test_a_response_as_good_as_the_best_is_never_rejected() -> None:
    """Ninety-nine of 0 and one of -100: two deviations below the mean are -20.9, to which 0 is nearer than -100."""
    assert sweet_spot([*[0.0] * 99, -100.0]) == [(0, 99)]


def test_of_two_equally_near_the_lower_is_rejected() -> None:
    """Mean 0 and squares 25 + 9 + 6 + 4 = 44 over eleven: deviation 2, and -5 and -3 are both 1 away from -4."""
    assert sweet_spot([-3.0, 0.0, 0.0, *[1.0] * 6, 2.0, -5.0]) == [(9, 10)]


@given(st.lists(REWARDS, min_size=2, max_size=5))
def test_among_five_responses_the_sweet_spot_is_the_worst(rewards: list[float]) -> None:
    assert sweet_spot(rewards) == best_and_worst(rewards)


@given(st.lists(REWARDS, min_size=2, max_size=12))
def test_a_pair_is_the_best_and_a_lesser_one(rewards: list[float]) -> None:
    for rule in (best_and_worst, sweet_spot):
        made = rule(rewards)
        assert len(made) == (len(set(rewards)) > 1)
        for chosen, rejected in made:
            assert rewards[chosen] == max(rewards) > rewards[rejected]


@given(st.lists(REWARDS, min_size=2, max_size=12))
def test_all_pairs_are_those_of_unequal_rewards(rewards: list[float]) -> None:
    made = all_unequal(rewards)
    assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in made)
    assert len({*made}) == len(made) == sum(a != b for a, b in combinations(rewards, 2))
    assert {*best_and_worst(rewards)} <= {*made}
