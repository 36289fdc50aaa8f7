"""What becomes of the folder of a run that has failed early or is replaced."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from choosy.labeling.protocols import Postponed
from choosy.terminal import exit_with, logger

LOCK = "run.lock"  # a file, while a run is played
MARK = "failed_start"  # a file: the run failed before it had trained a round
OURS = (
    *(
        MARK,
        "rounds",
        "served",
        "checkpoints",
        "tensorboard",
        "wandb",
        "mlflow_run_id",
        "trackio_run",
        "adapter",
        "model",
        "merged",
        "gguf",
        "metrics.csv",
        "metrics.csv.sha256",
        "metrics.damaged.csv",
        "config.yaml",
        ".hydra",
    ),
    *("summary.json", "report.html", "curves.png", "ledger.copy.sqlite"),
)
REPLACED = (*OURS, "run_id", "data.json")  # what a new run must not find
PAID = ("ledger.sqlite", "clicks.sqlite")  # what people or money have answered

log = logger(__name__)


@contextmanager
def leaving_no_failed_start(folder: Path) -> Iterator[None]:
    """Remove a run's folder if the run fails before it has sampled anything, and mark it if before it has trained.

    A folder that held anything before is not removed, and one that held another run's rounds is not marked. A run that
    was to be replaced is put back if the new one fails, or is stopped by Ctrl-C, before it has sampled anything, and is
    removed, but for its labels, at the new one's end.
    """
    new, is_back = not any(_inside(folder)), False
    others = any(folder.glob("rounds/*.parquet")) and not (folder / MARK).exists()
    try:
        yield
    except Postponed:
        raise
    except Exception:
        if is_first_process() and not any(folder.glob("checkpoints/*")):
            if not _is_empty(folder):
                if not others:
                    (folder / MARK).touch()
            elif (replaced := _replaced(folder)) is not None:
                _put_back(folder, replaced)
            elif new:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        by_hand = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        replaced = _replaced(folder)
        if not (by_hand and is_first_process() and replaced is not None and _is_empty(folder)):
            raise
        _put_back(folder, replaced)
        is_back = True
    if is_back:
        exit_with(f"\nStopped before anything was sampled; the run that was in {folder} is there as before.")
    if is_first_process():
        (folder / MARK).unlink(missing_ok=True)
        for aside in _aside(folder):
            _remove(aside, REPLACED)
            if not _inside(aside):
                aside.rmdir()


def is_first_process() -> bool:
    """Whether this process is the first of those that play a run together, as far as the environment says."""
    launched = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "NODE_RANK", "LOCAL_RANK")  # one inside another
    names = ("RANK",) if os.environ.get("RANK") else launched
    return all(int(os.environ.get(name) or 0) == 0 for name in names)


def replace_failed_start(folder: Path) -> None:
    """Remove what a run has left that failed before it had trained a round; its labels stay."""
    if not (folder / MARK).exists() or any(folder.glob("checkpoints/*")):
        return
    log.warning("%s held a run that failed before its first round was trained; it is replaced.", folder)
    _remove(folder, OURS)


def overwrite(folder: Path) -> None:
    """Move what an earlier run has left aside; `leaving_no_failed_start` decides what becomes of it."""
    if (before := _replaced(folder)) is not None and _is_empty(folder):
        _put_back(folder, before)  # the run that replaced it was killed before it had sampled anything
    paid = [path for name in PAID for path in folder.glob(f"{name}*") if "-buyer-" not in path.name]
    if not (left := [*(path for name in REPLACED if (path := folder / name).exists()), *paid]):
        return
    aside = folder / f"replaced.{1 + max(map(_number, _aside(folder)), default=0)}"
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    log.warning("The run that was in %s is in %s until the new one is finished; its labels stay there.", folder, aside)


def _put_back(folder: Path, aside: Path) -> None:
    """Put back a run that was moved aside, in the place of one that has sampled nothing and bought no label."""
    _remove(folder, (*REPLACED, *(path.name for name in PAID for path in folder.glob(f"{name}*"))))
    for path in _inside(aside):
        path.rename(folder / path.name)
    aside.rmdir()


def _is_empty(folder: Path) -> bool:
    """Whether the run in a folder has sampled nothing and bought no label."""
    if any(folder.glob("rounds/*.parquet")) or any(folder.glob("clicks.sqlite*")):
        return False
    if not (ledger := folder / "ledger.sqlite").exists():
        return True
    try:
        with closing(sqlite3.connect(ledger)) as db:
            return not any(db.execute("SELECT 1 FROM labels LIMIT 1"))
    except sqlite3.Error:  # a damaged ledger may hold labels
        return False


def _replaced(folder: Path) -> Path | None:
    """The folder of the newest replaced run that holds more than its labels; None if there is none."""
    whole = [aside for aside in _aside(folder) if any((aside / name).exists() for name in REPLACED)]
    return whole[-1] if whole else None


def _aside(folder: Path) -> list[Path]:
    """The folders of replaced runs, the oldest first."""
    return sorted((path for path in folder.glob("replaced.*") if path.suffix[1:].isdecimal()), key=_number)


def _number(aside: Path) -> int:
    return int(aside.suffix[1:])


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != LOCK] if folder.is_dir() else []


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (path := folder / name).is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
