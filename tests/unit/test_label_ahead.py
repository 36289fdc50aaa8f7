"""Labels that are bought while a round is sampled: when that may be, and how it ends."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.judge.judge import Judge
from choosy.labeling.noisy import Noisy
from choosy.labeling.protocols import Answer, Terms
from choosy.rounds import label_ahead as module
from choosy.rounds.label_ahead import LabelAhead
from choosy.types import Candidates, Prompt, Response


class Far:
    """Judges elsewhere, one answer at a time, each of which waits until the test allows it."""

    name = "far"
    terms = Terms(runs_remotely=True)

    def __init__(self) -> None:
        self.leave = threading.Semaphore(0)
        self.asked: list[str] = []

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        for at, (prompt, *_) in enumerate(items):
            self.asked.append(prompt.id)
            assert self.leave.acquire(timeout=60)
            yield Answer(at, "first")


class Near(Far):
    terms = Terms()


def given(*ids: int) -> list[Candidates]:
    return [Candidates(Prompt(f"p{n}", f"{n}?"), (Response(f"yes {n}"), Response(f"no {n}"))) for n in ids]


class Kept:
    """What has been kept, to be looked at once."""

    def __init__(self) -> None:
        self.new: list[Candidates] = []

    def __iter__(self) -> Kept:
        return self

    def __next__(self) -> list[Candidates]:
        new, self.new = self.new, []
        return new


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def bought(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM labels").fetchone()[0])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LabelBuyer, LabelAhead]]:
    """An open buyer and what buys there ahead: made(labeler, budget=3)."""
    monkeypatch.setattr(module, "POLL", 0.01)

    def opened(labeler: Any, **budgets: Any) -> tuple[LabelBuyer, LabelAhead]:
        buyer = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), **budgets)
        buyer.open("a")
        return buyer, LabelAhead(buyer, lambda some: buyer.compare([(c.prompt, *c.responses) for c in some]))  # type: ignore[misc]

    return opened


def test_what_is_bought_ahead_is_not_bought_again(made, tmp_path) -> None:
    labeler, kept = Far(), Kept()
    buyer, ahead = made(labeler)
    with ahead:
        ahead.start(kept, prompts=5, responses=2)
        kept.new = given(0, 1)
        labeler.leave.release(2)
        until(lambda: bought(tmp_path / "ledger.sqlite") == 2)
        kept.new = given(2)
        until(lambda: labeler.asked[-1] == "p2")
        labeler.leave.release()
        assert ahead.finish() == 3, "what is under way is waited for"
        labeler.leave.release(2)
        assert buyer.compare([(c.prompt, *c.responses) for c in given(0, 1, 2, 3, 4)]) == ["first"] * 5
    assert labeler.asked == ["p0", "p1", "p2", "p3", "p4"], "nothing is asked twice"
    assert buyer.spent == 5


@pytest.mark.parametrize(
    ("labeler", "budgets", "starts"),
    [
        (Far, {}, True),
        (Near, {}, False),
        (Far, {"budget": 5}, True),
        (Far, {"budget": 4}, False),
        (Far, {"budget_money": 100.0}, False),
        (lambda: priced(1.0), {"budget_money": 5.0}, True),
        (lambda: priced(1.0), {"budget_money": 4.9}, False),
    ],
)
def test_it_buys_only_elsewhere_and_where_the_budgets_surely_pay_all(labeler, budgets, starts, made) -> None:
    before = threading.active_count()
    _, ahead = made(labeler(), **budgets)
    with ahead:
        ahead.start(Kept(), prompts=5, responses=2)
        assert threading.active_count() - before == starts
        assert ahead.finish() == 0
    assert threading.active_count() == before


def priced(price: float) -> Far:
    labeler = Far()
    labeler.terms = Terms(price=price, runs_remotely=True)
    return labeler


def test_an_error_is_raised_where_the_round_is_played(made) -> None:
    class Broken(Far):
        def compare(self, items: Any) -> Iterator[Answer]:
            raise RuntimeError("invalid key")
            yield

    kept = Kept()
    _, ahead = made(Broken())
    kept.new = given(0)

    def sample() -> None:
        with ahead:
            ahead.start(kept, prompts=1, responses=2)
            while True:
                ahead.check()
                time.sleep(0.01)

    with pytest.raises(ValueError, match="invalid key"):
        sample()
    with pytest.raises(ValueError, match="invalid key"):
        ahead.finish()


def test_when_the_round_fails_the_purchase_ends_with_the_next_answer(made, tmp_path) -> None:
    labeler, kept = Far(), Kept()
    buyer, ahead = made(labeler)
    kept.new = given(*range(5))

    def answer_once_interrupted() -> None:
        until(lambda: buyer.interrupted)
        labeler.leave.release()

    def sample() -> None:
        with ahead:
            ahead.start(kept, prompts=5, responses=2)
            labeler.leave.release()
            until(lambda: bought(tmp_path / "ledger.sqlite") == 1)
            threading.Thread(target=answer_once_interrupted).start()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        sample()
    assert bought(tmp_path / "ledger.sqlite") == 2, "the answer that was under way is kept, and no other is asked for"
    labeler.leave.release(3)
    assert buyer.compare([(c.prompt, *c.responses) for c in given(*range(5))]) == ["first"] * 5, "the buyer goes on"
    assert labeler.asked == ["p0", "p1", "p2", "p3", "p4"]


def test_labelers_that_wrap_another_are_where_it_is() -> None:
    judge = Judge("toy", base_url="http://127.0.0.1:9/v1", both_orders=False)
    assert judge.terms.runs_remotely
    assert Noisy(judge).terms.runs_remotely
    assert not Noisy(Near()).terms.runs_remotely
