"""Answers of labelers, with those that are late, wrong or missing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_labelers import FIVE, Lengths, Longer, Scripted, given, rewards, rows

from choosy.errors import Stopped
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.function import Function
from choosy.labeling.ledger import Ledger, Question
from choosy.labeling.protocols import Answer, ItemFailed, Postponed, Terms
from choosy.main import in_sentences
from choosy.options.fit_words import read_words
from choosy.own_code import code_id
from choosy.types import Candidates, Prompt, Response, Verdict

# --- labelers that fail ---


def test_an_error_names_its_question_and_keeps_earlier_labels(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    class Asleep(Scripted):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[float]:
            yield from (self.answer(response.text) for _, response in items)

    def fails(text: str) -> float:
        if text == "x" * 50:
            raise RuntimeError("the judge is asleep")
        return 1.0

    words = rf"scripted gave no label for prompt 'q' .* response 1: '{'x' * 40}' and 1 more: RuntimeError: the judge is"
    with pytest.raises(ValueError, match=words):
        buyer(Asleep(fails)).score([given("p", "a", "b"), given("q", "c", "x" * 50, "d")])
    assert [text for (text,) in rows(path, "SELECT response_first FROM labels")] == ["a", "b", "c"]
    mended = buyer(Scripted(len))
    assert mended.spent == 3
    assert rewards(mended.score([given("q", "c", "x" * 50, "d")])) == [[1.0, 50.0, 1.0]]


def test_a_command_that_a_labeler_ends_prints_the_line_that_resumes_it(buyer: Callable[..., LabelBuyer]) -> None:
    def fails(text: str) -> float:
        raise RuntimeError("the judge is asleep")

    with pytest.raises(SystemExit) as stop, in_sentences(lambda: "choosy train lr=1 ckpt_path=last"):
        buyer(Scripted(fails)).score([given("p", "a")])
    assert str(stop.value).endswith("mend the labeler and resume the run; type\n  choosy train lr=1 ckpt_path=last")
    with (
        pytest.raises(SystemExit, match=r"^\nlr: options have dashes here: --lr=\.\.\.$"),
        in_sentences(lambda: "again"),
    ):
        read_words(["lr"])


def test_a_labeler_of_lists_that_fails_is_called_once(buyer: Callable[..., LabelBuyer]) -> None:
    calls: list[int] = []

    def one(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return [1.0]

    with pytest.raises(ValueError, match=r"response 0: 'a' and 2 more: .*one returned 1 rewards for 3 completions"):
        buyer(Function(one)).score([given("p", "a", "bb", "ccc")])
    assert calls == [3], "a function that compares its completions would give others for one alone"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39, None, "0.5"])
def test_a_score_that_is_no_finite_number_is_an_error(buyer: Callable[..., LabelBuyer], path: Path, bad: Any) -> None:
    labeler = Scripted(lambda text: bad if text == "bad" else 1.0)
    found = re.escape(repr(bad))
    words = f"for prompt 'q' .*, response 1: 'bad': wanted a finite number, 1e15 at most, found {found}.*in the ledger"
    with pytest.raises(ValueError, match=words):
        buyer(labeler).score([given("p", "a"), given("q", "b", "bad", "c")])
    assert [text for (text,) in rows(path, "SELECT response_first FROM labels")] == ["a", "b"]


def test_a_verdict_that_is_none_of_the_four_is_an_error(buyer: Callable[..., LabelBuyer]) -> None:
    class Chatty(Longer):
        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Any]:
            return ["first", "Response A, clearly"]

    counter = buyer(Chatty())
    with pytest.raises(ValueError, match="question 1: 'bb' and 'cc': wanted one of first, second, tie, invalid"):
        counter.compare([(Prompt("p", "Which?"), *map(Response, pair)) for pair in (("a", "bb"), ("bb", "cc"))])  # type: ignore[misc]
    assert counter.spent == 1


def test_a_list_that_is_too_short_is_an_error(buyer: Callable[..., LabelBuyer]) -> None:
    class Lossy(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
            return super().score(items)[1:]

    counter = buyer(Lossy())
    with pytest.raises(ValueError, match="gave 1 labels for 2 questions"):
        counter.score([given("p", "a", "bb")])
    assert counter.spent == 0, "it is not known which item they belong to"


@pytest.mark.parametrize("given_back", [{0: 1.0, 1: 2.0}, {1.0, 2.0}, "12", b"12", np.array(1.0)])
def test_scores_without_an_order_are_an_error(buyer: Callable[..., LabelBuyer], given_back: Any) -> None:
    class Unordered(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> Any:
            return given_back

    with pytest.raises(ValueError, match=r"lengths gave a \w+ for 2 questions; .* in a list and in their order"):
        buyer(Unordered()).score([given("p", "a", "bb")])


@pytest.mark.parametrize(
    "odd",
    [
        *({"judgements": number} for number in (-5, 2.5, math.nan, 2**70, "1")),
        *({"cost": cost} for cost in (-1.0, math.nan, 1.7e308, 10**400, "1")),
        *({"raw": raw} for raw in (None, b"yes")),
        {"annotator": None},
    ],
)
def test_an_answer_with_an_odd_part_is_an_error_and_changes_no_budget(
    buyer: Callable[..., LabelBuyer], odd: dict[str, Any]
) -> None:
    class Odd(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:  # type: ignore[override]
            yield Answer(0, 1.0)
            yield Answer(1, 1.0, **odd)

    counter = buyer(Odd(), budget=4)
    with pytest.raises(ValueError, match=r"response 1: 'bb': wanted .*, found .*mend the labeler and resume"):
        counter.score([given("p", "a", "bb")])
    assert (counter.counts.spent, counter.counts.money) == (1, 0.0)


def test_half_a_character_in_a_labelers_words_loses_no_label(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    class Broken(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:  # type: ignore[override]
            yield from (Answer(place, 1.0, raw="so \ud83d", annotator="\udc00") for place in range(len(items)))

    assert rewards(buyer(Broken()).score([given("p", "a")])) == [[1.0]]
    assert rows(path, "SELECT raw, annotator FROM labels") == [("so \\ud83d", "\\udc00")]


def test_a_label_that_lacks_a_part_is_not_left_out_in_silence(path: Path) -> None:
    ledger = Ledger(str(path))
    ledger.create()
    row = {**Question("l", "", Prompt("p", "?"), (Response("a"),)).columns, "score": 1.0, "verdict": None, "raw": ""}
    about = {"cost": 0.0, "judgements": 1, "purpose": "train", "run": "a", "time": 1.0, "annotator": None}
    with pytest.raises(Stopped, match=r"NOT NULL constraint failed: labels\.annotator"):
        ledger.insert([{**row, **about}])


@pytest.mark.parametrize("name", ["", 7, "\ud800"])
def test_a_name_that_is_no_text_is_refused(buyer: Callable[..., LabelBuyer], name: Any) -> None:
    labeler = Lengths()
    labeler.name = name
    with pytest.raises(ValueError, match="a labeler has a text as its name"):
        buyer(labeler)


def test_a_fingerprint_of_digits_is_a_text_and_another_number_is_refused(tmp_path: Path) -> None:
    assert Function(len, fingerprint=12345678).terms.fingerprint == "12345678"  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"fingerprint of a labeler is a text, and 1e\+300 is none; .* kinds of quotes"
    ):
        Function(len, fingerprint=1e300)  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [{"labels_per_answer": 0}, {"at_once": -1}, {"price": math.nan}, {"price": "1"}])
def test_terms_that_break_a_budget_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the terms of a labeler have \w+=.*; wanted a (whole )?number"):
        Terms(**terms)


# --- labelers that yield answers as they come ---


class Clicks:
    """Answers comparisons in a given order of positions, and reads the ledger before each."""

    name = "clicks"
    terms = Terms(fingerprint="whatever its places are")

    def __init__(self, path: Path, places: Sequence[int], cost: float = 0.0) -> None:
        self.path, self.places, self.cost = path, places, cost
        self.seen: list[int] = []
        self.asked: list[int] = []

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        self.asked.append(len(items))
        for place in self.places:
            self.seen.append(len(rows(self.path)))
            if place < 0:
                raise ItemFailed("the browser is closed", at=-place)
            yield Answer(place, "first", raw=f"key {place}", cost=self.cost, annotator="ada")


def test_an_answer_is_in_the_ledger_before_the_next_is_requested(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer(labeler := Clicks(path, [3, 0, 4, 1, 2], cost=0.25))
    assert counter.compare(FIVE) == ["first"] * 5
    assert (labeler.seen, labeler.asked) == ([0, 1, 2, 3, 4], [5])
    kept = rows(path, "SELECT prompt_id, verdict, raw, cost, annotator FROM labels ORDER BY time")
    assert kept[0] == ("p3", "first", "key 3", 0.25, "ada")
    assert (counter.spent, counter.counts.money) == (5, 1.25)


def test_a_labeler_that_yields_may_limit_the_items_of_a_call(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    labeler = Clicks(path, [1, 0])
    labeler.terms = Terms(at_once=2)  # type: ignore[attr-defined]
    assert buyer(labeler).compare(FIVE[:4]) == ["first"] * 4
    assert labeler.asked == [2, 2]


def test_answers_before_an_error_are_kept_and_the_error_names_the_item(
    buyer: Callable[..., LabelBuyer], path: Path
) -> None:
    counter = buyer(labeler := Clicks(path, [3, 0, -4]))
    words = "clicks gave no label for prompt 'p4' .*, question 4: 'a4' and 'b4': the browser is closed"
    with pytest.raises(ValueError, match=words):
        counter.compare(FIVE)
    assert (counter.spent, labeler.asked) == (2, [5])
    mended = Clicks(path, [2, 1, 0])
    assert buyer(mended).compare(FIVE) == ["first"] * 5
    assert mended.asked == [3], "what was answered is not asked again"


def test_a_labeler_may_postpone_its_answers(buyer: Callable[..., LabelBuyer]) -> None:
    class Tomorrow(Longer):
        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
            yield Answer(1, "tie")
            raise Postponed("come back tomorrow")

    counter = buyer(Tomorrow())
    with pytest.raises(Postponed, match="come back tomorrow"):
        counter.compare(FIVE)
    assert counter.spent == 1


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([Answer(0, "tie"), Answer(0, "tie")], "clicks gave an answer to item 0, which it was not asked or has"),
        ([Answer(0, "tie"), Answer(7, "tie")], "clicks gave an answer to item 7, which it was not asked or has"),
        ([Answer(0, "tie"), Answer(2, "left")], "'p2' .*: wanted one of first, second, tie, invalid, found 'left'"),  # type: ignore[arg-type]
        ([Answer(0, "tie"), Answer(2, "tie", cost=-1.0)], "'p2' .*: wanted a cost from 0 to 1e15, found -1.0"),
        ([Answer(0, "tie")], "gave 1 labels for 5 questions; .* gave none for prompt 'p1'"),
        ([Answer(0, "tie"), "tie"], r"gave 2 labels for 5 questions; .* none for prompt 'p2'"),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error(
    buyer: Callable[..., LabelBuyer], answers: list[Answer | Verdict], words: str
) -> None:
    class Sloppy(Longer):
        name = "clicks"

        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer | Verdict]:
            yield from answers

    counter = buyer(Sloppy())
    with pytest.raises(ValueError, match=words):
        counter.compare(FIVE)
    assert counter.spent == (2 if "tie" in answers else 1)


def test_a_list_may_hold_answers(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    labeler = Scripted(lambda text: Answer(0, 2.0, raw="two", cost=0.5))
    assert rewards(buyer(labeler).score([given("p", "a")])) == [[2.0]]
    assert rows(path, "SELECT raw, cost FROM labels") == [("two", 0.5)]


@pytest.mark.parametrize("number", [torch.tensor(2.0), np.float32(2.0), np.array(2.0), 2, True + 1])
def test_numbers_of_other_libraries_are_scores(buyer: Callable[..., LabelBuyer], number: Any) -> None:
    assert rewards(buyer(Scripted(lambda text: number)).score([given("p", "a")])) == [[2.0]]


def test_a_fingerprint_is_part_of_the_question(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    labeler = Lengths()
    buyer(labeler).score([given("p", "a")])
    labeler.terms = Terms(fingerprint="template 2")  # type: ignore[attr-defined]
    buyer(labeler).score([given("p", "a")])
    buyer(labeler).score([given("p", "a")])
    assert labeler.asked == ["a", "a"]
    source = code_id(labeler)
    assert rows(path, "SELECT labeler, fingerprint FROM labels") == [("lengths", source), ("lengths", "template 2")]


# --- invalid verdicts ---


class OftenInvalid:
    """Every n-th verdict is invalid."""

    name = "often"

    def __init__(self, every: int) -> None:
        self.every = every

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        for at, (prompt, _, _) in enumerate(items):
            bad = int(prompt.id) % self.every == 0
            yield Answer(at, "invalid" if bad else "tie", raw=f"{'well, ' * 99}it depends" if bad else "tie")


MANY = [(Prompt(f"{i}", f"Which of {i}?"), Response("a"), Response("b")) for i in range(90)]


def test_too_many_invalid_verdicts_stop_the_run_and_are_quoted(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer(OftenInvalid(3))
    words = (
        r"7 of the 20 verdicts of labeler often are invalid, and labels.max_invalid=0.2 .*\n  'well, well, .{188}'"
        r"\n.*All labels are in the ledger. Mend the labeler, or type a larger labels.max_invalid, and resume"
    )
    with pytest.raises(ValueError, match=f"(?s){words}"):
        counter.compare(MANY)
    assert counter.spent == 20
    assert buyer(OftenInvalid(3), max_invalid=0.5).compare(MANY).count("invalid") == 30
    again = buyer(OftenInvalid(3), max_invalid=0.2)
    assert again.compare(MANY).count("invalid") == 30, "labels bought before are no reason to stop"


@pytest.mark.parametrize(("every", "limit"), [(10, 0.2), (1, None), (1, 1.0)])
def test_invalid_verdicts_within_the_limit(buyer: Callable[..., LabelBuyer], every: int, limit: float | None) -> None:
    counter = buyer(OftenInvalid(every), max_invalid=limit)
    assert counter.compare(MANY).count("invalid") == 90 // every


def test_a_limit_of_invalid_verdicts_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels.max_invalid=1.5 is no share; choose 0 to 1, null for no limit"):
        LabelBuyer(Lengths(), ledger="unused", max_invalid=1.5)


# --- what a labeler may give and receive ---


def test_an_answer_may_carry_its_labels_and_cost(tmp_path: Path) -> None:
    """Answers of a labeler that buys from others take as many labels as were bought for them, also none."""

    class Middleman:
        name = "middleman"
        terms = Terms(price=1.5, labels_per_answer=3)

        def compare(self, items):
            yield Answer(0, "first", cost=1.0, judgements=2)
            yield Answer(1, "first", judgements=0)
            for at in range(2, len(items)):
                yield Answer(at, "first")

    buyer = LabelBuyer(Middleman(), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")
    buyer.compare([(Prompt(f"p{n}", f"q{n}"), Response("a"), Response("b")) for n in range(3)])
    assert (buyer.spent, buyer.counts.money) == (5, pytest.approx(2.5))
    assert [(label.judgements, label.cost) for label in buyer.ledger.labels_of("middleman")] == [
        (2, 1.0),
        (0, 0.0),
        (3, 1.5),
    ]


def test_a_labeler_receives_the_policy_and_its_earlier_labels(tmp_path: Path) -> None:
    class Curious:
        name = "curious"

        def __init__(self) -> None:
            self.heard: list[Any] = []

        def use_buyer(self, buyer):
            earlier = buyer.ledger.labels_of(self.name, run=buyer.run)
            self.heard.append([(label.first, label.score, label.run) for label in earlier])

        def use_policy(self, policy):
            self.heard.append(policy)

        def score(self, items):
            return [1.0] * len(items)

    buyer = LabelBuyer(Curious(), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.use_policy("a policy")
    for run in ("one", "two", "one"):
        buyer.open(run)
        buyer.score([Candidates(Prompt("p", "q"), (Response(run),))])
    assert buyer.labeler.heard == ["a policy", [], [], [("one", 1.0, "one")]]
