"""Test the predictor through a buyer."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Label
from choosy.labeling.nested import audit_draw
from choosy.labeling.predictor.labeler import Predictor, earlier_preferences, preferences_in
from choosy.labeling.predictor.preference_model import Choice, Preference, PreferenceModel
from choosy.labeling.protocols import Compares, Terms
from choosy.types import MIRRORED, Prompt, Response

PAIRS = [
    (
        Prompt(f"p{n}", f"q{n}"),
        *(Response(f"{word} {n % 7}") for word in (("aaaa", "zzzz") if n % 3 else ("zzzz", "aaaa"))),
    )
    for n in range(110)
]
OPTIONS: dict[str, Any] = {"max_error": 0.4, "audit": 0.25, "min_labels": 40}


class LikesA:
    """Likes the a; counts what it is asked."""

    name = "likes-a"

    def __init__(self, *, price: float | None = None, turned_from: int = 10**9) -> None:
        self.price = price  # under its name, so that what is counted is no setting of the labeler
        self.terms = Terms(price=price)
        self.turned_from = turned_from
        self.asked: list[str] = []

    def compare(self, items):
        for prompt, one, _ in items:
            self.asked.append(prompt.id)
            verdict = "first" if one.text.startswith("a") else "second"
            yield MIRRORED[verdict] if int(prompt.id[1:]) >= self.turned_from else verdict


class Scorer:
    name = "scorer"

    def score(self, items):
        return [float(response.text.count("a")) for _, response in items]


@pytest.fixture
def at(tiny_policy_dir: Path, tmp_path: Path):
    """A buyer with a predictor, in a ledger of its own."""

    def buyer(labeler: Any, ledger: str = "ledger.sqlite", *, budget: int | None = None, **options: Any) -> LabelBuyer:
        path = str(tmp_path / ledger)
        model = PreferenceModel(str(tiny_policy_dir), lr=1e-2, max_length=32, device="cpu")
        predictor = Predictor(labeler, model=model, **{**OPTIONS, **options})
        made = LabelBuyer(predictor, ledger=path, budget=budget)
        made.open("run")
        return made

    return buyer


def rows(path: Path, labeler: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM labels WHERE labeler = ? ORDER BY rowid", (labeler,))]


def truth(pairs: Any = PAIRS) -> list[str]:
    return ["first" if one.text.startswith("a") else "second" for _, one, _ in pairs]


@pytest.mark.slow
def test_the_model_learns_preferences_and_is_reproducible(tiny_policy_dir: Path) -> None:
    examples = [Preference(p.text, *sorted((one.text, other.text))) for p, one, other in PAIRS[:40]]

    def choices() -> list[Choice]:
        model = PreferenceModel(str(tiny_policy_dir), lr=1e-2, max_length=32, device="cpu")
        model.fit(examples)
        return model.choices([("new", "aaaa 1", "zzzz 1"), ("new", "zzzz 5", "aaaa 2 and so on")])

    first = choices()
    assert [choice.verdict for choice in first] == ["first", "second"]
    assert [choice.tie for choice in first] == [0.0, 0.0], "no example was a tie"
    assert choices() == first


def test_a_blend_learns_ties_too_and_means_the_probabilities_of_its_encoders(tiny_policy_dir: Path) -> None:
    """Two that begin alike tie; swapping them mirrors the choice, and the blend's is .7 of one and .3 of the other."""
    like = [Preference(f"q{n}", f"{'az'[n % 2] * 4} {n}", f"{'az'[n % 2] * 4} {n + 1}", tie=True) for n in range(20)]
    wins = [Preference(f"q{n}", f"aaaa {n}", f"zzzz {n}") for n in range(20)]
    asked = [("new", "aaaa 3", "zzzz 5"), ("new", "zzzz 3", "zzzz 5"), ("new", "zzzz 5", "aaaa 3")]

    def choices(encoder: Any, **settings: Any) -> list[Choice]:
        model = PreferenceModel(encoder, lr=1e-2, max_length=32, epochs=8, device="cpu", **settings)
        model.fit([*like, *wins])
        return model.choices(asked)

    one, tiny = choices(str(tiny_policy_dir)), str(tiny_policy_dir)
    assert [choice.verdict for choice in one] == ["first", "tie", "second"]
    assert [sum(choice) for choice in one] == pytest.approx([1.0] * 3)
    assert one[2] == pytest.approx(one[0][::-1])
    blend = PreferenceModel([tiny, tiny], shares=[7, 3], lr=1e-2, max_length=32, device="cpu")
    blend.fit(wins)
    for rater, tie in zip(blend._raters, (0.0, 2.0), strict=True):
        rater.tie = tie
    apart = [rater.choices(asked) for rater in blend._raters]
    for choice, first, other in zip(blend.choices(asked), *apart, strict=True):
        assert choice == pytest.approx([0.7 * a + 0.3 * b for a, b in zip(first, other, strict=True)])


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, 1.0, 1.0]])
def test_a_blend_needs_a_share_for_each_encoder(shares: list[float]) -> None:
    with pytest.raises(ValueError, match=r"shares=.*each of 2 encoders; type one number for each"):
        PreferenceModel(["one", "two"], shares=shares)


def test_pairs_with_a_sure_prediction_are_not_bought(at, tmp_path: Path) -> None:
    paid = LikesA(price=0.5)
    buyer = at(paid)
    predictor = buyer.labeler
    assert isinstance(predictor, Compares)
    assert buyer.compare(PAIRS) == truth()
    savings = predictor.savings
    assert savings.answered > 30
    assert savings.answered + savings.paid + savings.audited == 110
    assert 5 < savings.audited < 30
    assert savings.disagreed == 0
    assert str(savings) == (
        f"{savings.answered} labels saved, {len(paid.asked)} bought; the audit disagreed with 0 of {savings.audited}"
    )

    assert (buyer.spent, buyer.counts.money) == (len(paid.asked), pytest.approx(0.5 * len(paid.asked)))
    labels = rows(tmp_path / "ledger.sqlite", predictor.name)
    free = [row for row in labels if row["annotator"] == "predictor"]
    assert len(free) == savings.answered
    assert {(row["cost"], row["judgements"]) for row in free} == {(0.0, 0)}
    assert json.loads(free[0]["raw"])["trained_on"] == 40
    assert {row["annotator"] for row in labels} == {"predictor", "likes-a"}


def test_the_audit_shows_that_the_paid_labeler_has_changed(at) -> None:
    paid = LikesA(turned_from=60)
    buyer = at(paid, audit=0.5)
    buyer.compare(PAIRS[:60])
    assert buyer.labeler.savings.disagreed == 0
    buyer.compare(PAIRS[60:80])
    savings = buyer.labeler.savings
    assert savings.disagreed == sum(audit_draw("predictor", pair) < 0.5 for pair in PAIRS[60:80]) > 5
    assert f"disagreed with {savings.disagreed} of {savings.audited}" in str(savings)


def test_only_bought_labels_count_against_the_budget(at) -> None:
    paid = LikesA()
    buyer = at(paid, budget=50)
    verdicts = buyer.compare(PAIRS)
    assert buyer.spent == len(paid.asked) == 50
    assert len(PAIRS) > sum(verdict is not None for verdict in verdicts) > 60, "free answers come on top"


@pytest.mark.slow
def test_a_resumed_predictor_continues_as_if_uninterrupted(at, tmp_path: Path) -> None:
    whole = at(LikesA(), "whole.sqlite")
    whole.compare(PAIRS[:90])

    first = LikesA()
    at(first).compare(PAIRS[:90])
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        lost = tuple(f"p{n}" for n in range(50, 90))
        db.execute(f"DELETE FROM labels WHERE labeler LIKE 'predictor%' AND prompt_id IN {lost}")
    resumed = LikesA()
    again = at(resumed)
    again.compare(PAIRS[:90])
    assert resumed.asked == [], "what was bought is not bought again"
    columns = ("prompt_id", "verdict", "annotator", "raw", "judgements")
    one, other = (
        [[row[c] for c in columns] for row in rows(tmp_path / file, again.labeler.name)]
        for file in ("whole.sqlite", "ledger.sqlite")
    )
    assert one == other
    assert again.labeler.savings == whole.labeler.savings
    assert again.spent == whole.spent


@pytest.mark.slow
def test_labels_of_earlier_runs_train_the_model(at, tmp_path: Path) -> None:
    paid = LikesA()
    plain = LabelBuyer(paid, ledger=str(tmp_path / "ledger.sqlite"))
    plain.open("earlier")
    plain.compare(PAIRS[:60])
    buyer = at(paid)
    buyer.compare(PAIRS[60:80])
    assert buyer.labeler.savings.paid == 0
    assert buyer.spent == buyer.labeler.savings.audited == len(paid.asked) - 60


def test_two_scores_are_two_labels(at) -> None:
    buyer = at(Scorer())
    assert buyer.terms.labels_per_answer == 2
    buyer.compare(PAIRS[:10])
    assert buyer.spent == 20
    assert buyer.labeler.savings.paid == 10


def test_every_pair_is_bought_if_the_error_cannot_be_bounded(at) -> None:
    buyer = at(LikesA(), max_error=0.01)
    buyer.compare(PAIRS[:60])
    assert buyer.labeler.savings.paid == 60


def test_earlier_preferences() -> None:
    def label(run: str, first: str, second: str | None = None, **value: Any) -> Label:
        blank = {"score": None, "verdict": None, "raw": "", "annotator": "", "judgements": 1, "cost": 0.0}
        given = {"prompt": "q", "first": first, "second": second, "purpose": "train", "run": run}
        return Label(**{**blank, **given, **value})

    labels = [
        *(
            label("a", text, score=score)
            for text, score in (("b", 2.0), ("c", 1.0), ("d", 3.0), ("e", 0.0), ("f", 1.0))
        ),
        label("a", "x", "y", verdict="second"),
        label("a", "x", "z", verdict="tie"),
        label("mine", "m", "n", verdict="first"),
        label("a", "later", "still later", verdict="first"),
    ]
    assert earlier_preferences(labels, "mine") == [
        Preference("q", "y", "x"),
        Preference("q", "x", "z", tie=True),
        Preference("q", "d", "e"),
        Preference("q", "b", "f"),
    ]
    assert Preference("q", "later", "still later") in earlier_preferences(labels, "not begun")
    assert preferences_in("q", "x", "y", "invalid") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_error": 0.0}, r"labeler\.max_error=0\.0 is no share; type a number between 0 and 1"),
        ({"audit": 1.0}, r"labeler\.audit=1\.0 is no share"),
        ({"min_labels": 2}, r"labeler\.min_labels=2 is too small; type 3 or more"),
    ],
)
def test_settings_out_of_range_are_refused(at, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        at(LikesA(), **options)
