"""Writes the trained policy in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Export(Callback):
    """Writes `adapter/` (LoRA) or `model/` (all weights) into the run's folder when the run ends."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.policy.save(str(self.run_dir / ("adapter" if pl_module.policy.lora else "model")))
