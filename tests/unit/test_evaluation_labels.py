"""Who judges held-out answers: the training labeler, none, or another labeler."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.function import Function
from choosy.labeling.human.labeler import Human
from choosy.labeling.judge.judge import Judge
from choosy.labeling.judge.settings import EndpointSettings, Prices
from choosy.labeling.noisy import Noisy
from choosy.labeling.protocols import Answer, Terms
from choosy.labeling.queue import Queue
from choosy.labeling.vader import Vader
from choosy.rounds.evaluate import evaluate
from choosy.types import Candidates, Prompt, Response


class Longer:
    name = "longer"

    def compare(self, items):
        return ["first" if len(one.text) > len(other.text) else "second" for _, one, other in items]


def answers(texts: str) -> list[Candidates]:
    return [
        Candidates(Prompt(f"p{n}", f"q{n}"), (Response(text, ids=(1,), logp=-1.0, logp_ref=-1.0),))
        for n, text in enumerate(texts.split("|"))
    ]


HAPPY, SAD = answers("I love it.|What a joy!|Wonderful."), answers("I hate it.|What a horror!|Terrible.")


@pytest.fixture
def bought(tmp_path: Path) -> Callable[..., LabelBuyer]:
    """A buyer that is open: bought(labeler, evaluation=...)."""

    def made(labeler: Any, **options: Any) -> LabelBuyer:
        buyer = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), **options)
        buyer.open("run")
        return buyer

    return made


def rows(tmp_path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        return set(db.execute("SELECT labeler, purpose FROM labels"))


def win_rate(buyer: LabelBuyer) -> float | None:
    return evaluate(HAPPY, {c.prompt.id: c for c in SAD}, buyer.evaluator).metrics["win_rate"]


def test_another_labeler_judges_under_its_own_name_and_costs_no_budget(bought, tmp_path: Path) -> None:
    buyer = bought(Longer(), evaluation=Vader(), budget=1)
    buyer.compare([(HAPPY[0].prompt, HAPPY[0].responses[0], SAD[0].responses[0])])
    assert win_rate(buyer) == 1.0
    assert rows(tmp_path) == {("longer", "train"), (Vader().name, "evaluate")}
    assert (buyer.spent, buyer.counts.evaluation) == (1, 6)


def test_noise_in_the_training_labels_does_not_reach_the_evaluation(bought) -> None:
    noisy = Noisy(Vader(), p=1.0)
    assert win_rate(bought(noisy)) == 0.0, "the training labeler judges, and it is wrong"
    assert win_rate(bought(noisy, evaluation=Vader())) == 1.0


def test_the_training_labeler_judges_unless_it_is_people(bought, tmp_path: Path) -> None:
    assert bought(Vader()).evaluator.labeler.name == Vader().name
    for people in (Queue(str(tmp_path), ledger="ledger.sqlite"), Human(str(tmp_path))):
        assert bought(people).evaluator is None
        asked = bought(people, evaluation="labeler")
        assert asked.evaluator is asked
    assert win_rate(bought(Vader(), evaluation="none")) is None


def test_a_labeler_that_judges_with_the_policy_is_given_it(bought) -> None:
    class Curious(Longer):
        policy = None

        def use_policy(self, policy):
            self.policy = policy

    curious, policy = Curious(), object()
    bought(Vader(), evaluation=curious).use_policy(policy)
    assert curious.policy is policy


def test_invalid_verdicts_of_people_are_not_limited_unless_the_run_says_so(bought, tmp_path: Path) -> None:
    class People(Longer):
        terms = Terms(people=True)

        def compare(self, items):
            return ["invalid"] * len(items)

    class Machine(People):
        terms = Terms()

    many = [(replace(HAPPY[0].prompt, text=f"q{n}"), Response("a"), Response("b")) for n in range(20)]
    assert bought(People()).compare(many) == ["invalid"] * 20
    People.name, Machine.name = "limited", "machine"
    with pytest.raises(ValueError, match=r"20 of the 20 verdicts of labeler limited are invalid.*max_invalid=0.1"):
        bought(People(), max_invalid=0.1).compare(many)
    with pytest.raises(ValueError, match=r"labeler machine are invalid, and labels.max_invalid=0.2"):
        bought(Machine()).compare(many)


def test_an_unknown_word_says_how_to_name_a_labeler(bought) -> None:
    with pytest.raises(ValueError, match=r"none of auto, labeler, none; .* named as labeler@labels.evaluation=vader"):
        bought(Longer(), evaluation="vader")


# --- what evaluation costs ---


class Priced:
    """A tenth of money for each comparison."""

    name = "priced"

    def __init__(self, price: float | None = None) -> None:
        self.terms = Terms(price=price)

    def compare(self, items):
        for at, (_, one, other) in enumerate(items):
            yield Answer(at, "first" if len(one.text) > len(other.text) else "second", cost=0.1)


PROMPTS = [c.prompt for c in HAPPY]
QUESTIONS = [(Prompt(f"t{n}", f"t{n}?"), Response("long"), Response("no")) for n in range(20)]


@pytest.mark.parametrize(
    ("price", "known"), [(0.1, "for about 0.6, which labels.budget_money=1.0"), (None, "known after")]
)
def test_the_money_for_evaluation_is_kept_and_said_before_the_first_label(bought, price, known):
    buyer = bought(Priced(price), budget_money=1.0)
    said = buyer.plan_evaluation(PROMPTS, 2, response_tokens=8)
    assert said.startswith("Held-out answers are judged up to 6 times by priced")
    assert known in said
    assert sum(verdict is not None for verdict in buyer.compare(QUESTIONS)) == 4
    assert win_rate(buyer) is not None
    assert buyer.counts.money_evaluation == pytest.approx(0.3)
    buyer.compare(QUESTIONS)
    assert buyer.counts.money == pytest.approx(0.4), "the second evaluation still has its money"


def test_a_cap_below_the_cost_of_evaluation_is_refused_before_the_first_label(bought):
    words = r"judged up to 30 times by priced, for 3.00, and labels.budget_money=1.0 pays.*data.heldout_limit"
    with pytest.raises(ValueError, match=words):
        bought(Priced(0.1), budget_money=1.0).plan_evaluation(PROMPTS, 10, response_tokens=8)


def test_a_cap_below_the_estimate_of_evaluation_is_refused_until_the_true_cost_is_known(bought):
    class Guessed(Priced):
        def estimate(self, prompt, response_tokens):
            return 5.0

    buyer = bought(Guessed(), budget_money=1.0)
    words = r"up to 3 times by priced, for about 15\S*, and labels.budget_money=1.0 pays.*labels.evaluation=none"
    with pytest.raises(ValueError, match=words):
        buyer.plan_evaluation(PROMPTS, 1, response_tokens=8)
    buyer.compare(QUESTIONS[:1])
    assert "for about 0.3, which" in buyer.plan_evaluation(PROMPTS, 1, response_tokens=8)


def test_a_cap_is_refused_at_the_start_if_neither_training_nor_evaluation_costs_anything(bought):
    free, paid = Priced(0.0), Priced(0.1)
    words = r"budget_money=1.0 limits nothing.*labeler.endpoint.prices.prompt=... labeler.endpoint.prices.completion="
    with pytest.raises(ValueError, match=words):
        bought(free, budget_money=1.0).check_budget()
    for labeler, evaluation in ((free, paid), (paid, free), (Priced(), "auto")):
        bought(labeler, evaluation=evaluation, budget_money=1.0).check_budget()
    bought(free).check_budget()


def test_a_judge_and_a_function_without_prices_are_known_to_be_free():
    url = "http://127.0.0.1:9/v1"
    assert Judge("m", base_url=url).terms.price == 0
    assert Judge("m", base_url=url, price=1.0).terms.price == 1
    assert Judge("m", base_url=url, endpoint=EndpointSettings(prices=Prices(prompt=1.0))).terms.price is None
    assert Function(len).terms.price == 0


def test_evaluation_that_nothing_was_kept_for_stops_at_the_cap_too(bought, caplog):
    buyer = bought(Priced(0.1), budget_money=0.2)
    found = evaluate(HAPPY, {c.prompt.id: c for c in SAD}, buyer)
    assert found.metrics["judged"] == 2
    assert [row["outcome"] is None for row in found.rows] == [False, False, True]
    assert buyer.counts.money_evaluation == pytest.approx(0.2)
    assert "labels.budget_money=0.2 is spent: 1 of 3 judgements were not bought" in caplog.text


def test_another_evaluator_pays_from_the_same_cap(bought):
    buyer = bought(Vader(), evaluation=Priced(0.1), budget_money=0.2)
    assert "for about 0.3" not in (buyer.plan_evaluation(PROMPTS[:2], 1, response_tokens=8) or "")
    assert evaluate(HAPPY, {c.prompt.id: c for c in SAD}, buyer.evaluator).metrics["judged"] == 2
    assert buyer.score(HAPPY)[0].responses[0].reward is not None, "labels that cost nothing are free under any cap"


def test_the_cost_of_a_judge_is_estimated_from_its_prices_of_tokens(bought):
    settings = EndpointSettings(prices=Prices(prompt=2.0, completion=10.0))
    judge = Judge("toy", base_url="http://localhost:1/v1", endpoint=settings)
    tokens = (len("".join(judge.template.values())) + len(PROMPTS[0].text)) // 4 + 2 * 100
    expected = 2 * (tokens * 2.0 + 512 * 10.0) / 1e6
    assert judge.estimate(PROMPTS[0], 100) == pytest.approx(expected)
    assert f"for about {3 * expected:.2g}." in bought(judge).plan_evaluation(PROMPTS, 1, response_tokens=100)
    with pytest.raises(ValueError, match=rf"for about {3 * expected:.2g}, and labels.budget_money={expected} pays"):
        bought(judge, budget_money=expected).plan_evaluation(PROMPTS, 1, response_tokens=100)
