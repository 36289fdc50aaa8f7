"""Buying labels: none is bought twice, and every one is in the ledger before it is used."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from toy_labelers import Lengths, Longer, given, rewards, rows

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Ledger, Question
from choosy.labeling.protocols import LIST_AT_ONCE, Answer
from choosy.types import Candidates, Message, Prompt, Response, Verdict

# --- buying and reusing ---


def test_scores_are_returned_in_place_and_stored_as_rows(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer()
    asked = [given("p", "a", "bbb"), given("q", "cc")]
    assert rewards(counter.score(asked)) == [[1.0, 3.0], [2.0]]
    assert rewards(asked) == [[None, None], [None]]
    kept = rows(path, "SELECT labeler, kind, prompt_id, prompt, response_first, score, purpose, run, cost FROM labels")
    assert kept[1] == ("lengths", "score", "p", "What about p?", "bbb", 3.0, "train", "a", 0.0)
    assert (counter.spent, counter.counts.reused, counter.counts.evaluation, counter.pays(1)) == (3, 0, 0, True)


def test_a_label_is_never_bought_twice(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(first := Lengths())
    counter.score([given("p", "a", "a", "bb")])
    counter.score([given("p", "bb", "a")])
    assert sorted(first.asked) == ["a", "bb"]
    assert (counter.spent, counter.counts.reused) == (2, 0)
    other = buyer(second := Lengths(), run="b", budget=1)
    assert rewards(other.score([given("p", "a", "bb", "ccc")])) == [[1.0, 2.0, 3.0]]
    assert second.asked == ["ccc"]
    assert (other.spent, other.counts.reused, other.pays(1)) == (1, 2, False)
    assert buyer(run="b").counts.reused == 2, "a resumed run reports the same"


def test_a_question_is_identified_by_labeler_conversation_and_response(buyer: Callable[..., LabelBuyer]) -> None:
    labeler = Lengths()
    as_user = Prompt("p", "hi", (Message("user", "hi"),))
    as_system = Prompt("p", "hi", (Message("system", "hi"),))
    for prompt in (Prompt("p", "hi"), as_user, as_system, Prompt("renamed", "hi")):
        buyer(labeler).score([Candidates(prompt, (Response("a", ids=(1,), finished=False),))])
    assert labeler.asked == ["a"] * 3, "roles matter, the prompt's id does not"
    labeler.name = "lengths-2"
    buyer(labeler).score([Candidates(as_user, (Response("a"),))])
    assert len(labeler.asked) == 4


def test_the_ledger_uses_write_ahead_logging(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    buyer().score([given("p", "a")])
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_labels_are_committed_before_they_are_used(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    """During a call, other connections see the labels of the calls before it."""
    seen: list[int] = []

    class Watching(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
            seen.append(len(rows(path)))
            return super().score(items)

    buyer(Watching()).score([given(f"p{i}", "a") for i in range(2 * LIST_AT_ONCE + 1)])
    assert seen == [0, LIST_AT_ONCE, 2 * LIST_AT_ONCE]


def test_an_open_buyer_can_be_pickled(buyer: Callable[..., LabelBuyer]) -> None:
    counter = pickle.loads(pickle.dumps(buyer()))
    assert rewards(counter.score([given("p", "a")])) == [[1.0]]
    assert counter.spent == 1


def test_no_question_buys_no_label(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(budget=1)
    assert counter.score([]) == []
    assert counter.compare([]) == []
    assert counter.score([given("p")]) == [given("p")]
    assert counter.spent == 0


# --- comparisons ---

PROMPT = Prompt("p", "Which?")
A, BB, CC = Response("a"), Response("bb"), Response("cc")


def test_verdicts_are_bought_up_to_the_budget(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer(labeler := Longer(), budget=2)
    assert (counter.terms.scores, counter.terms.compares) == (False, True)
    assert counter.compare([(PROMPT, A, BB), (PROMPT, BB, CC), (PROMPT, A, CC)]) == ["second", "tie", None]
    assert labeler.asked == [("a", "bb"), ("bb", "cc")]
    kept = rows(path, "SELECT kind, response_first, response_second, score, verdict FROM labels")
    assert kept[0] == ("compare", "a", "bb", None, "second")


def test_a_verdict_is_reused_for_the_question_in_reverse(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Longer())
    assert counter.compare([(PROMPT, BB, A), (PROMPT, A, BB)]) == ["first", "second"]
    assert counter.compare([(PROMPT, A, BB), (PROMPT, BB, A)]) == ["second", "first"]
    assert labeler.asked == [("bb", "a")]
    assert counter.spent == 1


def test_invalid_verdicts_are_stored_and_are_their_own_mirror_image(buyer: Callable[..., LabelBuyer]) -> None:
    class Undecided:
        name = "undecided"

        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
            return ["invalid"] * len(items)

    counter = buyer(Undecided())
    assert counter.compare([(PROMPT, A, BB)]) + counter.compare([(PROMPT, BB, A)]) == ["invalid", "invalid"]
    assert counter.spent == 1


def test_a_labeler_that_only_scores_compares_by_two_scores(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=3)
    assert (counter.terms.scores, counter.terms.compares) == (True, False)
    verdicts = counter.compare([(PROMPT, A, BB), (PROMPT, BB, CC), (PROMPT, A, Response("dd"))])
    assert verdicts == ["second", "tie", None]
    assert labeler.asked == ["a", "bb", "cc"]
    assert counter.spent == 3


def test_a_labeler_that_only_compares_cannot_score(buyer: Callable[..., LabelBuyer]) -> None:
    with pytest.raises(ValueError, match=r"labeler longer only compares.*labeler=vader"):
        buyer(Longer()).score([given("p", "a")])


def test_a_labeler_that_does_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="score or compare; object has not"):
        LabelBuyer(object(), ledger="unused")  # type: ignore[arg-type]


def test_what_others_have_bought_counts_in_labels_also_inside_a_labeler(path: Path) -> None:
    """A judge in both orders takes two labels a verdict; a part of a sum belongs to the run of the sum."""
    ledger = Ledger(str(path))
    ledger.create()
    prompt, pair = Prompt("p", "?"), (Response("a"), Response("b"))
    both, part = Question("judge", "", prompt, pair), Question("part", "", prompt, pair[:1])
    answers = [(both, Answer(0, "first", judgements=2)), (part, Answer(0, 1.0, judgements=1))]
    ledger.write(answers, purpose="train", run="first")
    ledger.train_on([both.key], run="second")
    ledger.train_on([part.key], run="second#weighted:part#part")
    assert ledger.reused_labels("second") == 3
    assert ledger.reused_labels("first") == ledger.reused_labels("sec") == 0
