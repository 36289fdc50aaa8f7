"""A noisy labeler reverses the given share of judgements, and always those of the same questions."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.function import Function
from choosy.labeling.noisy import Noisy
from choosy.labeling.predictor.labeler import Predictor
from choosy.labeling.protocols import Terms, terms_of
from choosy.labeling.queue import Queue
from choosy.labeling.vader import Vader
from choosy.types import MIRRORED, Candidates, Prompt, Response, Verdict

Item = tuple[Prompt, Response, Response]


class First:
    name = "first"
    terms = Terms(fingerprint="f", price=0.5, at_once=7)

    def __init__(self, verdict: Verdict = "first") -> None:
        self.verdict = verdict

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        return [self.verdict] * len(items)


class Lengths:
    name = "lengths"

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [float(len(response.text)) for _, response in items]


ITEMS: list[Item] = [(Prompt(f"p{n}", f"Which of {n}?"), Response("a"), Response("b")) for n in range(2000)]


def verdicts(noisy: Noisy, items: Sequence[Item] = ITEMS) -> list[object]:
    return [answer.value for answer in noisy.compare(items)]


@pytest.mark.parametrize(("p", "least", "most"), [(0.0, 0, 0), (0.2, 350, 450), (0.5, 920, 1080), (1.0, 2000, 2000)])
def test_the_given_share_of_verdicts_is_reversed(p: float, least: int, most: int) -> None:
    assert least <= verdicts(Noisy(First(), p=p)).count("second") <= most


def test_a_question_has_the_same_answer_in_any_order_and_among_any_others() -> None:
    noisy = Noisy(First(), p=0.5)
    noisy_verdicts = verdicts(noisy)
    assert verdicts(noisy, ITEMS[::-1]) == noisy_verdicts[::-1]
    assert [
        MIRRORED[v] for v in verdicts(Noisy(First("second"), p=0.5), [(p, b, a) for p, a, b in ITEMS])
    ] == noisy_verdicts  # type: ignore[index]
    assert verdicts(pickle.loads(pickle.dumps(noisy))) == noisy_verdicts
    assert verdicts(Noisy(First(), p=0.5, seed=1)) != noisy_verdicts


@pytest.mark.parametrize("verdict", ["tie", "invalid", "A!"])
def test_ties_and_invalid_verdicts_stay(verdict: Verdict) -> None:
    assert verdicts(Noisy(First(verdict), p=1.0), ITEMS[:3]) == [verdict] * 3


def test_all_rewards_of_a_prompt_are_negated_together() -> None:
    responses = [Response("a" * n) for n in range(1, 4)]
    turned = []
    for prompt, _, _ in ITEMS[:500]:
        rewards = [float(a.value) for a in Noisy(Lengths(), p=0.3).score([(prompt, r) for r in responses])]
        assert [abs(reward) for reward in rewards] == [1.0, 2.0, 3.0]
        orders = {one > other for one, other in combinations(rewards, 2)}
        assert len(orders) == 1
        turned.append(orders.pop())
    assert 110 < sum(turned) < 190


def test_it_has_the_terms_of_the_labeler_inside(tmp_path: Path) -> None:
    scoring, comparing = Noisy(Vader(), p=0.1), Noisy(First(), p=0.1, seed=3)
    assert terms_of(scoring) == Terms(price=0.0, scores=True, compares=False, at_once=64)
    assert terms_of(comparing) == Terms(fingerprint="f", price=0.5, scores=False, compares=True, at_once=7)
    assert comparing.name == "first with noise 0.1, seed 3"
    with pytest.raises(ValueError, match=r"first with noise .* only compares"):
        LabelBuyer(comparing, ledger=str(tmp_path / "ledger.sqlite")).score([])
    buyer = LabelBuyer(Noisy(Lengths(), p=1.0), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("a")
    (c,) = buyer.score([Candidates(Prompt("p", "?"), (Response("a"), Response("bb")))])
    assert [r.reward for r in c.responses] == [-1.0, -2.0]


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_p_that_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=rf"labeler.p={p} is no probability; choose 0 <= p <= 1"):
        Noisy(Vader(), p=p)


def test_a_labeler_that_learns_from_its_own_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predictor:vader-.* learns from its own labels.*labeler@labeler.paid=noisy"):
        Noisy(Predictor(Vader()))


def test_the_parts_of_a_negated_reward_are_negated() -> None:
    several = Function([length, one], weights=[1.0, 2.0])
    for p, sign in ((0.0, 1.0), (1.0, -1.0)):
        noisy = Noisy(several, p=p)
        (answer,) = noisy.score([(Prompt("p", "?"), Response("abc"))])
        assert answer.value == sign * 5.0
        assert noisy.parts_in(answer.raw) == {"length": sign * 3.0, "one": sign * 1.0}
    assert Noisy(Lengths()).parts_in("words") == {}


def length(response: str) -> float:
    return float(len(response))


def one(response: str) -> float:
    return 1.0


def test_verdicts_that_are_imported_cannot_be_made_noisy() -> None:
    with pytest.raises(ValueError, match="imported under its own name"):
        Noisy(Queue("run", ledger="labels.sqlite"))
