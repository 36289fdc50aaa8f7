"""Writes checkpoints completely or not at all."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from choosy.files import replacing
from choosy.resume.checkpoint_files import seal_checkpoint


class WholeFiles(TorchCheckpointIO):
    """Writes each checkpoint completely or not at all, where Lightning's copy from another disk can be cut short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are for remote storage; a run's folder is a folder.")
        with replacing(path) as unfinished, unfinished.open("w+b") as file:
            torch.save(checkpoint, file)
            seal_checkpoint(file)
