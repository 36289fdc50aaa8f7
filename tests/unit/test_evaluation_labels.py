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
from choosy.labeling.human.labeler import Human
from choosy.labeling.noisy import Noisy
from choosy.labeling.protocols import Terms
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
