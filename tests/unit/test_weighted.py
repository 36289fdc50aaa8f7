"""Test the weighted sum of several labelers through a buyer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.contrastive import Contrastive
from choosy.labeling.crowd import Crowd
from choosy.labeling.dataset import Dataset
from choosy.labeling.function import Function
from choosy.labeling.noisy import Noisy
from choosy.labeling.protocols import Compares, Scores, Terms, judges_with_policy
from choosy.labeling.vader import Vader
from choosy.labeling.weighted import Weighted
from choosy.types import Candidates, Prompt, Response

ASKED = [Candidates(Prompt(f"p{n}", f"question {n}"), (Response("a" * n), Response("b" * n))) for n in range(1, 6)]


class Priced:
    """Gives a response its length, or less; counts what it is asked."""

    def __init__(self, name: str, price: float | None = None, *, minus: float = 0.0) -> None:
        self.name = name
        self.price, self.minus = price, minus
        self.terms = Terms(price=price)
        self.asked = 0

    def score(self, items):
        for _, response in items:
            self.asked += 1
            yield len(response.text) - self.minus


class Judge:
    name = "judge"

    def compare(self, items):
        return ["first"] * len(items)


@pytest.fixture
def buyer_of(tmp_path: Path):
    def opened(labeler: Any, run: str = "run", **options: Any) -> LabelBuyer:
        buyer = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), **options)
        buyer.open(run)
        return buyer

    return opened


def rewards(scored: list[Candidates]) -> list[float | None]:
    return [response.reward for c in scored for response in c.responses]


def test_rewards_are_added_up_by_weight_and_every_part_is_kept(buyer_of) -> None:
    labeler = Weighted({"long": Priced("long"), "even": Priced("even", minus=1.0)}, weights={"even": -0.5})
    assert isinstance(labeler, Scores)
    assert not isinstance(labeler, Compares)
    scored = buyer_of(labeler).score(ASKED[2:3])
    assert rewards(scored) == [3.0 - 0.5 * 2.0] * 2
    assert scored[0].responses[0].parts == (("long", 3.0), ("even", 2.0))


def test_other_weights_buy_nothing_again(buyer_of, tmp_path: Path) -> None:
    parts = {"long": Priced("long", 0.25), "even": Priced("even", 0.5, minus=1.0)}
    first = buyer_of(Weighted(parts))
    assert first.terms.price == 0.75
    assert first.terms.labels_per_answer == 2, "one judgement of each part"
    first.score(ASKED)
    assert (first.spent, first.counts.money) == (20, pytest.approx(7.5))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        runs = dict(db.execute("SELECT labeler, run FROM labels WHERE labeler NOT LIKE 'weighted%'"))
    assert runs == {"long": "run#weighted:long+even#long", "even": "run#weighted:long+even#even"}

    again = buyer_of(Weighted(parts, weights={"long": 0.0}), "again")
    assert rewards(again.score(ASKED)) == [n - 1.0 for n in range(1, 6) for _ in range(2)]
    assert (again.spent, again.counts.money) == (0, 0.0), "the parts' labels are those of the first run"
    assert [part.asked for part in parts.values()] == [10, 10]

    alone = buyer_of(parts["long"], "alone")
    alone.score(ASKED)
    assert (parts["long"].asked, alone.counts.reused) == (10, 10)


def test_budgets_count_a_judgement_of_each_part(buyer_of) -> None:
    buyer = buyer_of(Weighted({"a": Priced("a"), "b": Priced("b", minus=1.0)}), budget=9)
    scored = buyer.score(ASKED)
    assert (buyer.spent, rewards(scored).count(None)) == (8, 6), "a prompt takes four labels"
    money = buyer_of(Weighted({"a": Priced("dear", 1.0), "b": Vader()}), "money", budget_money=5.0)
    assert rewards(money.score(ASKED)).count(None) == 6
    assert money.counts.money == 4.0


def test_labels_to_evaluate_are_charged_apart(buyer_of) -> None:
    buyer = buyer_of(Weighted({"a": Priced("a", 1.0), "b": Priced("b", 0.5)}), budget=4)
    scored = buyer.score(ASKED[:2], purpose="evaluate")
    assert scored[0].responses[0].parts == (("a", 1.0), ("b", 1.0))
    assert (buyer.spent, buyer.counts.evaluation, buyer.counts.money_evaluation) == (0, 8, 6.0)
    assert rewards(buyer.score(ASKED[2:])).count(None) == 4


def test_the_columns_that_a_part_reads_tell_its_questions_apart(buyer_of) -> None:
    def right(completions, answer):
        return [float(a in text) for text, a in zip(completions, answer, strict=True)]

    buyer = buyer_of(Weighted({"right": Function(right), "long": Priced("long")}))
    assert buyer.reads("answer")
    for answer, reward in (("4", 2.0), ("5", 1.0)):
        prompt = Prompt("p", "2+2?", columns={"answer": answer})
        assert rewards(buyer.score([Candidates(prompt, (Response("4"),))])) == [reward]
    with pytest.raises(ValueError, match=r"wants answer, and the row of prompt 'p1' has no such column"):
        buyer.check_prompts([ASKED[0].prompt])


def test_a_part_without_a_score_stops_the_run_and_is_named(buyer_of) -> None:
    def none(response):
        return None

    buyer = buyer_of(Weighted({"a": Priced("a"), "none": Function(none)}))
    with pytest.raises(ValueError, match=r"labeler function:.*none gave no label for prompt 'p1'"):
        buyer.score(ASKED)


def test_what_a_part_may_judge_holds_for_the_sum() -> None:
    assert Weighted({"given": Dataset(), "cheerful": Vader()}).terms.given_only
    assert not Weighted({"cheerful": Vader()}).terms.given_only


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, None, r"labeler\.parts names none; type for instance \+labeler@labeler\.parts"),
        ({"a": Vader()}, {"b": 1.0}, r"labeler\.weights\.b names no part; the parts are a$"),
        ({"a": Vader()}, {"a": 0}, r"labeler\.weights are all 0"),
        ({"a": Vader()}, {"a": float("nan")}, r"labeler\.weights\.a=nan is no weight"),
        ({"a": Vader(), "b": Judge()}, None, r"labeler\.parts\.b is judge, which only compares.*labeler=vader"),
        ({"a": Crowd({"x": Vader(), "y": Judge()})}, None, r"labeler\.parts\.a is crowd:x\+y, which only compares"),
    ],
)
def test_what_cannot_be_added_up_is_refused(parts, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(parts, weights=weights)


def test_a_labeler_judges_with_the_policy_if_one_inside_it_does() -> None:
    assert judges_with_policy(Contrastive(good="Be kind.", bad="Be rude."))
    for outer in (Noisy, lambda one: Weighted({"cheerful": Vader(), "other": one})):
        assert judges_with_policy(outer(Contrastive(good="Be kind.", bad="Be rude.")))
        assert not judges_with_policy(outer(Vader()))
