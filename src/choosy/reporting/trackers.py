"""Logs a run to W&B, MLflow or Trackio, and continues there what a resumed run has begun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from choosy.errors import in_a_line
from choosy.redaction import scrub
from choosy.reporting.tracked import Row, as_trl, in_sections
from choosy.sealed import read_line, write_line

TABLE = "completions"  # as TRL calls it


@contextmanager
def in_a_sentence(tracker: str, advice: str) -> Iterator[None]:
    """Refuse a run whose tracker cannot begin."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{tracker} begins no run ({in_a_line(error)}); {advice}, or leave it out of logger."
        ) from error


def shown_name(run_dir: str, name: str | None) -> str:
    """Return what a tracker calls a run: its name, and in a sweep also its folder's.

    Example:
        >>> shown_name("runs/plum", "plum"), shown_name("multirun/2026-01-31/3", "plum")
        ('plum', 'plum 3')
    """
    folder = Path(run_dir).name
    return folder if name in (None, folder) else f"{name} {folder}"


class WandbLogger(loggers.WandbLogger):
    """Logs to the W&B run that was begun in the run's folder, and begins one there where there is none.

    Args:
        run_dir: The run's folder.
        name: The run's name.
        table_rows: So many answers of each round, and of the held-out prompts, are in its table at most; 0 for none.
        settings: Of Lightning's WandbLogger.
    """

    def __init__(self, run_dir: str, *, name: str | None = None, table_rows: int = 200, **settings: Any) -> None:
        self.table_rows = table_rows
        names = [path.name for path in Path(run_dir).glob("wandb/*")]
        begun = [found[1] for each in names if (found := re.fullmatch(r"(?:offline-)?run-\d+_\d+-(.+)", each))]
        settings |= {"id": begun[0]} if begun else {"name": shown_name(run_dir, name)}  # a begun one keeps its name
        super().__init__(save_dir=run_dir, **settings)  # whose options `choosy fit` reads from this line

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run."""
        if self._experiment is None:
            import wandb

            advice = "type wandb login, or export WANDB_MODE=offline to send the run later by wandb sync"
            with in_a_sentence("W&B", advice):
                wandb.finish()  # of an earlier run in this process, which Lightning would continue
                return super().experiment
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(in_sections(metrics, step or 0), step)

    @rank_zero_only
    def log_answers(self, rows: Sequence[Row], *, round: int, step: int) -> None:
        """Log the table of a round's answers."""
        self.log_table(TABLE, columns=["round", *rows[0]], data=[[round, *row.values()] for row in rows], step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._wandb_init["id"] = self._id = self._experiment.id
            self._experiment.finish(exit_code=int(status == "failed"))
            self._experiment = None


class MLFlowLogger(loggers.MLFlowLogger):
    """Logs to the MLflow run whose id is in the run's folder, and begins one and writes its id where there is none.

    Args:
        run_dir: The run's folder.
        run_name: The run's name.
        tracking_uri: Where MLflow keeps runs; None takes MLFLOW_TRACKING_URI, and without it mlflow.db in the
            current folder.
        table_rows: So many answers of each round, and of the held-out prompts, are in its table at most; 0 for none.
        settings: Of Lightning's MLFlowLogger.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        table_rows: int = 200,
        **settings: Any,
    ) -> None:
        self.table_rows = table_rows
        self.file = Path(run_dir) / "mlflow_run_id"
        self.begun = read_line(self.file, "[0-9a-f]{32}") if self.file.exists() else None
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        if getattr(rank_zero_only, "rank", 0):  # which logs nothing; Lightning would open the database all the same
            uri = "http://never.asked.invalid"
        with self._begins():
            super().__init__(tracking_uri=uri, run_name=shown_name(run_dir, run_name), run_id=self.begun, **settings)

    def _begins(self) -> Any:
        advice = (
            "pip install 'choosy-tuning[mlflow]' brings what it needs, logger.mlflow.tracking_uri=... says where it is"
        )
        return in_a_sentence("MLflow", advice)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log settings; one that changes when the run resumes becomes a tag, since MLflow changes no parameter."""
        if self.begun is None:
            with self._begins():
                super().log_hyperparams(params)
            write_line(self.file, str(self.run_id))
            return
        known = self._known()
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})
        for name, value in params.items():
            if known.get(name, str(value)[:250]) != str(value)[:250]:  # which is what Lightning has logged of it
                self.experiment.set_tag(self.begun, f"resumed with {name}", str(value))
        self.experiment.update_run(self.begun, status="RUNNING")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(as_trl(metrics), step)

    @rank_zero_only
    def log_answers(self, rows: Sequence[Row], *, round: int, step: int) -> None:
        """Log the table of a round's answers."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        self.experiment.log_table(self.run_id, columns, f"{TABLE}/round_{round:03d}.json")

    def _known(self) -> dict[str, str]:
        """The parameters of the MLflow run that was begun."""
        from mlflow.exceptions import MlflowException  # it takes a second to import

        try:
            found: dict[str, str] = self.experiment.get_run(self.begun).data.params
        except MlflowException as error:
            raise ValueError(
                f"{self.file} names an MLflow run that {scrub(self._tracking_uri)} does not have ({in_a_line(error)}); "
                "type logger.mlflow.tracking_uri=... of where it is, or delete the file to begin another MLflow run."
            ) from error
        return found


class TrackioLogger(Logger):
    """Logs to the Trackio run that the run's folder names, and begins one and writes its name where there is none.

    Args:
        run_dir: The run's folder.
        name: The run's name.
        project: The project of Trackio.
        group: The run's group in the project.
        space_id: A Space of the Hugging Face hub that shows the run; None keeps it on this machine.
        private: Whether nobody else sees that Space; None leaves it to the hub.
        table_rows: So many answers of each round, and of the held-out prompts, are in its table at most; 0 for none.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        name: str | None = None,
        project: str = "choosy",
        group: str | None = None,
        space_id: str | None = None,
        private: bool | None = None,
        table_rows: int = 200,
    ) -> None:
        super().__init__()
        self.table_rows = table_rows
        self._file = Path(run_dir) / "trackio_run"
        self._begun = read_line(self._file, "[0-9a-f]{32} .+") if self._file.exists() else ""
        self._settings: dict[str, Any] = {"group": group, "space_id": space_id, "private": private}
        self._project, self._name = project, self._begun[33:] or shown_name(run_dir, name)
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Trackio."""
        if self._run is None:
            import trackio  # it takes a second to import

            where, resume = "without logger.trackio.space_id it needs no network", "never"
            if self._begun:
                where, resume = f"put back its data (TRACKIO_DIR), or delete {self._file} to begin another", "must"
            with in_a_sentence("Trackio", where):
                run = trackio.init(self._project, self._name, resume=resume, embed=False, **self._settings)
            its = f"{run.id} {self._name}"
            if self._begun and self._begun != its:
                trackio.finish()
                raise ValueError(
                    f"{self._file} names a run of Trackio, and the newest one of its name, {self._name}, is another; "
                    f"delete that one, or the file to begin another."
                )
            if not self._begun:
                write_line(self._file, its)
            self._run, self._begun = run, its
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.experiment.config.update({name: value for name, value in params.items() if not name.startswith("_")})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(in_sections(metrics, step or 0), step=step)

    @rank_zero_only
    def log_answers(self, rows: Sequence[Row], *, round: int, step: int) -> None:
        """Log the table of a round's answers."""
        import trackio

        table = trackio.Table(columns=["round", *rows[0]], data=[[round, *row.values()] for row in rows])
        self.experiment.log({TABLE: table}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            import trackio

            trackio.finish()
            self._run = None
