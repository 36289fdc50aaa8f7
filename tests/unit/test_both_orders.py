"""A labeler asked in both orders: a place decides nothing, and both judgements are paid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from choosy.labeling.both_orders import BothOrders
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.protocols import Answer
from choosy.labeling.vader import Vader
from choosy.types import Prompt, Response, Verdict

Item = tuple[Prompt, Response, Response]
ITEMS: list[Item] = [(Prompt(f"p{i}", "?"), Response("a" * (i + 1)), Response("bb")) for i in range(4)]


def longer(item: Item) -> Verdict:
    first, second = (len(response.text) for response in item[1:])
    return "tie" if first == second else "first" if first > second else "second"


class Judge:
    """Answers comparisons with a function, as a list."""

    name = "judge"
    fingerprint = "template"
    price = 0.25

    def __init__(self, say: Callable[[Item], Verdict]) -> None:
        self.say = say
        self.asked: list[int] = []

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked.append(len(items))
        return [self.say(item) for item in items]


class Hasty(Judge):
    """The same, yielded from the last to the first, and it breaks where it is told to."""

    breaks_at: int | None = None

    def compare(self, items: Sequence[Item]) -> Iterator[Answer]:  # type: ignore[override]
        for at in reversed(range(len(items))):
            if at == self.breaks_at:
                error = RuntimeError("cut")
                error.at = at  # type: ignore[attr-defined]
                raise error
            yield Answer(at, self.say(items[at]), raw=f"said {at}", cost=0.1, annotator="j")


@pytest.mark.parametrize("kind", [Judge, Hasty])
def test_a_judge_that_reads_keeps_its_verdicts(kind: type[Judge]) -> None:
    answers = sorted(BothOrders(kind(longer)).compare(ITEMS), key=lambda a: a.at)
    assert [a.value for a in answers] == ["second", "tie", "first", "first"]
    assert [a.at for a in answers] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("say", "value"), [("first", "tie"), ("second", "tie"), ("tie", "tie"), ("invalid", "invalid"), ("A!", "A!")]
)
def test_a_judge_that_looks_at_the_place_says_nothing(say: Verdict, value: str) -> None:
    assert [a.value for a in BothOrders(Judge(lambda item: say)).compare(ITEMS)] == [value] * 4


def test_one_order_that_is_invalid_makes_the_answer_invalid() -> None:
    for bad in ("bb", "a"):
        judge = Judge(lambda item, bad=bad: "invalid" if item[1].text == bad else longer(item))  # type: ignore[misc]
        assert [a.value for a in BothOrders(judge).compare(ITEMS[:1])] == ["invalid"]


def test_what_was_said_and_paid_is_that_of_both(tmp_path: Path) -> None:
    (answer,) = BothOrders(Hasty(longer)).compare(ITEMS[:1])
    assert (json.loads(answer.raw), answer.cost, answer.annotator) == (["said 0", "said 1"], 0.2, "j")
    both = BothOrders(Judge(longer))
    assert (both.name, both.fingerprint, both.price, both.judgements) == ("judge in both orders", "template", 0.5, 2)
    buyer = LabelBuyer(both, ledger=str(tmp_path / "ledger.sqlite"), budget=5)
    buyer.open("a")
    assert buyer.compare(ITEMS) == ["second", "tie", None, None]
    assert (buyer.spent, buyer.money, buyer.exhausted) == (4, 1.0, True)


def test_an_answer_comes_as_soon_as_both_orders_are_there() -> None:
    judge = Judge(longer)
    judge.at_once = 2  # type: ignore[attr-defined]
    next(BothOrders(judge).compare(ITEMS))
    assert judge.asked == [2]


def test_an_error_names_the_pair(tmp_path: Path) -> None:
    judge = Hasty(longer)
    judge.breaks_at = 5
    buyer = LabelBuyer(BothOrders(judge), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("a")
    with pytest.raises(ValueError, match=r"prompt 'p2', question 2: .*RuntimeError: cut"):
        buyer.compare(ITEMS)
    assert buyer.spent == 2


def test_scores_have_no_order() -> None:
    with pytest.raises(ValueError, match=r"labeler vader-.* gives no verdicts.*in both orders: "):
        BothOrders(Vader())  # type: ignore[arg-type]


def test_one_label_for_a_pair_asked_twice_is_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels.budget=1 buys nothing; type 2 or more"):
        LabelBuyer(BothOrders(Judge(longer)), ledger=str(tmp_path / "ledger.sqlite"), budget=1)
