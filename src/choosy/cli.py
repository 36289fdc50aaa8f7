"""Trains as LightningCLI composes it: `choosy fit --config run.yaml`. The only file that imports jsonargparse."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jsonargparse import set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from choosy.errors import in_a_line, raised_at
from choosy.options.fit_words import START, as_composed, parsed, resolved
from choosy.options.yaml_text import load_yaml
from choosy.reporting.display import quiet
from choosy.resume.run_folder import Start
from choosy.start import describe, prepare
from choosy.terminal import exit_with


def from_hydra(text: str, config: Mapping[str, Any] | None = None) -> Any:
    """Translate YAML that configures a run to that of LightningCLI, and leave any other as it is.

    Args:
        text: The YAML.
        config: What is played in its place: with the values that were typed.
    """
    found = load_yaml(text)
    if not isinstance(found, dict) or not {"data", "trainer"} <= {*found}:
        return found
    config = config or resolved(parsed(text))
    seed = {} if config["seed"] is None else {"seed_everything": config["seed"]}
    trainer = {name: class_path(part) for name, part in config["trainer"].items() if name != "_target_"}
    return seed | {"model": class_path(config["module"]), "data": class_path(config["data"]), "trainer": trainer}


def class_path(node: Any) -> Any:
    """Translate `_target_` with its arguments to `class_path` and `init_args`, at every depth."""
    if isinstance(node, list):
        return [class_path(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {k: class_path(v) for k, v in node.items() if k not in ("_target_", "_partial_")}
    return {"class_path": node["_target_"], "init_args": arguments} if "_target_" in node else arguments


class ChoosyCLI(LightningCLI):
    """LightningCLI that plays a prepared run."""

    def __init__(self, words: Sequence[str], config: Mapping[str, Any], start: Start | None) -> None:
        self.played, self.start = config, start
        self.command = list(sys.argv)  # as typed; Lightning repeats it to start the other processes of a run
        sys.argv[1:] = ["fit", *words]
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # `describe` writes it
            parser_kwargs={"parser_mode": "choosy", "exit_on_error": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False})

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException):
            raise
        except Exception as error:  # a class of the user's may raise anything
            raise ValueError(
                f"The run cannot be built: {in_a_line(error)}. HYDRA_FULL_ERROR=1 shows the stack.{raised_at(error)}"
            ) from error

    def before_fit(self) -> None:
        """Resume as the start says, and write down what is played."""
        sys.argv[:] = self.command
        run = self.datamodule.run
        if self.start is None:
            dumped = load_yaml(self._parser("fit").dump(self.config["fit"], skip_none=False))
            self.played = as_composed(dumped) | {name: self.played[name] for name in START}
            self.start = prepare(self.played, run.folder)
        run.resuming = self.start.resuming
        fit = self.config_init["fit"]
        fit["ckpt_path"], fit["weights_only"] = self.start.ckpt_path, True
        if self.trainer.is_global_zero:
            describe(self.played, self.trainer, run.folder)


def fit(words: Sequence[str], config: Mapping[str, Any], start: Start | None) -> ChoosyCLI:
    """Build and train.

    Args:
        words: What LightningCLI reads.
        config: What `choosy train` composed, with the values that were typed since.
        start: How that starts; None = LightningCLI composes the rest, and the run is prepared once it has.

    Raises:
        ValueError: LightningCLI cannot read or build something.
    """
    quiet()
    set_loader("choosy", partial(from_hydra, config=config))
    try:
        return ChoosyCLI(words, config, start)
    except argparse.ArgumentError as error:
        raise ValueError(in_a_sentence(str(error))) from error


def in_a_sentence(error: str) -> str:
    r"""Return the place and the reasons of an error of jsonargparse, which lists every type that it has tried.

    Example:
        >>> in_a_sentence('Parser key "data":\n  Errors:\n  - Parser key "limit":\n    - Expected a number\n')
        'data.limit: Expected a number.'
    """
    place = ".".join(re.findall(r'Parser key "([^"]+)"', error))
    lines = [line.strip() for line in error.splitlines()]
    reasons = [line.removeprefix("- ") for line in lines if line.startswith(("- ", "Option "))]
    said = [reason for reason in reasons if not re.match("Problem|Parser key|Expected a <class 'NoneType'>", reason)]
    # a value of several protocols is refused once for each of them
    said = [reason for reason in said if "not implement protocol" not in reason] or said
    return f"{place}: {'; '.join(said)}." if place and said else error


if __name__ == "__main__":
    exit_with("Type choosy fit --config run.yaml, or python -m choosy fit --config run.yaml")
