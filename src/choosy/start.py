"""Prepares a run, whichever command has composed it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from choosy.early import refuse_early
from choosy.errors import refuse_unknown
from choosy.labeling.judge.reachable import refuse_silent_endpoints
from choosy.models.damaged import refuse_checkpoint
from choosy.options.check import refuse_blanks, refuse_mistakes, refuse_removed
from choosy.options.fit_words import START
from choosy.options.signatures import not_taken
from choosy.parallel.launch import may_have_gpu
from choosy.redaction import refuse_secrets
from choosy.resume.config_changes import named_settings, report_changes
from choosy.resume.run_folder import Start, choose_start, prepare_folder, refuse_other_run
from choosy.resume.slurm import end_with_slurm
from choosy.sealed import read_json, write_yaml
from choosy.terminal import logger

# Torch, Lightning and transformers take seconds to import: functions import them once nothing is left to refuse.
if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logger(__name__)


def without_nulls(config: MutableMapping[str, Any]) -> None:
    """Take away the callbacks and loggers that were set to null; ~logger and ~callbacks take away all."""
    for group in ("callbacks", "logger"):
        config[group] = config.get(group) or {}
        for name in [name for name, part in config[group].items() if part is None]:
            del config[group][name]


def without_replaced(config: DictConfig, typed: Iterable[str]) -> None:
    """Take away what a group gives to its class where another class was typed that does not take it.

    An experiment's settings of a selector's callback are taken away where the selector that was typed brings no such
    callback, and its settings of a part where the part that was typed does not take them.

    Raises:
        ValueError: Settings of a callback that is not there were typed.
    """
    words = dict(word.lstrip("+").partition("=")[::2] for word in typed)
    no_parts = {name: part for name, part in config["callbacks"].items() if not isinstance(part, DictConfig | None)}
    for name, part in no_parts.items():
        raise ValueError(f"callbacks.{name}={part} is no callback; type ~callbacks.{name} to leave it out.")
    for name in [name for name, part in config["callbacks"].items() if part is not None and "_target_" not in part]:
        if of_it := next((word for word in words if word.startswith(f"callbacks.{name}.")), None):
            there = ", ".join(other for other in config["callbacks"] if other != name)
            raise ValueError(f"This run has no callback {name}: leave out {of_it}. Its callbacks are {there}.")
        del config["callbacks"][name]
    for name, said in words.items():
        place, _, last = name.rpartition(".")
        if place and last == "_target_":
            without_leftovers(config, place, words)
        elif not place and "experiment" in words and (left := without_leftovers(config, name, words)):
            experiment, settings = words["experiment"], ", ".join(left)
            log.warning("%s=%s takes no %s, which experiment=%s sets: left out.", name, said, settings, experiment)


def without_leftovers(config: DictConfig, place: str, typed: Collection[str]) -> list[str]:
    """Take away the settings at a place that its class does not take and that were not typed; return their names."""
    node = OmegaConf.select(config, place)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return []
    names = not_taken(node["_target_"], [*map(str, node)])
    left = [key for key in names if not any(f"{word}.".startswith(f"{place}.{key}.") for word in typed)]
    for key in left:
        del node[key]
    return left


def check(as_typed: dict[str, Any], resolve: Callable[[], dict[str, Any]], menu: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a configuration that no run can be built from; it imports no library of training.

    Args:
        as_typed: The configuration, with interpolations as they are written.
        resolve: Returns the same with their values, which can fail where something is missing.
        menu: The options that Choosy has besides the arguments of classes.

    Returns:
        The configuration with the values of its interpolations.
    """
    refuse_blanks(as_typed)
    refuse_removed(as_typed, menu)
    refuse_secrets(as_typed)  # as typed, so that the message names what was typed, then as written into the folder
    resolved = resolve()
    refuse_secrets(resolved)
    refuse_mistakes(as_typed, resolved, menu=menu)
    refuse_objective(resolved)
    refuse_sharded_checkpoints(resolved["trainer"])
    if not isinstance(resolved.get("overwrite", False), bool):
        raise ValueError(f"overwrite wants true or false, found {resolved['overwrite']!r}.")
    return resolved


def is_finished(config: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a run is played to its end and its report written, so that ckpt_path=auto finds nothing to do.

    One that stopped early goes on where the early stopping is another, or none. A damaged summary is named: the run
    goes on, and writes it again.

    Raises:
        ValueError: It was played with other data, another model or another seed.
    """
    summary = run_dir / "summary.json"
    if not summary.exists():
        return False
    report_changes(run_dir, config)
    try:
        numbers = read_json(summary)
        if isinstance(played := numbers.get("rounds"), int):
            wanted = int(config["data"]["run"].get("rounds", 0))
            return played >= wanted or stopped_early(config, run_dir)
        raise ValueError(f"{summary} is damaged: it has no number of rounds.")
    except ValueError as error:
        log.warning("%s The run goes on from its rounds, and writes it again.", error)
        return False


def stopped_early(config: Mapping[str, Any], run_dir: Path) -> bool:
    """Whether a run has stopped early, by the early stopping that it now has, which would stop it again."""
    from choosy.reporting.summary import read_run
    from choosy.reporting.sweeps import config_of, early_stoppers

    return read_run(run_dir).stopped_early and early_stoppers(config_of(run_dir)) == early_stoppers(config)


def prepare(config: Mapping[str, Any], run_dir: Path, *, typed: Collection[str] = ()) -> Start:
    """Refuse what cannot run before anything is spent, and choose the checkpoint that a run resumes from.

    Args:
        config: The configuration with the values of its interpolations.
        run_dir: The run's folder.
        typed: Names of the options that were typed.
    """
    end_with_slurm()
    if not may_have_gpu():
        refuse_gpu(config["trainer"])
    begin = choose_start(run_dir, config["ckpt_path"], replace=config["overwrite"])
    if begin.resuming:
        refuse_other_run(run_dir, config)
    refuse_early(config, typed=typed)
    refuse_silent_endpoints(config)
    prepare_folder(run_dir, resuming=begin.resuming, replace=config["overwrite"])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it speaks of fonts when it is first imported
    import torch

    from choosy.parallel.ranks import end_with_launcher
    from choosy.reporting.display import quiet

    end_with_launcher()
    if not torch.cuda.is_available():
        refuse_gpu(config["trainer"])
    quiet()
    if begin.ckpt_path is not None:
        refuse_checkpoint(begin.ckpt_path)
    return begin


def describe(config: Mapping[str, Any], trainer: Trainer, run_dir: Path) -> None:
    """Write the configuration into the run's folder, so that it can be played again, and give it to the loggers."""
    write_yaml(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**config, **START})))
    for each in trainer.loggers:
        each.log_hyperparams(named_settings(config))


def refuse_objective(config: Mapping[str, Any]) -> None:
    """Refuse an unknown objective, and one that nothing will measure."""
    objective = config.get("objective", "win_rate")
    refuse_unknown("objective", objective, ("win_rate", "labels_to_win_rate", "quality"))
    target = config.get("target_win_rate", 0.8)
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 <= target <= 1:
        raise ValueError(f"target_win_rate={target} is no share of wins; type a number from 0 to 1, such as 0.8.")
    data, callbacks = config["data"], config.get("callbacks") or {}
    measured = data.get("heldout") and callbacks.get("win_rate")
    if objective == "labels_to_win_rate" and not measured:
        raise ValueError(
            "objective=labels_to_win_rate needs win rates: give data.heldout=... and leave callbacks.win_rate in."
        )
    judged = measured and (config.get("labels") or {}).get("evaluation") != "none"
    if objective == "quality" and not (judged or (data.get("heldout_pairs") and callbacks.get("heldout_pairs"))):
        raise ValueError(
            "objective=quality needs held-out answers that are judged, or labeled pairs: give data.heldout=... and "
            "leave labels.evaluation=none out, or give data.heldout_pairs=..."
        )


def refuse_gpu(trainer: Mapping[str, Any]) -> None:
    """Refuse trainer.accelerator=gpu, as there is no GPU."""
    if trainer.get("accelerator") in ("gpu", "cuda"):
        raise ValueError(
            "trainer.accelerator=gpu, but torch finds no GPU; choose trainer=cpu, or install a CUDA build of torch."
        )


def refuse_sharded_checkpoints(trainer: Mapping[str, Any]) -> None:
    """Refuse checkpoints that each process writes a share of, which is what the strategy does unless told otherwise."""
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping) or not str(strategy.get("_target_")).endswith(".ModelParallelStrategy"):
        return
    if strategy.get("save_distributed_checkpoint", True):
        raise ValueError(
            "trainer.strategy.save_distributed_checkpoint=true writes folders, and a run resumes from files, which any "
            "number of processes can read; type trainer.strategy.save_distributed_checkpoint=false."
        )
