"""What becomes of the folder of a run that has failed early or is replaced."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from choosy.labeling.protocols import Postponed

MARK = "failed_start"  # a file: the run failed before it had trained a round
OURS = (
    *(MARK, "rounds", "checkpoints", "tensorboard", "adapter", "model", "metrics.csv", "config.yaml", ".hydra"),
    *("summary.json", "report.html", "curves.png", "ledger.copy.sqlite"),
)
PAID = ("ledger.sqlite", "clicks.sqlite")  # what people or money have answered

log = logging.getLogger(__name__)


@contextmanager
def leaving_no_failed_start(folder: Path) -> Iterator[None]:
    """Remove a run's folder if the run fails before it has sampled anything, and mark it if before it has trained.

    A folder that held anything before is not removed, and one that held another run's rounds is not marked.
    """
    new = not any(_inside(folder))
    others = any(folder.glob("rounds/*.parquet")) and not (folder / MARK).exists()
    try:
        yield
    except Postponed:
        raise
    except Exception:
        if is_first_process() and not any(folder.glob("checkpoints/*")):
            if any(folder.glob("rounds/*.parquet")):
                if not others:
                    (folder / MARK).touch()
            elif new:
                shutil.rmtree(folder, ignore_errors=True)
        raise


def is_first_process() -> bool:
    """Whether this process is the first of those that play a run together, as far as the environment says."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((int(rank) for rank in ranks if rank), 0) == 0


def replace_failed_start(folder: Path) -> None:
    """Remove what a run has left that failed before it had trained a round; its labels stay."""
    if not (folder / MARK).exists() or any(folder.glob("checkpoints/*")):
        return
    log.warning("%s held a run that failed before its first round was trained; it is replaced.", folder)
    _remove(folder)


def overwrite(folder: Path) -> None:
    """Remove what an earlier run has left; its ledger, and the clicks of people, are moved aside."""
    kept = [path for name in PAID for path in folder.glob(f"{name}*") if "-buyer-" not in path.name]
    if kept:
        number = 1 + max((int(old.suffix[1:]) for old in folder.glob("replaced.*")), default=0)
        aside = folder / f"replaced.{number}"
        aside.mkdir()
        for path in kept:
            path.rename(aside / path.name)
        log.warning("The labels of the run that was in %s are kept in %s.", folder, aside)
    _remove(folder)
    (folder / "run_id").unlink(missing_ok=True)


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(folder: Path) -> None:
    for name in OURS:
        if (path := folder / name).is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
