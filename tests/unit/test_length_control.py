"""The win rate at equal lengths."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choosy.methods.length_control import length_controlled
from choosy.rounds.evaluate import evaluate
from choosy.types import Candidates, Prompt, Response

OUTCOMES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20
)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_equal_lengths_give_the_raw_rate_with_half_a_win_and_half_a_loss_more() -> None:
    found = length_controlled([1, 1, 1, 0], [(7, 7)] * 4)
    assert found is not None
    assert found.value == pytest.approx(3.5 / 5)
    error = 1 / math.sqrt(4 * 0.7 * 0.3)
    assert [logit(end) for end in found[1:]] == pytest.approx(
        [logit(0.7) + sign * 1.959964 * error for sign in (-1, 1)]
    )


def test_answers_that_win_by_their_length_alone_win_half_at_equal_lengths() -> None:
    wins, lengths = [1.0] * 13 + [0.0] * 5, [(9, 5)] * 14 + [(5, 9)] * 4
    found = length_controlled(wins, lengths)
    assert found is not None
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert found.low < 0.3 < 0.7 < found.high


def test_a_preference_that_lengths_do_not_explain_stays() -> None:
    rng = random.Random(0)
    wins = [float(rng.random() < 0.8) for _ in range(400)]
    found = length_controlled(wins, [(rng.randint(1, 99), rng.randint(1, 99)) for _ in wins])
    assert found is not None
    assert found.value == pytest.approx(sum(wins) / 400, abs=0.01)
    assert found.low < 0.8 < found.high


def test_lengths_that_differ_always_by_the_same_say_nothing_of_equal_ones() -> None:
    assert length_controlled([1, 0, 1], [(9, 5)] * 3) is None
    assert length_controlled([], []) is None


@settings(deadline=None)
@given(OUTCOMES)
def test_any_outcomes_have_a_finite_rate_and_the_mirrored_ones_the_rest(rows: list[tuple[float, int, int]]) -> None:
    found = length_controlled([won for won, *_ in rows], [(one, other) for _, one, other in rows])
    mirrored = length_controlled([1 - won for won, *_ in rows], [(other, one) for _, one, other in rows])
    assert (found is None) == (mirrored is None)
    if found is not None and mirrored is not None:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert mirrored.value == pytest.approx(1 - found.value, abs=1e-6)


def test_an_evaluation_has_it_beside_the_raw_rate() -> None:
    def answers(text: str) -> list[Candidates]:
        return [Candidates(Prompt(f"p{n}", "?"), (Response(text * (n + 1)),)) for n in range(6)]

    class Judge:
        scores = False

        def compare(self, asked, *, purpose):
            return ["first" if len(one.text) > len(other.text) else "second" for _, one, other in asked]

    found = evaluate(answers("long "), {c.prompt.id: c for c in answers("s")}, Judge()).metrics  # type: ignore[arg-type]
    assert found["win_rate"] == 1
    assert found["win_rate_lc_low"] < 0.5 < found["win_rate_lc"] < 1  # type: ignore[operator]
    assert {found[f"win_rate_lc{end}"] for end in ("", "_low", "_high")} != {None}
    unjudged = evaluate(answers("a"), {c.prompt.id: c for c in answers("b")}, None).metrics
    assert unjudged["win_rate_lc"] is None
