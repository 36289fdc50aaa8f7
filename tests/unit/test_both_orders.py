"""The verdicts on a pair in both orders are one verdict; a contradiction is a tie."""

from __future__ import annotations

import json

import pytest

from choosy.labeling.judge.judge import combine_orders
from choosy.labeling.protocols import Answer
from choosy.types import Verdict


@pytest.mark.parametrize(
    ("one", "turned", "verdict"),
    [
        ("first", "second", "first"),
        ("second", "first", "second"),
        ("first", "first", "tie"),
        ("second", "second", "tie"),
        ("tie", "tie", "tie"),
        ("first", "tie", "tie"),
        ("tie", "first", "tie"),
        ("invalid", "first", "invalid"),
        ("second", "invalid", "invalid"),
        ("invalid", "invalid", "invalid"),
    ],
)
def test_only_a_labeler_that_agrees_with_itself_decides(one: Verdict, turned: Verdict, verdict: Verdict) -> None:
    assert combine_orders(Answer(3, one), Answer(3, turned)) == Answer(3, verdict, json.dumps([one, turned]))


def test_words_and_costs_of_both_are_in_the_answer() -> None:
    answer = combine_orders(Answer(0, "tie", "so so", 0.25, "ada"), Answer(0, "tie", "équal", 0.5, "ada"))
    assert answer == Answer(0, "tie", '["so so", "équal"]', 0.75, "ada")
