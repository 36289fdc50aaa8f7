"""Continues what a resumed run has begun to log elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from choosy.sealed import read_line, write_line


class WandbLogger(loggers.WandbLogger):
    """Logs to the W&B run that was begun in the run's folder, and begins one there where there is none.

    Args:
        run_dir: The run's folder.
        settings: Of Lightning's WandbLogger.
    """

    def __init__(self, run_dir: str, **settings: Any) -> None:
        names = [path.name for path in Path(run_dir).glob("wandb/*")]
        begun = [found[1] for name in names if (found := re.fullmatch(r"(?:offline-)?run-\d+_\d+-(.+)", name))]
        if begun:
            settings |= {"id": begun[0], "name": None}  # whose name it keeps
        super().__init__(save_dir=run_dir, **settings)


class MLFlowLogger(loggers.MLFlowLogger):
    """Logs to the MLflow run whose id is in the run's folder, and begins one and writes its id where there is none.

    Args:
        run_dir: The run's folder.
        settings: Of Lightning's MLFlowLogger.
    """

    def __init__(self, run_dir: str, **settings: Any) -> None:
        self.file = Path(run_dir) / "mlflow_run_id"
        self.begun = read_line(self.file, "[0-9a-f]{32}") if self.file.exists() else None
        super().__init__(**settings, run_id=self.begun)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log settings; one that changes when the run resumes becomes a tag, since MLflow changes no parameter."""
        if self.begun is None:
            super().log_hyperparams(params)
            write_line(self.file, str(self.run_id))
            return
        known = self._known()
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})
        for name, value in params.items():
            if known.get(name, str(value)[:250]) != str(value)[:250]:  # which is what Lightning has logged of it
                self.experiment.set_tag(self.begun, f"resumed with {name}", str(value))
        self.experiment.update_run(self.begun, status="RUNNING")

    def _known(self) -> dict[str, str]:
        """The parameters of the MLflow run that was begun."""
        from mlflow.exceptions import MlflowException  # it takes a second to import

        try:
            found: dict[str, str] = self.experiment.get_run(self.begun).data.params
        except MlflowException as error:
            raise ValueError(
                f"{self.file} names an MLflow run that {self._tracking_uri} does not have ({error}); type "
                "logger.mlflow.tracking_uri=... of where it is, or delete the file to begin another MLflow run."
            ) from error
        return found
