"""Test the crowd through a buyer."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.crowd import Crowd, weights_line
from choosy.labeling.nested import audit_draw
from choosy.labeling.protocols import Compares, Postponed, Scores, Terms, fingerprint_of
from choosy.labeling.queue import Queue
from choosy.labeling.vader import Vader
from choosy.methods.aggregation import WorkerRecord
from choosy.types import MIRRORED, Prompt, Response

PAIRS = [(Prompt(f"p{n}", f"question {n}"), Response(f"good {n}"), Response(f"bad {n}")) for n in range(40)]
PAIRS = [pair if n % 3 else (pair[0], pair[2], pair[1]) for n, pair in enumerate(PAIRS)]


class Worker:
    """Right on all pairs but those whose number is in `wrong`; counts what it is asked."""

    def __init__(self, name: str, wrong: Any = (), *, says: str | None = None, price: float | None = None) -> None:
        self.name = name
        self.wrong = set(wrong)
        self.says = says
        self.price = price  # under its name, so that what is counted is no setting of the labeler
        self.terms = Terms(price=price)
        self.asked = 0

    def compare(self, items):
        for prompt, one, _ in items:
            self.asked += 1
            truth = "first" if one.text.startswith("good") else "second"
            yield self.says or (MIRRORED[truth] if int(prompt.id[1:]) in self.wrong else truth)


@pytest.fixture
def buyer_of(tmp_path: Path):
    def buyer(labeler: Any, **options: Any) -> LabelBuyer:
        return LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), **options)

    return buyer


def rows(tmp_path: Path, labeler: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM labels WHERE labeler = ? ORDER BY rowid", (labeler,))]


def truth(pairs: Any = PAIRS) -> list[str]:
    return ["first" if one.text.startswith("good") else "second" for _, one, _ in pairs]


def test_a_crowd_only_compares(buyer_of) -> None:
    crowd = Crowd({"one": Vader(), "two": Worker("w")})
    assert isinstance(crowd, Compares)
    assert not isinstance(crowd, Scores)
    assert crowd.terms.labels_per_answer == 3, "two scores and a verdict"
    assert crowd.terms.price is None


def test_audits_find_the_one_good_member(buyer_of) -> None:
    """Two always say first, one is always right: after the audits only the third counts."""
    members = {
        "good": Worker("good"),
        "lazy": Worker("lazy", says="first"),
        "idle": Worker("idle", says="first"),
    }
    crowd = Crowd(members, expert=Worker("expert"), audit=0.5)
    buyer = buyer_of(crowd)
    buyer.open("run")
    verdicts = buyer.compare(PAIRS)
    assert verdicts[-25:] == truth()[-25:]
    assert crowd.records["good"].wrong == 0
    assert crowd.records["good"].weight > crowd.records["lazy"].weight + 1
    assert buyer.compare([(p, b, a) for p, a, b in PAIRS]) == [MIRRORED[v] for v in verdicts], "turned and not asked"


def test_votes_are_stored_and_charged_once(buyer_of, tmp_path: Path) -> None:
    expert = Worker("expert", price=1.0)
    workers = [Worker(name, price=0.1) for name in "abc"]
    crowd = Crowd({w.name: w for w in workers}, expert=expert, audit=0.2)
    buyer = buyer_of(crowd)
    buyer.open("run")
    buyer.compare(PAIRS)
    audited = sum(audit_draw("audit", pair) < 0.2 for pair in PAIRS)
    assert 0 < audited < 20
    assert crowd.terms.labels_per_answer == 4
    assert crowd.terms.price == pytest.approx(1.3)
    assert buyer.spent == 3 * 40 + audited
    assert buyer.counts.money == pytest.approx(0.1 * 120 + audited)
    votes = rows(tmp_path, "a")
    assert len(votes) == 40
    assert {vote["run"] for vote in votes} == {"run#crowd:a+b+c#a"}
    verdicts = rows(tmp_path, "crowd:a+b+c")
    assert json.loads(verdicts[0]["raw"])["votes"] == dict.fromkeys("abc", truth()[0])
    assert sum(row["annotator"] == "expert" for row in verdicts) == audited
    assert (expert.asked, workers[0].asked) == (audited, 40)

    plain = buyer_of(workers[0])
    plain.open("another run")
    plain.compare(PAIRS)
    assert (workers[0].asked, plain.counts.reused) == (40, 40), "a vote serves other runs as well"


def test_the_budget_counts_votes(buyer_of) -> None:
    crowd = Crowd({name: Worker(name) for name in "abc"})
    buyer = buyer_of(crowd, budget=20)
    buyer.open("run")
    verdicts = buyer.compare(PAIRS)
    assert (buyer.spent, verdicts.count(None)) == (18, 34)
    assert not buyer.pays(1)


def test_a_resumed_crowd_continues_as_if_uninterrupted(buyer_of, tmp_path: Path) -> None:
    def crowd(where: Path) -> tuple[LabelBuyer, list[Worker]]:
        workers = [Worker("a", range(0, 40, 3)), Worker("b", range(0, 40, 2)), Worker("c", range(15))]
        workers.append(Worker("expert"))
        labeler = Crowd(dict(zip("abc", workers[:3], strict=True)), expert=workers[3], audit=0.3, memory=30)
        buyer = LabelBuyer(labeler, ledger=str(where / "ledger.sqlite"))
        buyer.open("run")
        return buyer, workers

    (tmp_path / "whole").mkdir()
    whole, _ = crowd(tmp_path / "whole")
    expected = whole.compare(PAIRS)

    first, workers = crowd(tmp_path)
    first.compare(PAIRS[:20])
    # the verdicts of the last pairs are lost, and so is everything in memory; the votes are not
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        db.execute("DELETE FROM labels WHERE labeler LIKE 'crowd%' AND prompt_id IN ('p17', 'p18', 'p19')")
    again, resumed = crowd(tmp_path)
    assert again.compare(PAIRS) == expected
    assert again.labeler.records == whole.labeler.records
    assert (again.spent, again.labeler.records["c"].right) == (whole.spent, whole.labeler.records["c"].right)
    assert [w.asked + r.asked for w, r in zip(workers[:3], resumed[:3], strict=True)] == [40, 40, 40], "none twice"


def test_ties_invalid_verdicts_and_spent_budgets_cast_no_vote(buyer_of) -> None:
    members = {
        "tie": Worker("tie", says="tie"),
        "broken": Worker("broken", says="invalid"),
        "capped": Worker("capped"),
    }
    buyer = buyer_of(Crowd(members, budgets={"capped": 5}))
    buyer.open("run")
    assert buyer.compare(PAIRS[:10]) == truth()[:5] + ["tie"] * 5
    broken = buyer_of(Crowd({name: Worker(name, says="invalid") for name in ("x", "y")}))
    broken.open("run")
    assert broken.compare(PAIRS[:2]) == ["invalid"] * 2


def test_a_crowd_whose_budgets_are_all_spent_is_an_error(buyer_of) -> None:
    buyer = buyer_of(Crowd({name: Worker(name) for name in "ab"}, budgets={"a": 1, "b": 1}))
    buyer.open("run")
    with pytest.raises(ValueError, match=r"no member of crowd:a\+b has a budget left; raise labeler.budgets"):
        buyer.compare(PAIRS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"members": 1},
            r"needs two members or more, and labeler\.members names 1; type for instance \+labeler@",
        ),
        ({"audit": 0.0}, r"labeler\.audit=0\.0 is no share of the pairs; type a number above 0"),
        ({"budgets": {"d": 5}}, r"labeler\.budgets\.d names no member; the members are a, b, c"),
        ({"memory": 1.0}, r"labeler\.memory=1\.0 is too small; type more than 1, or null"),
    ],
)
def test_settings_out_of_range_are_refused(buyer_of, options: dict[str, Any], words: str) -> None:
    members = {name: Worker(name) for name in "abc"[: options.pop("members", 3)]}
    with pytest.raises(ValueError, match=words):
        Crowd(members, **options)


def test_members_and_settings_change_the_fingerprint(buyer_of) -> None:
    """The fingerprint is part of the key, so that another crowd's verdicts are not reused."""
    members = {name: Worker(name) for name in "ab"}
    prints = {fingerprint_of(Crowd(members, **options)) for options in ({}, {"memory": 9.0}, {"expert": Worker("c")})}
    assert len(prints) == 3
    assert fingerprint_of(Crowd(members)) == fingerprint_of(Crowd(members))


def test_the_log_names_the_heaviest_vote_first() -> None:
    line = weights_line({"guesser": WorkerRecord(4, 5), "expert": WorkerRecord(10, 0)})
    assert line == "expert +2.48 (right 10.0, wrong 0.0), guesser +0.00 (right 4.0, wrong 5.0)"


def test_where_one_of_a_crowd_is_a_person_nobody_is_asked_about_held_out_answers(buyer_of) -> None:
    person = Worker("ann")
    person.terms = Terms(people=True)
    assert buyer_of(Crowd({"a": Worker("a"), "ann": person})).evaluator is None
    alone = buyer_of(Crowd({"a": Worker("a"), "b": Worker("b")}))
    assert alone.evaluator is alone


def test_pairs_that_wait_for_one_of_a_crowd_are_exported_once(buyer_of, tmp_path: Path) -> None:
    buyer = buyer_of(Crowd({"a": Worker("a"), "later": Queue(str(tmp_path), ledger=str(tmp_path / "ledger.sqlite"))}))
    buyer.open("run")
    with pytest.raises(Postponed):
        buyer.compare(PAIRS[:3])
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("SELECT labeler, count(*) FROM wanted GROUP BY labeler").fetchall() == [("queue", 3)]


def test_two_members_that_the_ledger_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"members one and two are one labeler for the ledger, ann, .*give two another"
    ):
        Crowd({"one": Worker("ann"), "other": Worker("bob"), "two": Worker("ann")})
