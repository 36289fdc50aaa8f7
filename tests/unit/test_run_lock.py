"""One process plays a run in a folder at a time, and a second one is told which."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy_labelers import Lengths

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Ledger
from choosy.options import fit_words
from choosy.parallel.ranks import OneRank
from choosy.resume.failed_starts import LOCK, is_first_process, leaving_no_failed_start
from choosy.resume.run_folder import open_folder
from choosy.resume.run_lock import hold, holding, release

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _hold(folder: Path, held: Any) -> None:
    with holding(folder):
        child = FORK.Process(target=time.sleep, args=(5,))  # such as a worker that loads data
        child.start()
        held.put(child.pid)
        time.sleep(60)


@contextmanager
def other_process(folder: Path) -> Iterator[Any]:
    """A process that plays a run in the folder."""
    held = FORK.SimpleQueue()
    process = FORK.Process(target=_hold, args=(folder, held))
    process.start()
    child = held.get()
    yield process
    process.kill()
    process.join()
    os.kill(child, 9)


def test_a_second_process_is_refused_by_the_name_of_the_first_until_that_is_killed(folder: Path) -> None:
    with other_process(folder) as other:
        whose = f"process {other.pid} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d')}"
        with pytest.raises(ValueError, match=rf"{folder}: {re.escape(whose)} .*name=\.\.\."), holding(folder):
            pass
        (folder / LOCK).write_text("")
        with pytest.raises(ValueError, match=rf"plays a run in {folder}\. Wait"), holding(folder):
            pass
        other.kill()
        other.join()
        with holding(folder):
            assert str(os.getpid()) in (folder / LOCK).read_text()
    assert not (folder / LOCK).exists()


def test_a_refused_process_leaves_the_folder_as_it_is(folder: Path) -> None:
    with other_process(folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(ValueError, match="Another process"), holding(folder), leaving_no_failed_start(folder):
            raise AssertionError
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_process_may_hold_a_folder_more_than_once_by_any_path(folder: Path) -> None:
    with holding(folder):
        (link := folder.with_name("link")).symlink_to(folder)
        with holding(link):
            assert not hold(folder)
        process = FORK.Process(target=hold, args=(folder,))
        process.start()
        process.join()
        assert process.exitcode == 1, "it is held after the inner block"
    assert hold(folder)
    release(folder)


def test_a_folder_that_was_not_there_is_not_left_empty(folder: Path) -> None:
    with holding(folder):
        assert folder.exists()
    assert not folder.exists()
    with pytest.raises(ValueError, match="wrong"), holding(folder), leaving_no_failed_start(folder):
        raise ValueError("wrong")
    assert not folder.exists()


def test_a_disk_that_does_not_lock_is_named_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with holding(folder):
        (folder / "file").touch()
    assert f"The disk of {folder} does not lock files (No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),
        ({"SLURM_PROCID": "1", "LOCAL_RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by the first in an interactive session of Slurm
        ({"SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "1"}, False),
    ],
)
def test_only_the_first_process_of_a_run_locks_its_folder(
    env: dict[str, str], first: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with holding(folder):
        assert is_first_process() == first == (folder / LOCK).exists()


def test_a_script_that_builds_its_own_trainer_locks_the_folder_too(folder: Path) -> None:
    labels = LabelBuyer(Lengths(), ledger=str(folder / "ledger.sqlite"))
    with other_process(folder), pytest.raises(ValueError, match="Another process"):
        open_folder(folder, labels, OneRank(), {}, resuming=False)
    assert not (folder / "run_id").exists()
    (folder / "rounds").mkdir()
    (folder / "rounds" / "0000.parquet").touch()
    with pytest.raises(ValueError, match="already holds"):
        open_folder(folder, labels, OneRank(), {}, resuming=False)
    assert not (folder / LOCK).exists(), "it is given free where the run does not begin"
    (folder / "rounds" / "0000.parquet").unlink()
    assert open_folder(folder, labels, OneRank(), {}, resuming=False)
    assert (folder / LOCK).exists()
    release(folder)


def test_two_runs_of_one_moment_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_words.time, "strftime", lambda pattern: "2026-11-29_12-00-00")
    one, two = fit_words.time_name("%Y"), fit_words.time_name("%Y")
    assert re.fullmatch("2026-11-29_12-00-00-[0-9a-f]{6}", one)
    assert one != two


def test_a_lock_that_may_not_be_opened_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_mine(*args: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "flock", not_mine)
    with pytest.raises(ValueError, match=rf"{folder / LOCK} cannot be locked \(Operation not permitted\)\. Delete it"):
        hold(folder)


def test_a_lock_that_cannot_be_deleted_hides_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (ledger := Ledger(str(folder / "ledger.sqlite"))).create()

    def fail() -> None:
        with holding(folder), ledger.turn("a"), ledger.buying(["k"]):
            monkeypatch.setattr(Path, "unlink", denied)
            raise ValueError("what has gone wrong")

    with pytest.raises(ValueError, match="what has gone wrong"):
        fail()
    monkeypatch.undo()
    with holding(folder), ledger.turn("a"), ledger.buying(["k"]) as mine:
        assert mine == {"k"}
