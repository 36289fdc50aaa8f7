"""Leaves behind what a run has shown: a summary, curves, a page, and the last words on the terminal."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from choosy.reporting import summary as report


class Report(Callback):
    """Writes summary.json, curves.png and report.html when the run ends; name it after what writes the model.

    A run that ends before its last round gets no summary.json, so that no tool takes it for finished.

    Args:
        run_dir: The folder of the run, where `rounds/` is.
        console: Whether to print the answers before and after, the rounds, and the paths.
    """

    def __init__(self, run_dir: str, *, console: bool = True) -> None:
        self.run_dir = Path(run_dir)
        self.console = console

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not any(self.run_dir.glob("rounds/*.parquet")):
            rank_zero_warn(f"No report: {self.run_dir} holds no rounds/*.parquet; is callbacks.report.run_dir right?")
            return
        run = report.read_run(self.run_dir)
        if run.finished:
            report.write_summary(run, self.run_dir / "summary.json")
        report.plot(run, self.run_dir / "curves.png")
        report.html(run, self.run_dir / "report.html")
        if self.console:
            report.console(run)
