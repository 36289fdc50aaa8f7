"""Buyers in several processes share a ledger, also when one of them is killed or the disk is full."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Ledger, Question
from choosy.labeling.locks import PurchaseLock, is_alive
from choosy.labeling.protocols import Answer, Postponed, Terms
from choosy.types import Prompt, Response, Verdict

FORK = multiprocessing.get_context("fork")
Item = tuple[Prompt, Response, Response]


def pair(n: int) -> Item:
    return Prompt(f"p{n}", f"Which of {n}?"), Response(f"a{n}"), Response(f"b{n}")


class Recorder:
    """Compares, and records each question in a file before it answers: what is recorded has been paid."""

    name = "recorder"
    terms = Terms(price=0.5, at_once=4, fingerprint="1")  # at any speed, and wherever it records

    def __init__(self, file: Path, seconds: float = 0.0) -> None:
        self.file = file
        self.seconds = seconds

    def note(self, item: Item) -> Verdict:
        with self.file.open("a") as file:
            file.write(f"{item[0].id}\n")
        time.sleep(self.seconds)
        return "first" if item[1].text < item[2].text else "second"

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        return [self.note(item) for item in items]


class Yielding(Recorder):
    """The same, and yields one answer after the other."""

    terms = Terms(price=0.5, fingerprint="1")

    def compare(self, items: Sequence[Item]) -> Iterator[Answer]:  # type: ignore[override]
        for at in reversed(range(len(items))):
            yield Answer(at, self.note(items[at]), raw="x" * 2000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary.txt"


def opened(path: Path, labeler: Any, run: str = "a", **budgets: Any) -> LabelBuyer:
    buyer = LabelBuyer(labeler, ledger=str(path), **budgets)
    buyer.open(run)
    return buyer


def paid(diary: Path) -> list[str]:
    return diary.read_text().split() if diary.exists() else []


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def left_behind(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.glob("ledger.sqlite-buyer-*"))


# --- several at once ---


def _play(path: Path, labeler: Recorder, run: int, start: Any, budgets: dict[str, float]) -> None:
    buyer = opened(path, labeler, str(run), **budgets)
    numbers = list(range(60))
    Random(run).shuffle(numbers)
    start.wait()
    for at in range(0, 60, 20):
        asked = [pair(n)[::1] for n in numbers[at : at + 20]]
        verdicts = buyer.compare(asked)
        assert budgets or verdicts == ["first"] * 20
    assert buyer.spent <= budgets.get("budget", 60)
    assert buyer.counts.money <= budgets.get("budget_money", 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Recorder, Yielding])
@pytest.mark.parametrize("budgets", [{}, {"budget": 5}, {"budget_money": 2.5}], ids=["free", "labels", "money"])
def test_eight_processes_buy_each_pair_once(
    path: Path, diary: Path, kind: type[Recorder], budgets: dict[str, float]
) -> None:
    start = FORK.Barrier(8)
    processes = [FORK.Process(target=_play, args=(path, kind(diary, 0.002), run, start, budgets)) for run in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert max(Counter(paid(diary)).values()) == 1, "a pair was paid for twice"
    kept = rows(path, "SELECT prompt_id FROM labels")
    assert sorted(paid(diary)) == sorted(prompt for (prompt,) in kept), "a label was lost"
    assert len(kept) == (40 if budgets else 60)
    buyers = [opened(path, kind(diary), str(run)) for run in range(8)]
    assert sum(buyer.spent for buyer in buyers) == len(kept)
    assert sum(buyer.counts.money for buyer in buyers) == len(kept) * 0.5
    if not budgets:
        assert all(buyer.spent + buyer.counts.reused == 60 for buyer in buyers)
    assert rows(path, "SELECT * FROM claims") == []
    assert left_behind(path) == []


def test_a_buyer_waits_for_a_label_that_another_is_buying(path: Path, diary: Path) -> None:
    process = FORK.Process(target=lambda: opened(path, Recorder(diary, 0.3), "slow").compare([pair(1), pair(2)]))
    process.start()
    while not paid(diary):
        time.sleep(0.01)
    buyer = opened(path, Recorder(diary), "quick", budget=2)
    assert buyer.compare([pair(1), pair(2), pair(3)]) == ["first"] * 3
    process.join()
    assert sorted(paid(diary)) == ["p1", "p2", "p3"]
    assert (buyer.spent, buyer.counts.reused) == (1, 2), "the label that came free left room in the budget"


@pytest.mark.parametrize("budgets", [{"budget": 20}, {"budget_money": 10.0}], ids=["labels", "money"])
def test_two_buyers_of_one_run_keep_its_budget(path: Path, diary: Path, budgets: dict[str, float]) -> None:
    def buy(half: int) -> None:
        buyer = opened(path, Yielding(diary, 0.01), "a", **budgets)
        start.wait()
        buyer.compare([pair(n) for n in range(half, 60, 2)])

    start = FORK.Barrier(2)
    processes = [FORK.Process(target=buy, args=(half,)) for half in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(paid(diary)) == len(rows(path, "SELECT key FROM labels")) == 20
    assert left_behind(path) == []


# --- kill -9 ---


@pytest.mark.parametrize("kind", [Recorder, Yielding])
def test_a_killed_buyer_loses_no_label_and_blocks_no_other(path: Path, diary: Path, kind: type[Recorder]) -> None:
    everything = [pair(n) for n in range(30)]
    process = FORK.Process(target=lambda: opened(path, kind(diary, 0.02), "a").compare(everything))
    process.start()
    while len(paid(diary)) < 14:
        time.sleep(0.005)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {prompt for (prompt,) in rows(path, "SELECT prompt_id FROM labels")}
    in_flight = set(paid(diary)) - before
    assert len(before) >= 12
    assert len(in_flight) <= (4 if kind is Recorder else 1), "at most what was asked at once is not in the ledger"
    assert len(left_behind(path)) == 2, "the buyer's and the run's"
    buyer = opened(path, kind(diary), "a")
    assert left_behind(path) == [], "opening the ledger deletes stale lock files"
    assert buyer.compare(everything) == ["first"] * 30
    assert {prompt for prompt, times in Counter(paid(diary)).items() if times > 1} == in_flight
    assert buyer.spent == 30
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_waiting_buyer_takes_over_the_claims_of_a_killed_one(path: Path, diary: Path) -> None:
    process = FORK.Process(target=lambda: opened(path, Recorder(diary, 60.0), "slow").compare([pair(1)]))
    process.start()
    while not paid(diary):
        time.sleep(0.01)
    waiting = FORK.Process(target=lambda: opened(path, Recorder(diary), "heir").compare([pair(1)]))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    process.kill()
    waiting.join(timeout=20)
    assert waiting.exitcode == 0
    assert paid(diary) == ["p1", "p1"]
    assert rows(path, "SELECT run FROM labels") == [("heir",)]


def test_a_child_process_does_not_hold_its_parent_s_lock(path: Path) -> None:
    Ledger(str(path)).create()
    name = FORK.SimpleQueue()

    def parent() -> None:
        lock = PurchaseLock(str(path))
        with lock.held():
            child = FORK.Process(target=time.sleep, args=(5,))
            child.start()
            name.put((lock.name, child.pid))
            time.sleep(60)

    process = FORK.Process(target=parent)
    process.start()
    buyer, child = name.get()
    assert is_alive(str(path), buyer)
    process.kill()
    process.join()
    assert not is_alive(str(path), buyer)
    os.kill(child, signal.SIGKILL)


def test_claims_are_released_when_the_labeler_fails(path: Path, diary: Path) -> None:
    class Broken(Recorder):
        def compare(self, items: Sequence[Item]) -> list[Verdict]:
            raise RuntimeError("no")

    with pytest.raises(ValueError, match="recorder gave no label"):
        opened(path, Broken(diary)).compare([pair(1)])
    assert rows(path, "SELECT * FROM claims") == []
    assert left_behind(path) == []


def test_postponed_labels_are_wanted_until_they_are_bought(path: Path, diary: Path) -> None:
    class Tomorrow(Recorder):
        def compare(self, items: Sequence[Item]) -> list[Verdict]:
            raise Postponed("come back")

    for _ in range(2):
        with pytest.raises(Postponed):
            opened(path, Tomorrow(diary), budget=70).compare([pair(n) for n in range(100)])
    wanted = Ledger(str(path)).rows("wanted")
    assert [row["prompt_id"] for row in wanted] == [f"p{n}" for n in range(70)], "no more than the budget pays"
    assert wanted[0]["key"] == Question("recorder", "", pair(0)[0], pair(0)[1:], fingerprint="1").key
    opened(path, Recorder(diary)).compare([pair(n) for n in range(69)])
    assert [row["prompt_id"] for row in Ledger(str(path)).rows("wanted")] == ["p69"]


# --- a full disk ---


def _fill(path: Path, diary: Path, limit: int, answer: Any) -> None:
    buyer = opened(path, Yielding(diary))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        buyer.compare([pair(n) for n in range(2000)])
    except ValueError as error:
        answer.send(str(error))


def fill(path: Path, diary: Path, limit: int = 0) -> str:
    """The error of a process that buys labels until its ledger's disk is full, or the file as large as is allowed."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_fill, args=(path, diary, limit, theirs))
    process.start()
    theirs.close()
    error: str = ours.recv()
    process.join()
    assert process.exitcode == 0
    return error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_no_label(small_disk: Path, diary: Path) -> None:
    path = small_disk / "ledger.sqlite"
    words = fill(path, diary)
    assert "cannot be used any more (database or disk is full). What is written in it is kept; see to it" in words
    assert "could not be kept" not in words
    kept = [prompt for (prompt,) in rows(path, "SELECT prompt_id FROM labels ORDER BY time")]
    assert len(kept) > 100
    assert kept == paid(diary), "each label that was paid is there"
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    shutil.copy(path, diary.parent)  # onto a disk that has room
    buyer = opened(diary.parent / path.name, Yielding(diary))
    assert buyer.spent == len(kept)
    buyer.compare([pair(n) for n in range(2000 - len(kept) - 5, 2000)])
    assert max(Counter(paid(diary)).values()) == 1


@pytest.mark.slow
def test_a_file_at_its_size_limit_keeps_its_labels(path: Path, diary: Path) -> None:
    words = fill(path, diary, limit=3 << 19)
    assert "cannot be used any more" in words
    kept = [prompt for (prompt,) in rows(path, "SELECT prompt_id FROM labels ORDER BY time")]
    warned = "The last 1 labels that were bought could not be kept" in words
    assert kept == (paid(diary)[:-1] if warned else paid(diary)), "nothing is half-written, and what is lost is warned"
    assert len(kept) > 10
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_disk_that_is_full_at_the_start_is_found_before_a_purchase(path: Path, diary: Path) -> None:
    words = fill(path, diary, limit=1 << 19)
    assert "cannot be used any more" in words
    assert paid(diary) == []
