"""A run that another was to replace is back where the other has sampled nothing."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from choosy.resume.failed_starts import MARK, leaving_no_failed_start, overwrite


def begin(folder: Path, name: str, *, labels: int = 0) -> None:
    """Leave what a run has left when its folder is open."""
    (folder / "run_id").write_text(name)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        db.execute("CREATE TABLE labels (key TEXT)")
        db.executemany("INSERT INTO labels VALUES (?)", [[name]] * labels)


def sample(folder: Path) -> None:
    (folder / "rounds").mkdir()
    (folder / "rounds" / "round_000.parquet").touch()


@pytest.fixture
def folder(tmp_path):
    begin(tmp_path, "old", labels=3)
    sample(tmp_path)
    return tmp_path


def replacing(folder: Path, *, sampled: bool = False, labels: int = 0, end: BaseException | None = None) -> None:
    """Replace the run in a folder by one that ends so."""
    with leaving_no_failed_start(folder):
        overwrite(folder)
        begin(folder, "new", labels=labels)
        if sampled:
            sample(folder)
        if end is not None:
            raise end


def interrupted() -> SystemExit:
    """What Lightning raises after Ctrl-C."""
    stop = SystemExit(1)
    stop.__context__ = KeyboardInterrupt()
    return stop


@pytest.mark.parametrize("end", [KeyboardInterrupt(), interrupted(), RuntimeError()])
def test_a_run_whose_replacement_has_sampled_nothing_is_back(end, folder):
    with pytest.raises(RuntimeError if isinstance(end, RuntimeError) else SystemExit) as stopped:
        replacing(folder, end=end)
    said = "is there as before" in str(stopped.value)
    assert said == (not isinstance(end, RuntimeError))
    assert (folder / "run_id").read_text() == "old"
    assert not list(folder.glob("replaced.*"))


@pytest.mark.parametrize("kept", [{"sampled": True}, {"labels": 1}])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError()])
def test_what_the_replacement_has_sampled_or_bought_is_kept(kept, end, folder):
    with pytest.raises(type(end)):
        replacing(folder, **kept, end=end)
    assert (folder / "run_id").read_text() == "new"
    assert (folder / "replaced.1" / "run_id").read_text() == "old"


def test_a_signal_keeps_the_new_run_which_the_command_that_is_printed_continues(folder):
    with pytest.raises(SystemExit, match="143"):
        replacing(folder, end=SystemExit(143))
    assert (folder / "run_id").read_text() == "new"


def test_what_a_killed_replacement_has_left_is_replaced_by_the_next(folder):
    overwrite(folder)
    begin(folder, "killed")
    replacing(folder)
    assert (folder / "run_id").read_text() == "new"
    assert [path.name for path in folder.glob("replaced.*")] == ["replaced.1"]
    with closing(sqlite3.connect(folder / "replaced.1" / "ledger.sqlite")) as db:
        assert db.execute("SELECT DISTINCT key FROM labels").fetchall() == [("old",)]


@pytest.mark.parametrize("name", ["replaced.txt", "replaced.1.bak", "replaced.old"])
def test_a_users_own_file_is_not_taken_for_a_replaced_run(name, folder):
    (folder / name).write_text("mine")
    replacing(folder, sampled=True)
    assert (folder / name).read_text() == "mine"
    assert (folder / "replaced.1").exists()


def test_a_run_that_has_ended_is_no_failed_start(folder):
    (folder / MARK).touch()
    with leaving_no_failed_start(folder):
        pass
    assert not (folder / MARK).exists(), "without its checkpoints, the next start would replace the finished run"


def test_adapters_that_a_killed_run_has_left_for_servers_are_moved_aside_too(folder):
    (folder / "served").mkdir()
    overwrite(folder)
    assert not (folder / "served").exists()
