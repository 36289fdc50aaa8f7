"""Budgets of labels and of money are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from toy_labelers import Lengths, Scripted, given, rewards

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.protocols import Answer, Terms
from choosy.types import Prompt, Response

# --- the budget ---


def test_responses_of_a_prompt_are_bought_together_in_the_order_given(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=5)
    got = counter.score([given("p", "a", "bb"), given("q", "a", "bb"), given("r", "a", "bb")])
    assert rewards(got) == [[1.0, 2.0], [1.0, 2.0], [None, None]]
    assert len(labeler.asked) == counter.spent == 4
    assert rewards(counter.score([given("s", "a", "bb"), given("t", "a")])) == [[None, None], [1.0]]
    assert (counter.spent, counter.pays(1)) == (5, False)
    assert rewards(counter.score([given("u", "a")])) == [[None]]
    assert rewards(counter.score([given("t", "a"), given("q", "bb")])) == [[1.0], [2.0]], "the ledger is free"


def test_a_repeated_response_costs_once(buyer: Callable[..., LabelBuyer]) -> None:
    assert rewards(buyer(budget=1).score([given("p", "a", "a")])) == [[1.0, 1.0]]


def test_a_resumed_run_continues_its_counts(buyer: Callable[..., LabelBuyer]) -> None:
    buyer(budget=3).score([given("p", "a", "bb")])
    again = buyer(labeler := Lengths(), budget=3)
    assert again.spent == 2
    assert rewards(again.score([given("p", "a", "bb"), given("q", "a", "bb"), given("r", "a")])) == [
        [1.0, 2.0],
        [None, None],
        [1.0],
    ]
    assert labeler.asked == ["a"]
    lowered = buyer(budget=1)
    assert not lowered.pays(1)
    assert rewards(lowered.score([given("p", "a", "bb")])) == [[1.0, 2.0]]
    assert buyer(run="another", budget=1).spent == 0


@pytest.mark.parametrize("culprit", ["p0", "p1", "q0", "q1", "q2", "r0"])
def test_a_resumed_run_ends_like_one_that_never_failed(tmp_path: Path, culprit: str) -> None:
    sizes = {"p": 2, "q": 3, "s": 4, "r": 1, "t": 2}
    asked = [given(name, *(f"{name}{i}" for i in range(size))) for name, size in sizes.items()]

    class OneByOne(Scripted):
        terms = Terms(fingerprint="it judges as before it was mended")

        def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[float]:
            yield from (self.answer(response.text) for _, response in items)

    def fails(text: str) -> float:
        if text == culprit:
            raise RuntimeError
        return float(text[1])

    def opened(answer: Callable[[str], float]) -> LabelBuyer:
        buyer = LabelBuyer(OneByOne(answer), ledger=str(tmp_path / "ledger.sqlite"), budget=7)
        buyer.open("a")
        return buyer

    with pytest.raises(ValueError, match=culprit):
        opened(fails).score(asked)
    resumed = opened(lambda text: float(text[1]))
    assert resumed.spent == ["p0", "p1", "q0", "q1", "q2", "r0"].index(culprit)
    assert rewards(resumed.score(asked)) == [[0.0, 1.0], [0.0, 1.0, 2.0], [None] * 4, [0.0], [None] * 2]
    assert resumed.spent == 6


def test_labels_to_evaluate_are_neither_limited_nor_counted(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(budget=1)
    assert rewards(counter.score([given("p", "a", "bb")], purpose="evaluate")) == [[1.0, 2.0]]
    assert (counter.spent, counter.counts.evaluation, counter.pays(1)) == (0, 2, True)
    assert rewards(counter.score([given("q", "a")])) == [[1.0]]
    assert rewards(counter.score([given("q", "a", "bb")], purpose="evaluate")) == [[1.0, 2.0]]
    assert (counter.spent, counter.counts.evaluation) == (1, 3)


def test_training_on_a_label_that_was_bought_to_evaluate_counts(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=2)
    counter.score([given("p", "a", "bb"), given("q", "a")], purpose="evaluate")
    got = counter.score([given("p", "a", "bb"), given("q", "a")])
    assert rewards(got) == [[1.0, 2.0], [None]]
    assert (counter.spent, counter.counts.evaluation, len(labeler.asked)) == (2, 1, 3)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_buys_nothing_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"labels.budget={budget} buys nothing; .* null for no limit"):
        LabelBuyer(Lengths(), ledger="unused", budget=budget)


# --- the budget of money ---


class Paid(Lengths):
    """Scores by length; the cost of a label is a function of the response, and the price may be unknown."""

    def __init__(self, cost: Callable[[str], float], price: float | None = None) -> None:
        super().__init__()
        self.cost = cost
        self.terms = Terms(price=price, fingerprint="whatever it costs")

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:  # type: ignore[override]
        for at, (_, response) in enumerate(items):
            self.asked.append(response.text)
            yield Answer(at, float(len(response.text)), cost=self.cost(response.text))


def afford(counter: LabelBuyer, n: int) -> int:
    got = counter.score([given(f"p{i:02d}", f"r{i:02d}") for i in range(n)])
    return sum(reward is not None for c in rewards(got) for reward in c)


def priced(price: float) -> Scripted:
    labeler = Scripted(lambda text: 1.0)
    labeler.terms = Terms(price=price)  # type: ignore[attr-defined]
    return labeler


def test_a_budget_of_money_is_exact_with_a_price(path: Path) -> None:
    for run, money, bought in (("a", 0.3, 3), ("b", 0.35, 6), ("c", 0.05, 6)):
        buyer = LabelBuyer(priced(0.1), ledger=str(path), budget_money=money)
        buyer.open(run)
        assert afford(buyer, 9) == bought, "what another run has bought is free"
        assert buyer.counts.money == pytest.approx(0.3 if run != "c" else 0.0)
        assert not buyer.pays(1)


def test_without_a_price_a_label_is_expected_to_cost_the_highest_so_far(path: Path) -> None:
    costs = {"r00": 0.1, "r01": 0.1, "r02": 0.4}
    buyer = LabelBuyer(labeler := Paid(lambda text: costs.get(text, 0.2)), ledger=str(path), budget_money=1.0)
    buyer.open("a")
    assert afford(buyer, 20) == 4, "one, one more, two more; then 0.2 is left, and one has cost 0.4"
    assert labeler.asked == ["r00", "r01", "r02", "r03"]
    assert buyer.counts.money == pytest.approx(0.8)
    again = LabelBuyer(labeler, ledger=str(path), budget_money=1.0)
    again.open("a")
    assert (again.counts.money, again.pays(1), afford(again, 20)) == (buyer.counts.money, False, 4)


@pytest.mark.parametrize("highest", [0.1, 0.25, 0.4])
def test_no_budget_is_exceeded_if_no_label_costs_more_than_the_price(path: Path, highest: float) -> None:
    buyer = LabelBuyer(
        Paid(lambda text: highest if int(text[1:]) % 3 else 0.05, price=0.4), ledger=str(path), budget_money=2.0
    )
    buyer.open("a")
    bought = afford(buyer, 50)
    assert 2.0 - 0.4 < buyer.counts.money <= 2.0
    assert not buyer.pays(1)
    assert buyer.spent == bought


class Edits(Lengths):
    """Edits every response, for money."""

    name = "edits"
    terms = Terms(price=0.1, fingerprint="edits")

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Answer]:
        return [Answer(at, "first", "better", judgements=0, cost=0.1) for at in range(len(items))]


def test_money_is_for_edits_too_where_labels_cost_nothing(path: Path) -> None:
    buyer = LabelBuyer(priced(0.0), ledger=str(path), budget_money=0.35, editor=Edits())  # type: ignore[arg-type]
    buyer.open("a")
    assert afford(buyer, 4) == 4
    pairs = [(Prompt(f"p{n}", f"{n}?"), Response("good"), Response("bad")) for n in range(5)]
    assert buyer.edits(pairs) == ["better"] * 3 + [None] * 2


def test_edits_leave_the_money_that_is_kept_for_held_out_answers(path: Path) -> None:
    buyer = LabelBuyer(priced(0.0), ledger=str(path), budget_money=0.35, editor=Edits(), evaluation=priced(0.1))  # type: ignore[arg-type]
    buyer.open("a")
    buyer.plan_evaluation([Prompt("h0", "0?"), Prompt("h1", "1?")], 1, response_tokens=8)
    pairs = [(Prompt(f"p{n}", f"{n}?"), Response("good"), Response("bad")) for n in range(5)]
    assert buyer.edits(pairs) == ["better", *[None] * 4]


def test_a_budget_of_money_for_labels_that_cost_nothing_is_refused(path: Path) -> None:
    buyer = LabelBuyer(Paid(lambda text: 0.0), ledger=str(path), budget_money=1.0)
    buyer.open("a")
    with pytest.raises(ValueError, match=r"budget_money=1.0 limits nothing: the labels of lengths cost nothing"):
        afford(buyer, 30)
    assert buyer.spent == 20, "so many say that none costs anything"


def test_a_first_answer_that_costs_nothing_says_nothing_of_the_next(path: Path) -> None:
    """As where a judge refuses a pair; a purchase is as large as those that cost something."""
    labeler = Paid(lambda text: 0.0 if text == "r00" else 0.1)
    buyer = LabelBuyer(labeler, ledger=str(path), budget_money=0.45)
    buyer.open("a")
    assert afford(buyer, 20) == 5
    assert labeler.asked == ["r00", "r01", "r02", "r03", "r04"]


@pytest.mark.parametrize("money", [0, -1, math.inf, math.nan])
def test_a_budget_of_money_that_buys_nothing_is_refused(money: float) -> None:
    with pytest.raises(ValueError, match=rf"labels.budget_money={money} buys nothing; type an amount, or null"):
        LabelBuyer(Lengths(), ledger="unused", budget_money=money)
