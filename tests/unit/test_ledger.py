"""The ledger and its buyer: what is paid for is kept, nothing is paid twice, and the budget is exact."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.asking import CHUNK
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Question
from choosy.labeling.protocols import Answer, Labeler, Postponed
from choosy.types import Candidates, Message, Prompt, Response, Verdict


class Lengths:
    """Scores a response by its length, and remembers what it was asked."""

    name = "lengths"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        self.asked += [response.text for _, response in items]
        return [float(len(response.text)) for _, response in items]


class Longer:
    """Prefers the longer response, and remembers what it was asked."""

    name = "longer"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        self.asked += [(first.text, second.text) for _, first, second in items]
        return [_longer(first.text, second.text) for _, first, second in items]


def _longer(first: str, second: str) -> Verdict:
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


class Scripted:
    """Answers with what a function of the response says, one response at a time."""

    name = "scripted"

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [self.answer(response.text) for _, response in items]


def given(prompt: str, *responses: str) -> Candidates:
    return Candidates(Prompt(prompt, f"What about {prompt}?"), tuple(map(Response, responses)))


def rewards(candidates: Sequence[Candidates]) -> list[list[float | None]]:
    return [[response.reward for response in c.responses] for c in candidates]


def rows(path: Path, query: str = "SELECT * FROM labels") -> list[Any]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.sqlite"


@pytest.fixture
def buyer(path: Path) -> Callable[..., LabelBuyer]:
    """A buyer that is open: buyer(labeler, run="a", budget=3)."""

    def opened(labeler: Labeler | None = None, run: str = "a", budget: int | None = None) -> LabelBuyer:
        buyer = LabelBuyer(labeler or Lengths(), ledger=str(path), budget=budget)
        buyer.open(run)
        return buyer

    return opened


# --- buying and reusing ---


def test_scores_come_back_in_place_and_are_rows_of_the_ledger(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer()
    asked = [given("p", "a", "bbb"), given("q", "cc")]
    assert rewards(counter.score(asked)) == [[1.0, 3.0], [2.0]]
    assert rewards(asked) == [[None, None], [None]]
    kept = rows(path, "SELECT labeler, kind, prompt_id, prompt, response_first, score, purpose, run, cost FROM labels")
    assert kept[1] == ("lengths", "score", "p", "What about p?", "bbb", 3.0, "train", "a", 0.0)
    assert (counter.spent, counter.reused, counter.evaluation, counter.exhausted) == (3, 0, 0, False)


def test_a_label_is_never_bought_twice(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(first := Lengths())
    counter.score([given("p", "a", "a", "bb")])
    counter.score([given("p", "bb", "a")])
    assert sorted(first.asked) == ["a", "bb"]
    assert (counter.spent, counter.reused) == (2, 0)
    other = buyer(second := Lengths(), run="b", budget=1)
    assert rewards(other.score([given("p", "a", "bb", "ccc")])) == [[1.0, 2.0, 3.0]]
    assert second.asked == ["ccc"]
    assert (other.spent, other.reused, other.exhausted) == (1, 2, True)
    assert buyer(run="b").reused == 2, "a resumed run reports the same"


def test_the_question_is_labeler_conversation_and_response(buyer: Callable[..., LabelBuyer]) -> None:
    labeler = Lengths()
    as_user = Prompt("p", "hi", (Message("user", "hi"),))
    as_system = Prompt("p", "hi", (Message("system", "hi"),))
    for prompt in (Prompt("p", "hi"), as_user, as_system, Prompt("renamed", "hi")):
        buyer(labeler).score([Candidates(prompt, (Response("a", ids=(1,), finished=False),))])
    assert labeler.asked == ["a"] * 3, "roles matter, the prompt's id does not"
    labeler.name = "lengths-2"
    buyer(labeler).score([Candidates(as_user, (Response("a"),))])
    assert len(labeler.asked) == 4


def test_labels_survive_in_write_ahead_mode(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    buyer().score([given("p", "a")])
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_labels_are_committed_before_they_are_used(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    """While a chunk is being asked for, the chunks before it can be seen by everybody."""
    seen: list[int] = []

    class Watching(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
            seen.append(len(rows(path)))
            return super().score(items)

    buyer(Watching()).score([given(f"p{i}", "a") for i in range(2 * CHUNK + 1)])
    assert seen == [0, CHUNK, 2 * CHUNK]


def test_an_open_buyer_travels_in_a_pickle(buyer: Callable[..., LabelBuyer]) -> None:
    counter = pickle.loads(pickle.dumps(buyer()))
    assert rewards(counter.score([given("p", "a")])) == [[1.0]]
    assert counter.spent == 1


def test_nothing_asked_is_nothing_bought(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(budget=1)
    assert counter.score([]) == []
    assert counter.compare([]) == []
    assert counter.score([given("p")]) == [given("p")]
    assert counter.spent == 0


# --- the budget ---


def test_a_prompt_is_bought_whole_or_not_at_all_in_the_order_given(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=5)
    got = counter.score([given("p", "a", "bb"), given("q", "a", "bb"), given("r", "a", "bb")])
    assert rewards(got) == [[1.0, 2.0], [1.0, 2.0], [None, None]]
    assert len(labeler.asked) == counter.spent == 4
    assert rewards(counter.score([given("s", "a", "bb"), given("t", "a")])) == [[None, None], [1.0]]
    assert (counter.spent, counter.exhausted) == (5, True)
    assert rewards(counter.score([given("u", "a")])) == [[None]]
    assert rewards(counter.score([given("t", "a"), given("q", "bb")])) == [[1.0], [2.0]], "the ledger is free"


def test_a_response_named_twice_costs_once(buyer: Callable[..., LabelBuyer]) -> None:
    assert rewards(buyer(budget=1).score([given("p", "a", "a")])) == [[1.0, 1.0]]


def test_a_resumed_run_goes_on_counting(buyer: Callable[..., LabelBuyer]) -> None:
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
    assert lowered.exhausted
    assert rewards(lowered.score([given("p", "a", "bb")])) == [[1.0, 2.0]]
    assert buyer(run="another", budget=1).spent == 0


@pytest.mark.parametrize("culprit", ["p0", "p1", "q0", "q1", "q2", "r0"])
def test_a_run_that_broke_anywhere_ends_like_one_that_did_not(tmp_path: Path, culprit: str) -> None:
    sizes = {"p": 2, "q": 3, "s": 4, "r": 1, "t": 2}
    asked = [given(name, *(f"{name}{i}" for i in range(size))) for name, size in sizes.items()]

    def fails(text: str) -> float:
        if text == culprit:
            raise RuntimeError
        return float(text[1])

    def opened(answer: Callable[[str], float]) -> LabelBuyer:
        buyer = LabelBuyer(Scripted(answer), ledger=str(tmp_path / "ledger.sqlite"), budget=7)
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
    assert (counter.spent, counter.evaluation, counter.exhausted) == (0, 2, False)
    assert rewards(counter.score([given("q", "a")])) == [[1.0]]
    assert rewards(counter.score([given("q", "a", "bb")], purpose="evaluate")) == [[1.0, 2.0]]
    assert (counter.spent, counter.evaluation) == (1, 3)


def test_training_on_a_label_that_was_bought_to_evaluate_counts(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=2)
    counter.score([given("p", "a", "bb"), given("q", "a")], purpose="evaluate")
    got = counter.score([given("p", "a", "bb"), given("q", "a")])
    assert rewards(got) == [[1.0, 2.0], [None]]
    assert (counter.spent, counter.evaluation, len(labeler.asked)) == (2, 1, 3)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_buys_nothing_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"labels.budget={budget} buys nothing; .* null for no limit"):
        LabelBuyer(Lengths(), ledger="unused", budget=budget)


# --- comparisons ---

PROMPT = Prompt("p", "Which?")
A, BB, CC = Response("a"), Response("bb"), Response("cc")


def test_verdicts_are_bought_up_to_the_budget(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer(labeler := Longer(), budget=2)
    assert (counter.scores, counter.compares) == (False, True)
    assert counter.compare([(PROMPT, A, BB), (PROMPT, BB, CC), (PROMPT, A, CC)]) == ["second", "tie", None]
    assert labeler.asked == [("a", "bb"), ("bb", "cc")]
    kept = rows(path, "SELECT kind, response_first, response_second, score, verdict FROM labels")
    assert kept[0] == ("compare", "a", "bb", None, "second")


def test_a_verdict_is_reused_for_the_question_in_reverse(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Longer())
    assert counter.compare([(PROMPT, BB, A), (PROMPT, A, BB)]) == ["first", "second"]
    assert counter.compare([(PROMPT, A, BB), (PROMPT, BB, A)]) == ["second", "first"]
    assert labeler.asked == [("bb", "a")]
    assert counter.spent == 1


def test_invalid_verdicts_are_kept_and_mirrored_as_they_are(buyer: Callable[..., LabelBuyer]) -> None:
    class Undecided:
        name = "undecided"

        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
            return ["invalid"] * len(items)

    counter = buyer(Undecided())
    assert counter.compare([(PROMPT, A, BB)]) + counter.compare([(PROMPT, BB, A)]) == ["invalid", "invalid"]
    assert counter.spent == 1


def test_a_labeler_that_only_scores_compares_by_two_scores(buyer: Callable[..., LabelBuyer]) -> None:
    counter = buyer(labeler := Lengths(), budget=3)
    assert (counter.scores, counter.compares) == (True, False)
    verdicts = counter.compare([(PROMPT, A, BB), (PROMPT, BB, CC), (PROMPT, A, Response("dd"))])
    assert verdicts == ["second", "tie", None]
    assert labeler.asked == ["a", "bb", "cc"]
    assert counter.spent == 3


def test_a_labeler_that_only_compares_cannot_score(buyer: Callable[..., LabelBuyer]) -> None:
    with pytest.raises(ValueError, match=r"labeler longer only compares.*labeler=vader"):
        buyer(Longer()).score([given("p", "a")])


def test_a_labeler_that_does_neither_is_refused() -> None:
    with pytest.raises(ValueError, match="score or compare; object has not"):
        LabelBuyer(object(), ledger="unused")  # type: ignore[arg-type]


# --- labelers that fail ---


def test_an_error_names_its_row_and_keeps_the_rows_before_it(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    def fails(text: str) -> float:
        if text == "x" * 50:
            raise RuntimeError("the judge is asleep")
        return 1.0

    words = rf"scripted gave no label for prompt 'q', response 1: '{'x' * 40}': RuntimeError: the judge is asleep"
    with pytest.raises(ValueError, match=words):
        buyer(Scripted(fails)).score([given("p", "a", "b"), given("q", "c", "x" * 50, "d")])
    assert [text for (text,) in rows(path, "SELECT response_first FROM labels")] == ["a", "b", "c"]
    mended = buyer(Scripted(len))
    assert mended.spent == 3
    assert rewards(mended.score([given("q", "c", "x" * 50, "d")])) == [[1.0, 50.0, 1.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5"])
def test_a_score_that_is_no_finite_number_is_an_error(buyer: Callable[..., LabelBuyer], path: Path, bad: Any) -> None:
    labeler = Scripted(lambda text: bad if text == "bad" else 1.0)
    words = f"for prompt 'q', response 1: 'bad': wanted a finite number, found {bad!r}.*in the ledger"
    with pytest.raises(ValueError, match=words):
        buyer(labeler).score([given("p", "a"), given("q", "b", "bad", "c")])
    assert [text for (text,) in rows(path, "SELECT response_first FROM labels")] == ["a", "b"]


def test_a_verdict_that_is_none_of_the_four_is_an_error(buyer: Callable[..., LabelBuyer]) -> None:
    class Chatty(Longer):
        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Any]:
            return ["first", "Response A, clearly"]

    counter = buyer(Chatty())
    with pytest.raises(ValueError, match="question 1: 'bb' and 'cc': wanted one of first, second, tie, invalid"):
        counter.compare([(PROMPT, A, BB), (PROMPT, BB, CC)])
    assert counter.spent == 1


def test_one_answer_too_few_is_an_error(buyer: Callable[..., LabelBuyer]) -> None:
    class Lossy(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
            return super().score(items)[1:]

    counter = buyer(Lossy())
    with pytest.raises(ValueError, match="gave 1 labels for 2 questions"):
        counter.score([given("p", "a", "bb")])
    assert counter.spent == 0, "nobody knows whose they are"


# --- the file ---


@pytest.mark.parametrize("path", [7, "", "{tmp}", "{tmp}/text.txt", "{tmp}/text.txt/ledger.sqlite"])
def test_a_path_that_cannot_be_a_ledger_is_an_error(tmp_path: Path, path: Any) -> None:
    (tmp_path / "text.txt").write_text("This is no database. " * 100)
    path = path.format(tmp=tmp_path) if isinstance(path, str) else path
    with pytest.raises(ValueError, match=r"labels\.ledger=.* cannot serve as the ledger.*labels\.ledger=runs/led"):
        LabelBuyer(Lengths(), ledger=path).open("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("locked", ["folder", "file"])
def test_a_ledger_that_cannot_be_written_is_an_error(buyer: Callable[..., LabelBuyer], path: Path, locked: str) -> None:
    buyer()
    target = path if locked == "file" else path.parent
    target.chmod(0o500 if locked == "folder" else 0o400)
    try:
        with pytest.raises(ValueError, match=r"cannot serve as the ledger"):
            buyer()
    finally:
        target.chmod(0o700)


def _buy(path: str, run: str, start: Any) -> None:
    buyer = LabelBuyer(Lengths(), ledger=path)
    start.wait()
    buyer.open(run)
    for i in range(10):
        assert rewards(buyer.score([given(f"p{j}", "a", "bb") for j in range(i, i + 3)])) == [[1.0, 2.0]] * 3


def test_processes_that_buy_the_same_labels_at_once_share_them(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    processes = [context.Process(target=_buy, args=(str(path), run, start)) for run in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(rows(path)) == 24
    buyers = [LabelBuyer(Lengths(), ledger=str(path)) for _ in processes]
    for buyer, run in zip(buyers, "ab", strict=True):
        buyer.open(run)
        assert buyer.spent + buyer.reused == 24, "what a run did not pay for itself, the other one did"
    assert buyers[0].spent + buyers[1].spent == 24


# --- labelers that yield answers as they come ---


class Clicks:
    """Answers comparisons in the order of a script of places, and looks at the ledger before each."""

    name = "clicks"

    def __init__(self, path: Path, places: Sequence[int], cost: float = 0.0) -> None:
        self.path, self.places, self.cost = path, places, cost
        self.seen: list[int] = []
        self.asked: list[int] = []

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        self.asked.append(len(items))
        for place in self.places:
            self.seen.append(len(rows(self.path)))
            if place < 0:
                raise Closed("the browser is closed", at=-place)
            yield Answer(place, "first", raw=f"key {place}", cost=self.cost, annotator="ada")


class Closed(Exception):
    def __init__(self, why: str, at: int) -> None:
        super().__init__(why)
        self.at = at


FIVE = [(Prompt(f"p{i}", "Which?"), Response(f"a{i}"), Response(f"b{i}")) for i in range(5)]


def test_an_answer_is_in_the_ledger_before_the_next_is_asked_for(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    counter = buyer(labeler := Clicks(path, [3, 0, 4, 1, 2], cost=0.25))
    assert counter.compare(FIVE) == ["first"] * 5
    assert (labeler.seen, labeler.asked) == ([0, 1, 2, 3, 4], [5])
    kept = rows(path, "SELECT prompt_id, verdict, raw, cost, annotator FROM labels ORDER BY time")
    assert kept[0] == ("p3", "first", "key 3", 0.25, "ada")
    assert (counter.spent, counter.money) == (5, 1.25)


def test_a_labeler_that_yields_may_bound_what_it_is_asked(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    labeler = Clicks(path, [1, 0])
    labeler.at_once = 2  # type: ignore[attr-defined]
    assert buyer(labeler).compare(FIVE[:4]) == ["first"] * 4
    assert labeler.asked == [2, 2]


def test_what_was_yielded_before_an_error_is_kept_and_the_item_is_named(
    buyer: Callable[..., LabelBuyer], path: Path
) -> None:
    counter = buyer(labeler := Clicks(path, [3, 0, -4]))
    words = "clicks gave no label for prompt 'p4', question 4: 'a4' and 'b4': Closed: the browser is closed"
    with pytest.raises(ValueError, match=words):
        counter.compare(FIVE)
    assert (counter.spent, labeler.asked) == (2, [5])
    mended = Clicks(path, [2, 1, 0])
    assert buyer(mended).compare(FIVE) == ["first"] * 5
    assert mended.asked == [3], "what was answered is not asked again"


def test_a_labeler_may_put_off_its_answers(buyer: Callable[..., LabelBuyer]) -> None:
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
        ([Answer(0, "tie"), Answer(2, "left")], "'p2', .*: wanted one of first, second, tie, invalid, found 'left'"),  # type: ignore[arg-type]
        ([Answer(0, "tie"), Answer(2, "tie", cost=-1.0)], "'p2', .*: wanted a cost that is 0 or more, found -1.0"),
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


def test_a_fingerprint_is_part_of_the_question(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    labeler = Lengths()
    buyer(labeler).score([given("p", "a")])
    labeler.fingerprint = "template 2"  # type: ignore[attr-defined]
    buyer(labeler).score([given("p", "a")])
    buyer(labeler).score([given("p", "a")])
    assert labeler.asked == ["a", "a"]
    assert rows(path, "SELECT labeler, fingerprint FROM labels") == [("lengths", ""), ("lengths", "template 2")]


# --- verdicts that are none ---


class Mumbling:
    """Every third verdict is invalid, or every one."""

    name = "mumbling"

    def __init__(self, every: int) -> None:
        self.every = every

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        for at, (prompt, _, _) in enumerate(items):
            bad = int(prompt.id) % self.every == 0
            yield Answer(at, "invalid" if bad else "tie", raw=f"{'well, ' * 99}it depends" if bad else "tie")


MANY = [(Prompt(f"{i}", f"Which of {i}?"), Response("a"), Response("b")) for i in range(90)]


def test_a_labeler_that_talks_nonsense_stops_the_run_with_what_it_said(
    buyer: Callable[..., LabelBuyer], path: Path
) -> None:
    counter = buyer(Mumbling(3))
    words = (
        r"7 of the 20 verdicts of labeler mumbling are invalid, and labels.max_invalid=0.2 .*\n  'well, well, .{188}'"
        r"\n.*All labels are in the ledger. Mend the labeler, or type a larger labels.max_invalid, and resume"
    )
    with pytest.raises(ValueError, match=f"(?s){words}"):
        counter.compare(MANY)
    assert counter.spent == 20
    counter.max_invalid = 0.5
    assert counter.compare(MANY).count("invalid") == 30
    counter.max_invalid = 0.2
    assert counter.compare(MANY).count("invalid") == 30, "what was bought before is no reason to stop"


@pytest.mark.parametrize(("every", "limit"), [(10, 0.2), (1, None), (1, 1.0)])
def test_as_much_nonsense_as_is_allowed(buyer: Callable[..., LabelBuyer], every: int, limit: float | None) -> None:
    counter = buyer(Mumbling(every))
    counter.max_invalid = limit
    assert counter.compare(MANY).count("invalid") == 90 // every


def test_a_share_of_nonsense_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels.max_invalid=1.5 is no share; choose 0 to 1, null for no limit"):
        LabelBuyer(Lengths(), ledger="unused", max_invalid=1.5)


# --- keys ---


def test_a_key_reaches_neither_the_ledger_nor_a_message(
    buyer: Callable[..., LabelBuyer], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "sk-canary-0123")

    class Leaking(Longer):
        def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:  # type: ignore[override]
            yield Answer(0, "tie", raw="you sent sk-canary-0123", annotator="sk-canary-0123")
            raise RuntimeError("401 for sk-canary-0123")

    with pytest.raises(ValueError, match=r"RuntimeError: 401 for \[JUDGE_API_KEY\]"):
        buyer(Leaking()).compare(FIVE)
    assert rows(path, "SELECT raw, annotator FROM labels") == [("you sent [JUDGE_API_KEY]", "[JUDGE_API_KEY]")]
    assert not any(b"canary" in file.read_bytes() for file in path.parent.iterdir())


# --- the budget of money ---


class Paid(Lengths):
    """Scores by length; a label costs what a function of the response says, known beforehand or not."""

    def __init__(self, cost: Callable[[str], float], price: float | None = None) -> None:
        super().__init__()
        self.cost = cost
        if price is not None:
            self.price = price

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:  # type: ignore[override]
        for at, (_, response) in enumerate(items):
            self.asked.append(response.text)
            yield Answer(at, float(len(response.text)), cost=self.cost(response.text))


def afford(counter: LabelBuyer, n: int) -> int:
    got = counter.score([given(f"p{i:02d}", f"r{i:02d}") for i in range(n)])
    return sum(reward is not None for c in rewards(got) for reward in c)


def test_a_price_known_beforehand_is_an_exact_budget(path: Path) -> None:
    for run, money, bought in (("a", 0.3, 3), ("b", 0.35, 6), ("c", 0.05, 6)):
        buyer = LabelBuyer(labeler := Scripted(lambda text: 1.0), ledger=str(path), budget_money=money)
        labeler.price = 0.1  # type: ignore[attr-defined]
        buyer.open(run)
        assert afford(buyer, 9) == bought, "what another run has bought is free"
        assert buyer.money == pytest.approx(0.3 if run != "c" else 0.0)
        assert buyer.exhausted


def test_a_cost_known_afterwards_is_reckoned_at_the_dearest(path: Path) -> None:
    costs = {"r00": 0.1, "r01": 0.1, "r02": 0.4}
    buyer = LabelBuyer(labeler := Paid(lambda text: costs.get(text, 0.2)), ledger=str(path), budget_money=1.0)
    buyer.open("a")
    assert afford(buyer, 20) == 4, "one, one more, two more; then 0.2 is left, and one has cost 0.4"
    assert labeler.asked == ["r00", "r01", "r02", "r03"]
    assert buyer.money == pytest.approx(0.8)
    again = LabelBuyer(labeler, ledger=str(path), budget_money=1.0)
    again.open("a")
    assert (again.money, again.exhausted, afford(again, 20)) == (buyer.money, True, 4)


@pytest.mark.parametrize("dearest", [0.1, 0.25, 0.4])
def test_no_budget_is_exceeded_by_a_labeler_whose_price_is_the_most_a_label_costs(path: Path, dearest: float) -> None:
    buyer = LabelBuyer(
        Paid(lambda text: dearest if int(text[1:]) % 3 else 0.05, price=0.4), ledger=str(path), budget_money=2.0
    )
    buyer.open("a")
    bought = afford(buyer, 50)
    assert 2.0 - 0.4 < buyer.money <= 2.0
    assert buyer.exhausted
    assert buyer.spent == bought


def test_a_budget_of_money_for_labels_that_cost_nothing_is_refused(path: Path) -> None:
    buyer = LabelBuyer(Paid(lambda text: 0.0), ledger=str(path), budget_money=1.0)
    buyer.open("a")
    with pytest.raises(ValueError, match=r"budget_money=1.0 limits nothing: the labels of lengths cost nothing"):
        afford(buyer, 9)
    assert buyer.spent == 1


@pytest.mark.parametrize("money", [0, -1, math.inf, math.nan])
def test_an_amount_that_buys_nothing_is_refused(money: float) -> None:
    with pytest.raises(ValueError, match=rf"labels.budget_money={money} buys nothing; type an amount, or null"):
        LabelBuyer(Lengths(), ledger="unused", budget_money=money)


# --- files of an earlier version ---

VERSION_1 = """
PRAGMA journal_mode = WAL;
PRAGMA user_version = 1;
CREATE TABLE labels (
    key TEXT PRIMARY KEY, labeler TEXT NOT NULL, kind TEXT NOT NULL, prompt_id TEXT NOT NULL,
    prompt TEXT NOT NULL, response_first TEXT NOT NULL, response_second TEXT, score REAL, verdict TEXT,
    purpose TEXT NOT NULL, run TEXT NOT NULL, cost REAL NOT NULL, time REAL NOT NULL);
CREATE INDEX labels_of_run ON labels (run, purpose);
CREATE TABLE reuses (run TEXT, key TEXT, PRIMARY KEY (run, key)) WITHOUT ROWID;
INSERT INTO labels VALUES ('d1f8f8d6ef0acd1d', 'lengths', 'score', 'p', 'What about p?', 'a', NULL, 1.0, NULL,
    'train', 'a', 1.0, 1.7e9);
INSERT INTO reuses VALUES ('b', 'd1f8f8d6ef0acd1d');
"""


def test_a_ledger_of_version_1_goes_on(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    key = Question("lengths", "", Prompt("p", "What about p?"), (Response("a"),)).key
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1.replace("d1f8f8d6ef0acd1d", key))
    counter = buyer(labeler := Lengths(), budget=2)
    assert rewards(counter.score([given("p", "a", "bb", "ccc")])) == [[None] * 3]
    assert rewards(counter.score([given("p", "a", "bb")])) == [[1.0, 2.0]]
    assert (labeler.asked, counter.spent, counter.money, buyer(run="b").reused) == (["bb"], 2, 0.0, 1)
    assert rows(path, "SELECT raw, annotator, fingerprint, judgements, messages FROM labels") == [
        ("", "", "", 1, None),
        ("", "", "", 1, "[]"),
    ]
    assert rows(path, "PRAGMA user_version") == [(2,)]


def test_a_ledger_of_a_later_version_is_refused(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    buyer()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ValueError, match=r"written by a later Choosy \(format 9, .* 2\); update Choosy, or type"):
        buyer()


def test_an_answer_may_say_what_it_takes(tmp_path: Path) -> None:
    """A labeler that buys from others, or guesses: its answers take what was bought for them, and 0 is nothing."""

    class Middleman:
        name = "middleman"
        judgements = 3
        price = 1.5

        def compare(self, items):
            yield Answer(0, "first", cost=1.0, judgements=2)
            yield Answer(1, "first", judgements=0)
            for at in range(2, len(items)):
                yield Answer(at, "first")

    buyer = LabelBuyer(Middleman(), ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")
    buyer.compare([(Prompt(f"p{n}", f"q{n}"), Response("a"), Response("b")) for n in range(3)])
    assert (buyer.spent, buyer.money) == (5, pytest.approx(2.5))
    assert [(label.judgements, label.cost) for label in buyer.ledger.labels_of("middleman")] == [
        (2, 1.0),
        (0, 0.0),
        (3, 1.5),
    ]


def test_a_labeler_is_told_for_whom_it_judges_and_with_which_policy(tmp_path: Path) -> None:
    class Curious:
        name = "curious"

        def __init__(self) -> None:
            self.heard: list[Any] = []

        def recall(self, history, run):
            self.heard.append(
                [(label.first, label.score, label.run) for label in history.labels_of(self.name, run=run)]
            )

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
