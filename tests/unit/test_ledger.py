"""The ledger's file: several processes write to it, and a file that cannot be used is refused."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from toy_labelers import FIVE, Lengths, Longer, given, rewards, rows

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger_check import fault
from choosy.labeling.protocols import Answer
from choosy.types import Prompt, Response

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
        assert buyer.spent + buyer.counts.reused == 24, "each label was paid by one of the two runs"
    assert buyers[0].spent + buyers[1].spent == 24


# --- files of another format ---


def test_a_file_of_another_format_is_refused(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    buyer()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ValueError, match=r"has format 9, and this version of Choosy reads format 4; .* or type"):
        buyer()


def test_a_database_of_another_program_is_refused(buyer: Callable[..., LabelBuyer], path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(ValueError, match=r"has format 0, and this version of Choosy reads format 4"):
        buyer()
    assert rows(path, "SELECT name FROM sqlite_master") == [("recipes",)]


# --- secrets ---


def test_secrets_reach_neither_the_ledger_nor_a_message(
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


# --- what is stored is what is checked ---


class Odd:
    """Gives scores and counts of kinds that SQLite stores as others."""

    name = "odd"

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[Answer]:
        return [Answer(place, -0.0, judgements=numpy.int64(3)) for place in range(len(items))]


def test_a_score_below_zero_by_nothing_and_a_count_of_numpy_are_kept(path: Path) -> None:
    buyer = LabelBuyer(Odd(), ledger=str(path))
    buyer.open("a")
    assert rewards(buyer.score([given("p", "x")])) == [[0.0]]
    assert buyer.counts.spent == 3
    assert fault(path) is None


def test_a_new_ledger_takes_nothing_from_the_journal_of_a_deleted_one(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    dying = context.Process(target=_buy_and_die, args=(str(path),))
    dying.start()
    dying.join(timeout=60)
    assert path.with_name(f"{path.name}-wal").exists()
    path.unlink()
    buyer = LabelBuyer(Lengths(), ledger=str(path))
    buyer.open("new")
    assert buyer.ledger.rows("labels") == []
    assert fault(path) is None


def _buy_and_die(path: str) -> None:
    buyer = LabelBuyer(Lengths(), ledger=path)
    buyer.open("old")
    buyer.score([given(f"p{n}", "a") for n in range(300)])
    with buyer.ledger._transaction() as db:
        db.execute("SELECT count(*) FROM labels").fetchone()
        os._exit(9)
