"""A damaged label is named, is never used, and does not take the others with it."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from toy_labelers import FIVE, Longer, given, rewards, rows

from choosy.errors import Stopped
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.exchange.command import labels_command
from choosy.labeling.ledger import Counts, Ledger
from choosy.labeling.ledger_check import check, fault
from choosy.labeling.protocols import Postponed
from choosy.labeling.queue import Queue
from choosy.types import Prompt, Response

Buyer = Callable[..., LabelBuyer]
THREE = [given(f"p{n}", "a", "bb") for n in range(3)]
FORK = multiprocessing.get_context("fork")


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def contents(path: Path) -> tuple[list[dict[str, Any]], Counts]:
    ledger = Ledger(str(path))
    return ledger.rows("labels"), ledger.counts("a")


@pytest.mark.parametrize("column", ["score = 9", "prompt = 'Other?'", "run = 'b'", "cost = 1", "purpose = 'evaluate'"])
def test_a_damaged_label_is_named_and_not_used(buyer: Buyer, path: Path, column: str) -> None:
    buyer().score(THREE)
    assert fault(path) is None
    key = rows(path, "SELECT key FROM labels WHERE prompt_id = 'p1' LIMIT 1")[0][0]
    change(path, f"UPDATE labels SET {column} WHERE key = '{key}'")
    assert fault(path) == f"is damaged (label '{key}' is not as it was written)"
    with pytest.raises(Stopped, match=rf"label '{key}' in {path} is damaged.*labels check .* --save NEW"):
        buyer().score(THREE)
    with pytest.raises(Stopped, match=f"label '{key}'"):
        contents(path)
    assert rewards(buyer().score([THREE[0], THREE[2]])) == [[1.0, 2.0]] * 2, "the others are used"


def test_what_is_whole_is_saved(buyer: Buyer, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buyer().score(THREE)
    labels_command(["check", str(path)])
    assert "6 labels are whole and 0 damaged" in capsys.readouterr().out
    change(path, "UPDATE labels SET raw = 'other' WHERE rowid = 2")
    with pytest.raises(ValueError, match=r"is damaged .*choosy labels check .* --save NEW\.sqlite"):
        labels_command(["check", str(path)])
    assert "5 labels are whole and 1 damaged" in capsys.readouterr().out
    new = path.with_name("new.sqlite")
    labels_command(["check", str(path), "--save", str(new)])
    assert "5 labels saved" in capsys.readouterr().out
    assert [row["prompt_id"] for row in Ledger(str(new)).rows("labels")] == ["p0", "p1", "p1", "p2", "p2"]
    assert (fault(new), Ledger(str(new)).lost(), Ledger(str(new)).counts("a").spent) == (None, 1, 5)
    with pytest.raises(ValueError, match="exists already"):
        labels_command(["check", str(path), "--save", str(new)])


def changed(raw: bytes) -> Iterator[bytes]:
    """The bytes of a file with one bit flipped, and cut, at places drawn at random."""
    draw = random.Random(0)
    for _ in range(300):
        flipped = bytearray(raw)
        flipped[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        yield bytes(flipped)
    for _ in range(30):
        yield raw[: draw.randrange(len(raw))]


def test_no_change_of_the_file_is_taken_for_what_was_written(buyer: Buyer, path: Path, tmp_path: Path) -> None:
    buyer(Longer()).compare([(Prompt(f"p{n}", f"Which of {n}? " * 20), *FIVE[0][1:]) for n in range(60)])
    before, named = contents(path), 0
    keys = {row["key"] for row in before[0]}
    for number, raw in enumerate(changed(path.read_bytes())):
        (file := tmp_path / f"{number}.sqlite").write_bytes(raw)
        if fault(file) is None:
            assert contents(file) == before
            continue
        named += 1
        saved: list[dict[str, Any]] = []
        with suppress(ValueError):  # not one label can be read
            saved = check(file).whole
        assert all(row in before[0] for row in saved)
        assert {row["key"] for row in saved} <= keys
    assert named > 100, "half of the bits belong to no label"


@pytest.mark.parametrize("version", [2, 3])
def test_a_ledger_of_a_format_before_is_given_checksums(buyer: Buyer, path: Path, version: int) -> None:
    buyer().score(THREE)
    buyer(run="b").score(THREE)
    before = contents(path)
    for table in ("wanted", "claims", "reuses", "lost", *(["labels"] if version == 2 else [])):
        change(path, f"ALTER TABLE {table} DROP COLUMN checksum")
    if version == 2:
        change(path, "DROP TABLE lost")
    change(path, f"PRAGMA user_version = {version}")
    assert fault(path) is None
    assert rewards((later := buyer()).score(THREE)) == [[1.0, 2.0]] * 3
    assert (later.labeler.asked, contents(path), fault(path)) == ([], before, None)  # type: ignore[attr-defined]


def wait_for(path: Path) -> None:
    """Let a run wait for six labels that people give another day."""
    buying = LabelBuyer(Queue(str(path.parent), ledger=str(path)), ledger=str(path))
    buying.open("c")
    with pytest.raises(Postponed):
        buying.compare([(Prompt(f"p{n}", f"Which of {n}?"), *FIVE[0][1:]) for n in range(6)])


@pytest.mark.parametrize("column", ["run = 'b'", "judgements = 9", "purpose = 'evaluate'", "prompt = 'Other?'"])
def test_a_damaged_question_that_a_run_waits_for_is_not_asked(path: Path, tmp_path: Path, column: str) -> None:
    wait_for(path)
    key = rows(path, "SELECT key FROM wanted")[0][0]
    change(path, f"UPDATE wanted SET {column} WHERE key = '{key}'")
    (answers := tmp_path / "answers.csv").write_text(f"key,verdict\n{key},first\n")
    for words in (["export", str(path), str(tmp_path / "w.csv"), "--wanted"], ["import", str(path), str(answers)]):
        with pytest.raises(Stopped, match=f"row of wanted '{key}' in {path} is damaged.*check .* --save"):
            labels_command(words)
    assert fault(path) == f"is damaged (row of wanted '{key}' is not as it was written)"
    labels_command(["check", str(path), "--save", str(new := tmp_path / "new.sqlite")])
    assert (len(Ledger(str(new)).rows("wanted")), fault(new)) == (5, None)


def test_nothing_is_bought_where_it_is_not_known_what_others_are_buying(buyer: Buyer, path: Path) -> None:
    buyer()
    with Ledger(str(path)).buying(["k"]):
        change(path, "UPDATE claims SET key = 'j'")
        with pytest.raises(Stopped, match=r"row of claims 'j' in .* is damaged"):
            buyer().score(THREE)


def test_a_label_that_was_reused_is_counted_or_named(buyer: Buyer, path: Path) -> None:
    buyer().score(THREE)
    buyer(run="b").score(THREE)
    change(path, "UPDATE reuses SET run = 'c' WHERE key IN (SELECT key FROM reuses LIMIT 1)")
    assert "row of reuses" in (fault(path) or "")


@pytest.mark.parametrize("table", ["labels", "wanted", "claims", "reuses", "lost"])
def test_a_table_that_lost_its_name_is_not_made_anew(buyer: Buyer, path: Path, table: str) -> None:
    buyer().score(THREE)
    change(path, f"ALTER TABLE {table} RENAME TO other")
    with pytest.raises(ValueError, match=f"{path} is damaged: its table {table} is missing"):
        buyer()


def test_a_ledger_that_is_cut_to_nothing_is_no_new_one(buyer: Buyer, path: Path) -> None:
    buyer().score(THREE)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is empty: put back a copy of it, .* or delete it"):
        buyer()


def test_a_ledger_whose_maker_is_killed_is_made_by_the_next(tmp_path: Path) -> None:
    for number in range(20):
        (process := FORK.Process(target=Ledger(str(tmp_path / f"{number}.sqlite")).create)).start()
        time.sleep(0.001 * number)
        process.kill()
        process.join()
        Ledger(str(tmp_path / f"{number}.sqlite")).create()
        assert fault(tmp_path / f"{number}.sqlite") is None


def test_what_cannot_be_saved_leaves_no_file(buyer: Buyer, path: Path, tmp_path: Path) -> None:
    def save() -> None:
        size = path.stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(
            ValueError, match=r"new.sqlite cannot be written \(.*; name a file in a folder that has room"
        ):
            labels_command(["check", str(path), "--save", str(folder / "new.sqlite")])

    buyer().score([given(f"p{n}", "a" * 2000, "bb" * 2000) for n in range(100)])
    (folder := tmp_path / "out").mkdir()
    (process := FORK.Process(target=save)).start()
    process.join(timeout=60)
    assert (process.exitcode, [*folder.iterdir()]) == (0, [])


def test_a_label_that_is_trained_on_after_it_was_bought_to_evaluate_stays_whole(buyer: Buyer, path: Path) -> None:
    buyer().score(THREE, purpose="evaluate")
    buyer().score(THREE[:1])
    assert fault(path) is None
    assert [row["purpose"] for row in contents(path)[0]] == ["train"] * 2 + ["evaluate"] * 4


class Slow:
    """Scores, and records each question in a file before it answers."""

    name = "slow"

    def __init__(self, file: Path) -> None:
        self.file = file

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[float]:
        for prompt, _ in items:
            with self.file.open("a") as file:
                file.write(f"{prompt.id}\n")
            time.sleep(0.01)
            yield 1.0


def test_a_ledger_is_one_by_whatever_link(path: Path, tmp_path: Path) -> None:
    def buy(ledger: Path, run: str) -> None:
        labels = LabelBuyer(Slow(tmp_path / "paid"), ledger=str(ledger))
        labels.open(run)
        start.wait()
        labels.score([given(f"p{n}", "a") for n in range(20)])

    Ledger(str(path)).create()
    (link := tmp_path / "link.sqlite").symlink_to(path)
    start = FORK.Barrier(2)
    processes = [FORK.Process(target=buy, args=each) for each in ((path, "a"), (link, "b"))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted((tmp_path / "paid").read_text().split()) == sorted(f"p{n}" for n in range(20))


def test_a_ledger_of_two_names_is_refused(path: Path, tmp_path: Path) -> None:
    Ledger(str(path)).create()
    (tmp_path / "other.sqlite").hardlink_to(path)
    with pytest.raises(ValueError, match=r"has 2 names \(hard links\)"):
        Ledger(str(path)).create()


def test_no_file_of_a_user_is_deleted(path: Path) -> None:
    Ledger(str(path)).create()
    names = ["notes.txt", "study.sqlite", "0123", "x" * 32]
    for name in names:
        path.with_name(f"{path.name}-buyer-{name}").touch()
    (dead := path.with_name(f"{path.name}-buyer-{'0' * 32}")).touch()
    Ledger(str(path)).create()
    assert all(path.with_name(f"{path.name}-buyer-{name}").exists() for name in names)
    assert not dead.exists()


def test_those_who_may_write_to_a_ledger_may_take_its_locks(path: Path) -> None:
    ledger = Ledger(str(path))
    ledger.create()
    path.chmod(0o660)
    with ledger.turn("a"), ledger.buying(["k"]):
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("*-buyer-*")}
    assert modes == {0o660}
    shutil.rmtree(path.parent)
