"""Prompts that ask for the score of a response."""

from __future__ import annotations

import pytest

from choosy.data.asked_score import AskedScore
from choosy.data.encode import asking
from choosy.types import Candidates, Message, Prompt, Response

SCORES = AskedScore("Reach {score} of 10.", place="user")


def given(*golds: float) -> Candidates:
    chat = Prompt("p", "Hi", (Message("user", "Hi"),))
    return Candidates(chat, tuple(Response(f"r{gold:g}", gold=gold) for gold in golds))


def test_each_of_many_responses_is_asked_for_and_the_others_are_the_worse_the_further() -> None:
    found = {c.prompt.id: [(r.text, r.gold) for r in c.responses] for c in SCORES.augmented(given(9, 4, 7.5))}
    assert found == {
        "p for 9": [("r9", 0.0), ("r4", -5.0), ("r7.5", -1.5)],
        "p for 4": [("r9", -5.0), ("r4", 0.0), ("r7.5", -3.5)],
        "p for 7.5": [("r9", -1.5), ("r4", -3.5), ("r7.5", 0.0)],
    }


def test_responses_of_one_score_are_equal_and_asked_for_once() -> None:
    assert [[r.gold for r in c.responses] for c in SCORES.augmented(given(6, 6))] == [[0.0, 0.0]]


def test_the_instruction_stands_once_before_the_user_turn_and_the_plain_prompt_is_kept() -> None:
    """The authors' code for models without a system turn puts it there twice, and swaps no response."""
    one, other = SCORES.augmented(given(8, 3))
    assert [m.content for m in one.prompt.messages] == ["Reach 8 of 10.\n\nHi"]
    assert [m.content for m in other.prompt.messages] == ["Reach 3 of 10.\n\nHi"]
    assert one.prompt.plain == other.prompt.plain == given().prompt


def test_held_out_pairs_ask_for_the_highest_score_and_stay_pairs() -> None:
    (pair,) = asking({"a.jsonl:1": given(8, 3)}, SCORES, heldout=True).values()
    assert pair.prompt.messages[0].content == "Reach 10 of 10.\n\nHi"
    assert [r.gold for r in pair.responses] == [8, 3]


@pytest.mark.parametrize("golds", [(1.0, 0.0), (11.0, 2.0)], ids=["pairs without scores", "another scale"])
def test_a_score_beyond_the_scale_is_refused_with_its_row(golds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"a.jsonl:7: a response has the score (0|11), which is not on the scale from"):
        asking({"a.jsonl:7": given(*golds)}, SCORES, heldout=False)


def test_an_instruction_without_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must say \{score\}"):
        AskedScore("Be good.")
