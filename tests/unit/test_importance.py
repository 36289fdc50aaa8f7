"""Weights of labels on what was sampled ahead: by the ratios of the responses in each item."""

from __future__ import annotations

import math

import pytest

from choosy.rounds.importance import ratio_of, weighed
from choosy.types import Candidates, Pair, Prompt, Response

THREE = tuple(Response(text, logp=-2.0) for text in "abc")
RATIOS = {0: 2.0, 1: 0.5, 2: 1.5}


def test_a_pair_weighs_by_its_two_responses_and_a_list_by_all():
    c = Candidates(Prompt("p", "?"), THREE, pairs=(Pair(0, 2, weight=3.0), Pair(1, 2)))
    assert [pair.weight for pair in weighed(c, RATIOS, is_list=False).pairs] == [9.0, 0.75]
    assert [pair.weight for pair in weighed(c, RATIOS, is_list=True).pairs] == [4.5, 1.5]


def test_a_lone_response_weighs_by_its_own():
    assert weighed(Candidates(Prompt("p", "?"), THREE[:1], weight=3.0), {0: 0.5}, is_list=False).weight == 1.5
    assert weighed(Candidates(Prompt("p", "?"), THREE[:1]), {0: 0.5}, is_list=False).weight == 0.5
    unlabeled = Candidates(Prompt("p", "?"), THREE)
    assert weighed(unlabeled, {}, is_list=False) is unlabeled


def test_a_ratio_is_of_now_to_then():
    c = Candidates(Prompt("p", "?"), (*THREE, Response("d")))
    assert ratio_of(c, 0, -1.0) == pytest.approx(math.e)
    assert ratio_of(c, 0, -1e9) > 0
    assert ratio_of(c, 0, 1e9) < math.inf
    with pytest.raises(AssertionError, match="prompt p: a response was sampled without its log-prob"):
        ratio_of(c, 3, -1.0)
