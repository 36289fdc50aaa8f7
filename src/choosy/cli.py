"""The same runs through LightningCLI: `choosy fit --config run.yaml`. The only file that imports jsonargparse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from choosy.files import replacing
from choosy.labeling.exchange import command as labels
from choosy.labeling.protocols import Postponed
from choosy.parallel.launch import LOST, end_with_launcher, is_peer_failure
from choosy.redaction import refuse_secrets
from choosy.reporting import summary as report
from choosy.resume.config_changes import tell_changes
from choosy.resume.run_folder import (
    auto_resume,
    checkpoint,
    refuse_lost_ledger,
    refuse_unwritable,
    refuse_used_folder,
)

USAGE = """choosy fit --config run.yaml   play what `python train.py ... --cfg job --resolve > run.yaml` composed
choosy report RUN_DIR          write and print the report of a run, finished or not
choosy index SWEEP_DIR         index.csv over the runs of a sweep
choosy labels stats LEDGER     labels, ties and money of each labeler and run; also: export, import"""


def from_hydra(text: str) -> Any:
    """YAML as Hydra composes it, in the words of LightningCLI; YAML in those words already stays as it is."""
    composed = yaml.safe_load(text)
    if not isinstance(composed, dict) or "module" not in composed:
        return composed
    trainer = {k: class_path(v) for k, v in composed["trainer"].items() if k != "_target_"}
    return {
        "seed_everything": composed["seed"],
        "model": class_path(composed["module"]),
        "data": class_path(composed["data"]),
        "trainer": trainer,
        "ckpt_path": composed["ckpt_path"],
    }


def class_path(node: Any) -> Any:
    """`_target_` with its arguments as `class_path` and `init_args`, all the way down."""
    if isinstance(node, list):
        return [class_path(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {k: class_path(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
    return {"class_path": node["_target_"], "init_args": arguments} if "_target_" in node else arguments


class ChoosyCLI(LightningCLI):
    """LightningCLI that goes on with an interrupted run as `train.py` does."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False})

    def before_fit(self) -> None:
        """Refuse a used folder before anything is spent, find the checkpoint, and tell the data module of a resume."""
        refuse_secrets(self.config.as_dict())
        told, folder = self.config_init["fit"], self.datamodule.run.folder
        wanted = auto_resume(told["ckpt_path"], folder)
        self.datamodule.resuming = wanted is not None
        refuse_used_folder(folder, resuming=self.datamodule.resuming)
        told["ckpt_path"] = checkpoint(wanted, folder)
        if wanted is not None:
            refuse_lost_ledger(folder, self.datamodule.run.labels.ledger.path)
            tell_changes(folder, yaml.safe_load(self.parser.dump(self.config, skip_none=False))["fit"])
        told["weights_only"] = True
        refuse_unwritable(folder)


class KeepConfig(SaveConfigCallback):
    """Writes config.yaml into the run's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            with replacing(data.run.folder / "config.yaml") as unfinished:
                unfinished.write_text(self.parser.dump(self.config, skip_none=False))


def fit(args: list[str] | None = None, *, run: bool = True) -> ChoosyCLI:
    """Parse, build and (with `run`) train."""
    from choosy.main import quiet

    quiet()
    set_loader("choosy", from_hydra)
    return ChoosyCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=KeepConfig,
        parser_kwargs={"parser_mode": "choosy"},
        args=args,
        run=run,
    )


def main() -> None:
    """The `choosy` command; what the user can mend is told in a sentence."""
    end_with_launcher()
    try:
        run_command(sys.argv[1:])
    except Postponed as postponed:
        print(f"\n{postponed}\n  and then this command again with --ckpt_path last", file=sys.stderr)
        sys.exit(Postponed.exit_code)
    except (ValueError, MisconfigurationException) as error:
        sys.exit(f"\n{error}")
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        sys.exit(f"\n{LOST}")


def run_command(args: list[str]) -> None:
    """Do what the words ask for."""
    match args:
        case ["report", folder]:
            found = report.read_run(folder)
            report.plot(found, Path(folder) / "curves.png")
            report.html(found, Path(folder) / "report.html")
            report.console(found)
        case ["index", folder]:
            print(report.index(folder))
        case ["labels", *rest]:
            labels.command(rest)
        case ["fit", *_]:
            fit()
        case ["--help" | "-h", *_]:
            print(USAGE)
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main()
