"""Gives the loggers their numbers at once."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from choosy.files import replacing
from choosy.labeling.statistics import shares


def log_at_once(module: LightningModule, metrics: Mapping[str, float | torch.Tensor], *, step: int) -> None:
    """Give the loggers a row now, and Lightning's callbacks its values.

    Lightning would log the row after it has written the checkpoint of the same moment. A run that is killed between
    the two would resume after a row that was never logged.
    """
    values = {name: float(value) for name, value in metrics.items()}
    module.log_dict(values, logger=False, rank_zero_only=True)
    for logger in module.trainer.loggers:
        logger.log_metrics({**values, "epoch": module.current_epoch}, step=step)


def cost_metrics(about: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run has cost and what the labels of its last round were like, under the loggers' names."""
    labels = {**about["labels"], "ahead": about["labeled_ahead"], "money": about["money"]["spent"]}
    labels |= shares(about["judged"]["round"])
    cut_share = about["responses_cut_share"]
    return {
        **{f"labels/{name}": float(value) for name, value in labels.items() if value is not None},
        **{name: about[name] for name in ("tokens_generated", "prompts_sampled", "pairs_trained")},
        **{f"responses/{name}": about[f"responses_{name}"] for name in ("cut", "empty")},
        **({} if cut_share is None else {"responses/cut_share": cut_share}),
        "seconds/sync": about["sync_milliseconds"] / 1000,
        **{f"seconds/{phase}": seconds for phase, seconds in about["seconds"].items()},
    }


class MetricsFile(Logger):
    """Writes metrics.csv in the run's folder: a row for every step and every round's end, appended at once.

    A resumed run continues the file; rows of steps that it trains again replace the old ones.
    """

    name = version = ""

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self._file = Path(run_dir) / "metrics.csv"
        self._columns: list[str] = []  # none before the first row of this process

    @property
    def save_dir(self) -> str:
        return str(self._file.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        row = {name: str(value) for name, value in metrics.items()} | {"step": str(step)}
        if row.keys() <= set(self._columns):
            with self._file.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
            return
        rows = [old for old in self._read() if self._columns or int(old["step"]) < step]
        self._columns = sorted(set(row).union(*rows))
        with replacing(self._file) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows([*rows, row])

    def _read(self) -> list[dict[str, str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            whole = [line for line in file if line.endswith("\n")]  # the last one may have been cut short
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(whole)]
