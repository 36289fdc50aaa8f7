"""Test the labeler that asks people, without its page."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.human.assignment import Assignment
from choosy.labeling.human.labeler import Human, ThumbsHuman, token_from
from choosy.labeling.human.page import same
from choosy.labeling.human.questions import Click, PairQuestion, ResponseQuestion, first_on_the_left, majority
from choosy.labeling.human.sitting import Clicks, Sitting
from choosy.labeling.protocols import Answer, TakenBack
from choosy.rounds.evaluate import evaluate
from choosy.types import Candidates, Prompt, Response


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def questions(n: int) -> list[PairQuestion]:
    return [PairQuestion(f"q{i}", f"prompt {i}", f"first {i}", f"second {i}") for i in range(n)]


def asked(n: int) -> list[tuple[Prompt, Response, Response]]:
    return [(Prompt(f"p{i}", f"prompt {i}"), Response(f"first {i}"), Response(f"second {i}")) for i in range(n)]


# -- assignment ---------------------------------------------------------------------------------------------


def test_annotators_get_different_questions_in_order():
    table = Assignment(questions(3))
    assert [table.show(who).id for who in ("ann", "bob", "cy")] == ["q0", "q1", "q2"]
    assert table.show("ann").id == "q0", "a page that is loaded again shows the same question"
    assert table.show("dan") is None
    assert table.click(Click("q0", "ann", "first"))
    assert table.show("ann") is None
    assert table.left == 2


def test_overlap_gives_each_question_to_that_many_different_annotators():
    table = Assignment(questions(2), overlap=2)
    seen = {who: [] for who in ("ann", "bob", "cy")}
    for _ in range(3):
        for who, questions_seen in seen.items():
            if question := table.show(who):
                questions_seen.append(question.id)
                assert table.click(Click(question.id, who, "tie"))
    assert table.left == 0
    assert all(len(set(names)) == len(names) for names in seen.values())
    assert sorted(name for names in seen.values() for name in names) == ["q0", "q0", "q1", "q1"]


def test_one_annotator_cannot_judge_a_question_twice():
    table = Assignment(questions(1), overlap=2)
    assert table.click(Click("q0", "ann", "first"))
    assert table.show("ann") is None
    assert not table.click(Click("q0", "ann", "second"))
    assert table.clicks["q0"] == [Click("q0", "ann", "first")]


def test_a_question_on_an_idle_screen_goes_to_another_annotator_when_no_other_is_left():
    clock = Clock()
    table = Assignment(questions(2), hold=60, clock=clock)
    assert table.show("gone").id == "q0"
    assert table.show("ann").id == "q1"
    assert table.click(Click("q1", "ann", "first"))
    clock.now = 59
    assert table.show("ann") is None
    clock.now = 61
    assert table.show("ann").id == "q0"
    assert table.click(Click("q0", "gone", "first")), "who was gone comes back and is first"
    assert not table.click(Click("q0", "ann", "second")), "one label, not two"


def test_a_click_on_an_unknown_question_is_refused():
    table = Assignment(questions(1))
    assert not table.click(Click("elsewhere", "ann", "first"))


def test_earlier_clicks_count_up_to_the_overlap():
    before = [Click("q0", "ann", "first"), Click("q0", "bob", "second"), Click("old", "ann", "tie")]
    table = Assignment(questions(2), before, overlap=1)
    assert table.clicks == {"q0": [before[0]], "q1": []}
    assert table.undo("ann") is None, "what is in the ledger since before the interruption stays there"


def test_undo_removes_the_latest_click_first_and_shows_its_question_again():
    table = Assignment(questions(3))
    for name in ("q0", "q1"):
        table.show("ann")
        table.click(Click(name, "ann", "first"))
    assert table.show("ann").id == "q2"
    assert table.undo("ann") == Click("q1", "ann", "first")
    assert table.show("ann").id == "q1"
    assert table.show("bob").id == "q2", "the question that undo put aside is free again"
    assert table.undo("ann") == Click("q0", "ann", "first")
    assert table.undo("ann") is None
    assert table.left == 3


# -- sides and votes ----------------------------------------------------------------------------------------


def test_first_on_the_left_is_random_over_questions_and_annotators_and_repeatable():
    sides = {(q, who): first_on_the_left(f"q{q}", who) for q in range(400) for who in ("ann", "bob")}
    assert sides == {(q, who): first_on_the_left(f"q{q}", who) for q, who in sides}
    for who in ("ann", "bob"):
        assert 160 < sum(side for (_, name), side in sides.items() if name == who) < 240
    agree = sum(sides[q, "ann"] == sides[q, "bob"] for q in range(400))
    assert 160 < agree < 240, "two annotators see the same pair in orders that have nothing to do with each other"


@pytest.mark.parametrize(
    ("verdicts", "label"),
    [
        (["first"], "first"),
        (["invalid"], "invalid"),
        (["first", "first", "second"], "first"),
        (["first", "second"], "tie"),
        (["first", "tie"], "tie"),
        (["invalid", "second", "invalid"], "second"),
        (["invalid", "invalid"], "invalid"),
    ],
)
def test_majority(verdicts, label):
    assert majority(Click("q", f"a{i}", verdict) for i, verdict in enumerate(verdicts)) == label


# -- clicks -----------------------------------------------------------------------------------------------


def test_clicks_are_stored_and_undone_ones_marked(tmp_path):
    clicks = Clicks(tmp_path / "clicks.sqlite", "human")
    one, two = Click("q0", "ann", "first"), Click("q1", "ann", "tie")
    clicks.write(one)
    clicks.write(two)
    clicks.undo(two)
    clicks.write(two._replace(verdict="second"))
    assert Clicks(tmp_path / "clicks.sqlite", "human").standing() == [one, two._replace(verdict="second")]
    assert Clicks(tmp_path / "clicks.sqlite", "experts").standing() == []
    with closing(sqlite3.connect(tmp_path / "clicks.sqlite")) as db:
        assert db.execute("SELECT count(*), count(undone) FROM clicks").fetchone() == (3, 1)


def test_clicks_refuse_a_second_click_of_an_annotator_on_a_question(tmp_path):
    clicks = Clicks(tmp_path / "clicks.sqlite", "human")
    clicks.write(Click("q0", "ann", "first"))
    with pytest.raises(sqlite3.IntegrityError):
        clicks.write(Click("q0", "ann", "second"))


# -- sitting -------------------------------------------------------------------------------------------------


@pytest.fixture
def sit(tmp_path: Path) -> Callable[..., Sitting]:
    def sitting(n: int = 3, **how: Any) -> Sitting:
        clicks = Clicks(tmp_path / "clicks.sqlite", "human")
        return Sitting(questions(n), clicks, **{"overlap": 1, "hold": 60, "grace": 0.2, **how})

    return sitting


@pytest.fixture
def page() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def side_of(sitting: Sitting, annotator: str, text: str) -> str:
    screen = sitting.screen(annotator)
    return "left" if screen.texts["left"].startswith(text) else "right"


def test_a_click_returns_only_when_its_label_is_written(sit, page):
    sitting = sit(1)
    answers = sitting.answers()
    click = page.submit(sitting.click, "ann", "q0", side_of(sitting, "ann", "second"))
    answer = next(answers)
    assert (answer.at, answer.value, answer.annotator) == (0, "second", "ann")
    time.sleep(0.05)
    assert not click.done(), "the ledger has not got it yet"
    assert next(answers, None) is None
    assert click.result(5)
    assert sitting.over


@pytest.mark.parametrize("text", ["first", "second"])
def test_the_verdict_follows_the_text_and_not_the_side(text, sit, page):
    sitting = sit(20)
    answers = sitting.answers()
    clicked = set()
    for _ in range(20):
        shown = sitting.screen("ann")
        side = side_of(sitting, "ann", text)
        clicked.add(side)
        page.submit(sitting.click, "ann", shown.question, side)
        answer = next(answers)
        assert (answer.value, json.loads(answer.raw)[0]["clicked"]) == (text, side)
    assert clicked == {"left", "right"}
    answers.close()


def test_undo_takes_the_label_back_until_the_grace_is_over(sit, page):
    sitting = sit(1, grace=0.5)
    answers = sitting.answers()
    page.submit(sitting.click, "ann", "q0", "tie")
    assert next(answers).value == "tie"
    undo = page.submit(lambda: wait_until(lambda: sitting.undo("ann")))
    struck = next(answers)
    assert isinstance(struck, TakenBack)
    assert struck.at == 0
    click = page.submit(lambda: wait_until(lambda: sitting.click("ann", "q0", "skip")))
    assert next(answers).value == "invalid"
    assert undo.result(5)
    assert next(answers, None) is None
    assert click.result(5)
    assert not sitting.undo("ann"), "training has its labels"
    assert not sitting.click("ann", "q0", "tie")


def test_undo_of_one_of_two_votes_takes_the_label_back_too(sit, page):
    sitting = sit(1, overlap=2, grace=0.5)
    answers = sitting.answers()
    assert sitting.click("ann", "q0", "tie"), "a first vote needs no ledger: it is in the journal"
    page.submit(sitting.click, "bob", "q0", "tie")
    assert next(answers).annotator == "ann, bob"
    page.submit(sitting.undo, "ann")
    assert isinstance(next(answers), TakenBack)
    page.submit(sitting.click, "ann", "q0", "skip")
    answer = next(answers)
    assert (answer.value, answer.annotator) == ("tie", "bob, ann")
    answers.close()


def test_a_click_survives_a_run_that_stops_before_the_ledger_has_it(sit, page):
    sitting = sit(2)
    answers = sitting.answers()
    click = page.submit(sitting.click, "ann", "q0", "tie")
    assert next(answers).value == "tie"
    answers.close()
    with pytest.raises(CancelledError):
        click.result(5)
    assert not sitting.click("ann", "q1", "tie")
    again = sit(2).answers()
    assert next(again).value == "tie", "the journal knew"
    again.close()


def test_a_click_that_cannot_be_written_does_not_count(sit, monkeypatch):
    sitting = sit(1)

    def full(click: Click) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sitting._clicks, "write", full)
    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        sitting.click("ann", "q0", "tie")
    assert sitting.left == 1
    assert sitting.screen("ann").question == "q0"
    assert not sitting.screen("ann").can_undo


def test_the_screen_shows_progress_and_the_budget_left(sit):
    sitting = sit(3, overlap=2, budget_left=7)
    assert (sitting.screen("ann").done, sitting.screen("ann").asked, sitting.screen("ann").budget_left) == (0, 3, 10)
    assert not sitting.screen("ann").can_undo
    sitting.click("ann", "q0", "tie")
    assert sitting.screen("ann").can_undo


def wait_until(act: Callable[[], bool]) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if act():
            return True
        time.sleep(0.01)
    return False


# -- with the ledger -----------------------------------------------------------------------------------------------


def rows(path: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT prompt_id, verdict, annotator FROM labels ORDER BY prompt_id").fetchall()


@pytest.fixture
def human(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Human:
    labeler = Human(str(tmp_path), grace=0.5)
    monkeypatch.setattr(labeler, "_listen", lambda: "http://127.0.0.1:1/?token=secret")
    return labeler


@pytest.fixture
def buyer(human: Human, tmp_path: Path) -> LabelBuyer:
    buyer = LabelBuyer(human, ledger=str(tmp_path / "ledger.sqlite"), budget=10)
    buyer.open("run")
    return buyer


def test_a_saved_click_is_in_the_ledger_and_an_undone_one_is_not(human, buyer, page, tmp_path, capsys):
    verdicts = page.submit(buyer.compare, asked(2))
    assert wait_until(lambda: bool(human.sitting and human.sitting.screen("ann").question))
    assert human.sitting.screen("ann").budget_left == 10
    assert human.sitting.click("ann", human.sitting.screen("ann").question, "tie")
    assert rows(tmp_path / "ledger.sqlite") == [("p0", "tie", "ann")]
    assert human.sitting.screen("ann").budget_left == 9
    assert human.sitting.undo("ann")
    assert rows(tmp_path / "ledger.sqlite") == []
    assert human.sitting.screen("ann").texts["prompt"] == "prompt 0"
    for _ in range(2):
        assert human.sitting.click("ann", human.sitting.screen("ann").question, "skip")
    assert verdicts.result(5) == ["invalid", "invalid"]
    assert buyer.spent == 2
    assert not human.sitting.screen("ann").question
    printed = capsys.readouterr().err
    assert "2 pairs to label at http://127.0.0.1:1/?token=secret (training waits)" in printed


def test_clicks_under_another_instruction_answer_another_question(human, buyer, page, tmp_path, monkeypatch):
    verdicts = page.submit(buyer.compare, asked(1))
    assert wait_until(lambda: bool(human.sitting and human.sitting.screen("ann").question))
    assert human.sitting.click("ann", human.sitting.screen("ann").question, "tie")
    assert verdicts.result(5) == ["tie"]
    safer = Human(str(tmp_path), grace=0.5, instruction="Which answer is safer?")
    monkeypatch.setattr(safer, "_listen", lambda: "http://127.0.0.1:1/")
    again = LabelBuyer(safer, ledger=str(tmp_path / "ledger.sqlite"), budget=10)
    again.open("run")
    verdicts = page.submit(again.compare, asked(1))
    assert wait_until(lambda: bool(safer.sitting and safer.sitting.screen("ann").question)), "ann is asked again"
    assert safer.sitting.click("ann", safer.sitting.screen("ann").question, "skip")
    assert verdicts.result(5) == ["invalid"]


def test_a_thumb_is_a_score_in_the_ledger_until_it_is_undone(page, tmp_path, monkeypatch, capsys):
    human = ThumbsHuman(str(tmp_path), grace=0.5)
    monkeypatch.setattr(human, "_listen", lambda: "http://127.0.0.1:1/")
    buyer = LabelBuyer(human, ledger=str(tmp_path / "ledger.sqlite"), budget=10)
    buyer.open("run")
    candidates = [Candidates(prompt, (response,)) for prompt, response, _ in asked(3)]
    scored = page.submit(buyer.score, candidates)
    assert wait_until(lambda: bool(human.sitting and human.sitting.screen("ann").question))
    assert human.sitting.screen("ann").texts == {"prompt": "prompt 0", "response": "first 0"}
    assert human.sitting.click("ann", human.sitting.screen("ann").question, "bad")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("SELECT score, annotator FROM labels").fetchall() == [(-1.0, "ann")]
        assert human.sitting.undo("ann")
        assert db.execute("SELECT score, annotator FROM labels").fetchall() == []
    for action in ("good", "bad", "skip"):
        assert human.sitting.click("ann", human.sitting.screen("ann").question, action)
    assert [c.responses[0].reward for c in scored.result(5)] == [1.0, -1.0, 0.0]
    assert "3 responses to label at http://127.0.0.1:1/ (training waits)" in capsys.readouterr().err
    assert (buyer.scores, buyer.evaluator, buyer.spent) == (True, None, 3)


@pytest.mark.parametrize(
    ("words", "score"),
    [("good good bad", 1.0), ("good bad", 0.0), ("bad invalid", -1.0), ("invalid invalid", 0.0)],
)
def test_the_votes_on_a_response_make_its_score(words, score):
    question = ResponseQuestion("q0", "prompt", "response")
    clicks = [Click("q0", f"a{i}", word) for i, word in enumerate(words.split())]
    assert question.label(clicks) == score
    clicked = [question.detail(click)["clicked"] for click in clicks]
    assert clicked == [word.replace("invalid", "skip") for word in words.split()]


def test_instruction_and_overlap_change_the_fingerprint(tmp_path):
    prints = {
        Human(str(tmp_path), **options).terms.fingerprint
        for options in ({}, {"overlap": 3}, {"instruction": "Which is safer?"})
    }
    assert len(prints) == 3


# -- wrong settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0}, "labeler.overlap=0 is too small; type 1 or more"),
        ({"hold": -1}, "labeler.hold=-1 is too small; type 0 or more"),
        ({"grace": -1}, "labeler.grace=-1 is too small"),
    ],
)
def test_a_value_out_of_range_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Human(str(tmp_path), **options)


def test_a_missing_package_is_named_with_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("choosy.labeling.human.labeler.find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(ValueError, match=r"uvicorn, which is not installed; type pip install 'choosy-tuning\[human\]'"):
        Human(str(tmp_path))


def test_a_token_is_random_or_the_environments():
    assert token_from({}) != token_from({})
    assert len(token_from({})) >= 32
    assert token_from({"CHOOSY_LABELING_TOKEN": "x" * 16}) == "x" * 16
    for wrong in ("abc", "a secret & a half"):
        with pytest.raises(ValueError, match=r"TOKEN can be guessed.* 16 or more letters, digits, - and _"):
            token_from({"CHOOSY_LABELING_TOKEN": wrong})
    assert same("ü", "ü")
    assert not same("", "x")


# -- what the buyer does for labelers of people -----------------------------------------------------------------


class Fickle:
    """Says first, takes it back, and says second."""

    name = "fickle"

    def __init__(self) -> None:
        self.informed: list[dict[str, Any]] = []

    def inform(self, **facts: Any) -> None:
        self.informed.append(facts)

    def compare(self, items: Any) -> Iterator[Answer]:
        for at in range(len(items)):
            yield from (Answer(at, "first"), TakenBack(at, "first"), Answer(at, "second"))


def test_an_answer_that_is_taken_back_leaves_no_trace_in_what_is_trained_on(tmp_path):
    fickle = Fickle()
    buyer = LabelBuyer(fickle, ledger=str(tmp_path / "ledger.sqlite"), budget=4)
    buyer.open("run")
    assert buyer.compare(asked(2)) == ["second", "second"]
    assert rows(tmp_path / "ledger.sqlite") == [("p0", "second", ""), ("p1", "second", "")]
    assert buyer.spent == 2
    assert buyer.compare(asked(3), purpose="evaluate") == ["second"] * 3
    assert fickle.informed == [
        {"purpose": "train", "budget": 4, "spent": 0},
        {"purpose": "evaluate", "budget": 4, "spent": 2},
    ]


def test_people_are_not_asked_about_heldout_answers_unless_the_run_says_so(tmp_path):
    fickle = Fickle()
    buyer = LabelBuyer(fickle, ledger=str(tmp_path / "ledger.sqlite"), evaluation="none")
    buyer.open("run")
    answers = [Candidates(prompt, (replace(one, ids=(1, 2), logp=-1.0, logp_ref=-3.0),)) for prompt, one, _ in asked(2)]
    start = {c.prompt.id: c for c in answers}
    result = evaluate(answers, start, buyer.evaluator)
    assert fickle.informed == []
    assert result.metrics == {
        **dict.fromkeys(("reward", "reward_low", "reward_high", "win_rate", "win_rate_low", "win_rate_high")),
        **dict.fromkeys(("win_rate_lc", "win_rate_lc_low", "win_rate_lc_high")),
        **{"judged": None, "ties": None, "invalid": None, "kl": 2.0, "kl_error": 0.0},
        **dict.fromkeys(("length", "length_low", "length_high"), 2.0),
    }
    assert [row["outcome"] for row in result.rows] == [None, None]
