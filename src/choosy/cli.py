"""Trains as LightningCLI composes it: `choosy fit --config run.yaml`. The only file that imports jsonargparse."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import yaml
from jsonargparse import set_loader
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from choosy.files import replacing
from choosy.options.fit_words import applied, parsed, resolved
from choosy.redaction import refuse_secrets
from choosy.reporting.display import quiet
from choosy.resume.run_folder import prepare_folder


def from_hydra(text: str, names: Mapping[str, Any] | None = None) -> Any:
    """Translate YAML that Hydra composed to that of LightningCLI, and leave any other as it is.

    Args:
        text: The YAML.
        names: Other values for options of the menu.
    """
    composed = yaml.safe_load(text)
    if not isinstance(composed, dict) or "module" not in composed:
        return composed
    composed = resolved(applied(parsed(text), names or {}) if names else parsed(text))
    trainer = {k: class_path(v) for k, v in composed["trainer"].items() if k != "_target_"}
    return {
        "seed_everything": composed["seed"],
        "model": class_path(composed["module"]),
        "data": class_path(composed["data"]),
        "trainer": trainer,
        "ckpt_path": composed["ckpt_path"],
    }


def class_path(node: Any) -> Any:
    """Translate `_target_` with its arguments to `class_path` and `init_args`, at every depth."""
    if isinstance(node, list):
        return [class_path(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {k: class_path(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
    return {"class_path": node["_target_"], "init_args": arguments} if "_target_" in node else arguments


class ChoosyCLI(LightningCLI):
    """LightningCLI with the guards of `choosy train`."""

    command: list[str]  # as typed; Lightning repeats it to start the other processes of a run

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False})

    def before_fit(self) -> None:
        """Check the run's folder before anything is spent, and choose the checkpoint."""
        sys.argv[:] = self.command
        refuse_secrets(self.config.as_dict())
        fit, run = self.config_init["fit"], self.datamodule.run
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))["fit"]
        start = prepare_folder(run.folder, fit["ckpt_path"], config=config, ledger=run.labels.ledger.path)
        run.resuming = start.resuming
        fit["ckpt_path"], fit["weights_only"] = start.ckpt_path, True


class KeepConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            with replacing(data.run.folder / "config.yaml") as unfinished:
                unfinished.write_text(self.parser.dump(self.config, skip_none=False))


def fit(words: list[str] | None = None, *, names: Mapping[str, Any] | None = None, run: bool = True) -> ChoosyCLI:
    """Parse the words after `choosy fit` (None = those of the command line), build, and (with `run`) train.

    `names` are other values for options of the menu, where Hydra composed the file.
    """
    quiet()
    set_loader("choosy", partial(from_hydra, names=names))
    ChoosyCLI.command = list(sys.argv)
    if words is not None:
        sys.argv[1:] = ["fit", *words]
    return ChoosyCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=KeepConfig,
        parser_kwargs={"parser_mode": "choosy"},
        run=run,
    )
