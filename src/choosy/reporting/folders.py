"""Finds the folders of runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

MOST_FOLDERS = 10_000  # in which runs are looked for


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder, which may be that of a run itself; it looks into no run.

    Raises:
        ValueError: There are too many folders in it to be those of a sweep.
    """
    found: list[Path] = []
    for number, (place, below, _) in enumerate(os.walk(folder)):
        if number > MOST_FOLDERS:
            raise ValueError(
                f"{folder} has more than {MOST_FOLDERS:,} folders in it: type that of a sweep, or of a run."
            )
        if "rounds" in below:
            found.append(Path(place))
            below.clear()
    return sorted(run for run in found if any(run.glob("rounds/*.parquet")))


def refuse_sweep(folder: Path) -> None:
    """Refuse the folder of a sweep where that of one of its runs is wanted, and say what to type."""
    if runs := run_folders(folder):
        raise ValueError(
            f"{folder} is a sweep of {len(runs)} run{'s' * (len(runs) > 1)}: type choosy compare "
            f"{shlex.quote(str(folder))}, or give the folder of one, such as {shlex.quote(str(runs[0]))}."
        )
