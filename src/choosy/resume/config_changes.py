"""Compares a resumed run's configuration with the one it was started with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger(__name__)

FIXED = (  # the weights, the responses or the labels were made with these
    *("seed", "reference", "optimizer", "data"),
    *("model", "model.name", "model.revision", "model.adapter", "model.dtype", "model.chat_template*", "model.lora*"),
    *("data.train", "data.heldout", "data.limit", "data.heldout_limit", "data.reader.*"),
)
JUDGE = {"labeler", *(f"labeler.{name}" for name in ("path", "weights", "name", "model", "template", "wrapped"))}
ONLY = (".lora", ".training", ".reader")  # settings of one class
MENU = {  # where a setting is in the composed run: what is typed for it in the menu
    "module": "",
    "module.policy": "model",
    "module.policy.compute.tokens_per_step": "batching.tokens_per_step",
    "module.loss": "loss",
    "module.optimizer": "optimizer",
    "module.optimizer.lr": "lr",
    "data.run": "",
    "data.run.folder": "run_dir",
    "data.run.sampler": "sampler",
    "data.run.weighting": "weighting",
    "data.run.labels": "labels",
    "data.run.labels.labeler": "labeler",
    "data.run.training": "",
    "data.run.training.batch_size": "batching.batch_size",
    "data.run.training.keep": "pool.keep",
    "trainer.max_epochs": "rounds",
    "trainer.callbacks": "callbacks",
    "trainer.logger": "logger",
}


def report_changes(folder: Path, config: Mapping[str, Any]) -> None:
    """Log what differs from the config.yaml in the run's folder; either may be of Hydra or of LightningCLI.

    Raises:
        ValueError: Something differs that the run's weights, responses or labels were made with.
    """
    file = folder / "config.yaml"
    if not file.exists():  # the run was killed before it did anything
        return
    found = changes(yaml.safe_load(file.read_text()), config)
    if refused := [text for name, text in found.items() if is_fixed(name)]:
        raise ValueError(
            f"The run in {folder} cannot be resumed with {'; '.join(refused)}: its weights, responses and labels were "
            "made with the old value. Type the old value, or choose another name=... for a new run."
        )
    for text in found.values():
        log.warning("the run is resumed with %s", text)
    if found.keys() & JUDGE:
        log.warning(
            "Earlier labels and held-out results are the old labeler's, perhaps on another scale, and the run trains "
            "on both; choose another name=... for a run with the new labeler alone."
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what two configurations of one run set differently, by the name that is typed for it.

    Between a configuration of Hydra and one of LightningCLI, which also writes the defaults, only settings of both
    are compared, and those that are fixed.

    Example:
        >>> one = {"seed": 0, "module": {"policy": {"name": "a"}}, "data": {}, "trainer": {}}
        >>> changes(one, {**one, "module": {"policy": {"name": "b"}}})
        {'model.name': "model.name: 'a' -> 'b'"}
    """
    was, now = settings(old), settings(new)
    if "run_dir" in was and "run_dir" in now:  # a run may be moved
        folders = str(was["run_dir"]), str(now["run_dir"])
        was = {name: value.replace(*folders) if isinstance(value, str) else value for name, value in was.items()}
    alike = ("module" in old) == ("module" in new)

    def comparable(name: str) -> bool:
        in_both = name in was and name in now
        return alike or in_both or (is_fixed(name) and not name.startswith("data.reader."))  # which is never null

    return {
        name: f"{name}: {_shown(was.get(name))} -> {_shown(now.get(name))}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name) and comparable(name)
    }


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a configuration of Hydra or LightningCLI by the name that is typed for it."""
    module, seed = ("module", "seed") if "module" in config else ("model", "seed_everything")
    parts = {"seed": config.get(seed), "module": config[module], "data": config["data"], "trainer": config["trainer"]}
    return {_typed(name): value for name, value in _leaves(parts, "") if value is not None}


def is_fixed(name: str) -> bool:
    """Whether a setting cannot change in the course of a run."""
    return any(fnmatch(name, pattern) for pattern in FIXED)


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each setting with its dotted name; an object's class goes by the object's name."""
    if isinstance(node, list) and all(isinstance(item, Mapping) for item in node):
        node = {_class(item).rpartition(".")[2]: item for item in node}
    if not isinstance(node, Mapping):
        yield name, node
        return
    if _class(node) and not name.endswith(ONLY):  # which LightningCLI writes without a class: there is but one
        yield name, _class(node)
    for key, value in node.items():
        if key == "init_args":
            yield from _leaves(value, name)
        elif key not in ("_target_", "class_path", "_partial_"):
            yield from _leaves(value, f"{name}.{key}" if name else key)


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_") or node.get("class_path") or "")


def _typed(name: str) -> str:
    """Return what is typed for a setting: the menu's name for it or for the group that it is in."""
    place = max((p for p in MENU if f"{name}.".startswith(f"{p}.")), key=len, default="")
    return (MENU.get(place, "") + name.removeprefix(place)).lstrip(".") or name


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
