"""Test mixtures of several sources in shares."""

from __future__ import annotations

import logging

import pytest

from choosy.data.mixture import divided, drawn, mixture
from choosy.types import Candidates, Prompt, Response


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(f"{name}{n}", f"{name} {n}?") for n in range(count)]


def test_as_many_as_can_be_are_drawn_and_each_names_its_source(caplog: pytest.LogCaptureFixture) -> None:
    found = {"data/a.jsonl": prompts("a", 100), "b.jsonl": prompts("b", 9)}
    with caplog.at_level(logging.WARNING):
        mixed = mixture(found, [0.7, 0.3], limit=None)
    assert [prompt.source for prompt in mixed] == ["a.jsonl"] * 21 + ["b.jsonl"] * 9
    assert "takes 30 prompts: 21 of the 100 of data/a.jsonl, 9 of the 9 of b.jsonl." in caplog.text
    assert mixed == sorted(mixed, key=[*found["data/a.jsonl"], *found["b.jsonl"]].index), "in the order of the files"
    assert [prompt.id for prompt in mixed[:21]] != [f"a{n}" for n in range(21)], "and not the first ones"
    turned = {source: items[::-1] for source, items in found.items()}
    assert {*mixture(turned, [0.7, 0.3], limit=None)} == {*mixed}, "a draw by ids"
    fewer = mixture(found, [0.7, 0.3], limit=10)
    assert [prompt.source for prompt in fewer] == ["a.jsonl"] * 7 + ["b.jsonl"] * 3
    assert {*fewer} < {*mixed}


def test_given_answers_are_mixed_as_prompts_are() -> None:
    pairs = [Candidates(prompt, (Response("yes"), Response("no"))) for prompt in prompts("a", 4)]
    mixed = mixture({"x/a": pairs[:2], "y/a": pairs[2:]}, [1, 1], limit=2)
    assert [c.prompt.source for c in mixed] == ["x/a", "y/a"], "alike without their folders"


def test_a_prompt_of_two_sources_counts_once() -> None:
    found = {"a": prompts("a", 4), "b": [*prompts("a", 2), *prompts("b", 2)]}
    assert [prompt.source for prompt in mixture(found, [0.5, 0.5], limit=None)] == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="b: id a0 is taken by a, whose row differs; rename or drop one"):
        mixture({"a": prompts("a", 4), "b": [Prompt("a0", "something else")]}, [0.5, 0.5], limit=None)


@pytest.mark.parametrize("limit", [None, 34, 97])
@pytest.mark.parametrize("shares", [[1, 1, 1], [0.1, 0.2, 0.7], [0.07, 0.9, 0.03]])
def test_whole_numbers_are_as_near_to_the_shares_as_can_be(shares: list[float], limit: int | None) -> None:
    counts = drawn({"a": 100, "b": 100, "c": 100}, shares, limit=limit)
    total = sum(counts.values())
    assert total == limit or limit is None
    for count, share in zip(counts.values(), shares, strict=True):
        assert abs(count - total * share / sum(shares)) < 1
    assert limit is not None or max(counts.values()) in (99, 100), "all of the source that is the shortest"


def test_too_few_rows_are_refused_with_what_is_taken() -> None:
    with pytest.raises(ValueError, match=r"takes 30 of 100 prompts from b, which has 9; type data\.limit=30 or less"):
        drawn({"a": 100, "b": 9}, [0.7, 0.3], limit=100)
    with pytest.raises(ValueError, match=r"takes 0 of 2 prompts from b, which has 9; type other"):
        drawn({"a": 2, "b": 9}, [0.9, 0.1], limit=None)
    for limit in (None, 10):
        with pytest.raises(ValueError, match=r"from b, which has 0; type other shares, or leave it out"):
            drawn({"a": 100, "b": 0}, [0.7, 0.3], limit=limit)


@pytest.mark.parametrize(
    ("train", "shares", "words"),
    [
        (["a", "b"], [0.5], "gives no positive share to each of the 2 sources"),
        (["a", "b"], [0.5, 0.0], "gives no positive share to each of the 2 sources"),
        (["a", "b"], [0.5, float("inf")], "gives no positive share"),
        (["a", "b", "a"], [1.0, 1.0, 1.0], "data.train names a twice"),
        ("a", [1.0], "data.train=a is one; type null"),
        ({"a": 0.7, "b": 0.3}, [1.0, 1.0], "data.train=.* has shares, and data.shares=.* others; drop one"),
        ({"a": 0.7, "b": -0.3}, None, "gives no positive share"),
        ({"a": "x"}, None, r"data\.shares=\['x'\] gives no positive share"),
    ],
)
def test_what_is_no_share_of_each_source_is_refused(train, shares, words) -> None:
    with pytest.raises(ValueError, match=words):
        divided(train, shares)


def test_shares_are_typed_by_name_or_in_a_list() -> None:
    assert divided({"a": 0.7, "b": 0.3}, None) == divided(["a", "b"], [0.7, 0.3]) == (["a", "b"], [0.7, 0.3])
    assert divided(["a", "a"], None) == (["a", "a"], None)
