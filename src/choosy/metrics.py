"""metrics.csv, which survives an interruption."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, but a resumed run goes on with the metrics.csv it finds instead of deleting it.

    Rows of steps that are played again, after the last checkpoint, give way to the new ones.

    Args:
        run_dir: Folder of the run.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__(save_dir=run_dir, name="", version="")
        self._file = Path(run_dir) / "metrics.csv"
        self._found = self._read()  # now: the trainer's first look at the logger deletes the file

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self._found:
            self.experiment.metrics.extend(row for row in self._found if step is None or int(row["step"]) < step)
            self._found = []
        super().log_metrics(metrics, step)

    def _read(self) -> list[dict[str, Any]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            return [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
