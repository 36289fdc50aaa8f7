"""Continues what a resumed run has begun to log elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers


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
