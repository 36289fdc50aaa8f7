"""Reads the command line of `choosy fit`, whose options are names of LightningCLI or of the menu."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from choosy.options.check import REFERENCE, options, refuse_mistakes, unknown
from choosy.options.menu import menu
from choosy.options.signatures import Missing, signature

HELP = """usage: choosy fit --config run.yaml [--NAME=VALUE ...]

Plays what `choosy train ... --cfg job > run.yaml` composed, or the config.yaml of a run's folder.

  --config FILE       what to play
  --ckpt_path last    resume the run in run_dir; auto = if there is one; start = train it again on its rounds and labels
  --NAME=VALUE        any option that `choosy train --help` lists, such as --lr=1e-4, --run_dir=runs/two, --rounds=6
  --trainer.NAME=VALUE, --data.NAME=VALUE, --model.NAME=VALUE   an argument of Lightning's Trainer, of the data, of the
                      LightningModule, as LightningCLI has them; --model.policy.lora.r is --model.lora.r of the menu
  --print_config      print the whole configuration and end"""
CLI = ("config", "print_config", "ckpt_path", "weights_only", "seed_everything", "verbose")  # of LightningCLI itself
PARTS = ("model", "data", "trainer")
LINK = re.compile(r"^ *(\w+): '?\$\{([\w.]+)\}([^'$\s]*)'?(?:  #.*)?$", re.MULTILINE)


class Typed(NamedTuple):
    """The words for LightningCLI, the options of the menu with their values, and what all of it configures."""

    words: list[str]
    names: dict[str, Any]
    config: dict[str, Any]  # resolved, as Hydra composes it
    ckpt_path: str | None

    @property
    def options(self) -> list[str]:
        """The names of what was typed, as the menu has them."""
        cli = (re.sub(r"\.(init_args|class_path)\b", "", word[2:].partition("=")[0]) for word in self.words)
        return [*self.names, *(name.replace("model.policy.", "model.") for name in cli)]


def read_words(words: list[str]) -> Typed:
    """Split the words after `choosy fit`, and check what they configure.

    Raises:
        ValueError: A word is no option, or what is configured cannot be built.
    """
    pairs = [*_pairs(words)]
    paths = [value for name, value in pairs if name == "config" and value is not None]
    if not paths:
        raise ValueError("choosy fit plays a file: type --config run.yaml, from choosy train ... --cfg job > run.yaml")
    composed = read_yaml(Path(paths[-1]))
    menu_names = _menu_names(composed) if "module" in composed else []
    names = {name: parsed(f"v: {value}")["v"] for name, value in pairs if name in menu_names}
    tree = _as_composed(applied(composed, names) if names else composed)
    kept: list[str] = []
    for name, value in pairs:
        top = name.split(".")[0]
        if top in CLI or (name not in names and (name in PARTS or (top in PARTS and _set(tree, name, value)))):
            kept.append(f"--{name}" if value is None else f"--{name}={value}")
        elif name not in names:
            raise ValueError(f"--{name}: {unknown(name, menu_names or options(tree))}")
    known = menu() if "module" in tree and "lr" in tree else {"defaults": [*tree]}
    config = resolved(tree)
    refuse_mistakes(tree, config, menu=known)
    return Typed(kept, names, config, dict(pairs).get("ckpt_path", config.get("ckpt_path")))


def _pairs(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the name and the value of each option."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            name, equals, value = word.partition("=")
            raise ValueError(f"{word}: options have dashes here: --{name}={value if equals else '...'}")
        name, equals, value = word[2:].partition("=")
        yield name, value if equals else None if name == "print_config" else next(rest, None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of YAML, in which 1e-5 is a number."""
    if not path.is_file():
        raise ValueError(f"No file {path}; type choosy train ... --cfg job > {path}")
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not {"data", "trainer"} <= {*found}:
        raise ValueError(f"{path} configures no run; wanted what choosy train ... --cfg job > run.yaml composes")
    return found


def parsed(text: str) -> Any:
    """Parse YAML with interpolations as they are written."""
    return OmegaConf.to_container(OmegaConf.create(text or "{}"))


def resolved(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed configuration with the values of its interpolations."""
    if not OmegaConf.has_resolver("started"):
        OmegaConf.register_new_resolver("started", time.strftime, use_cache=True)
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(composed)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(
            f"{error.full_key}: {str(error).splitlines()[0]}; compose the file with choosy train ... --cfg job"
        ) from error


def applied(composed: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed configuration with other values for options of the menu, wherever they are read.

    Example:
        >>> old = {"lr": 0.1, "optimizer": {"lr": 0.1}, "module": {"optimizer": {"lr": 0.1}}}
        >>> resolved(applied(old, {"lr": 0.2}))["module"]
        {'optimizer': {'lr': 0.2}}
    """
    linked = OmegaConf.create({key: _linked(key, value, composed) for key, value in composed.items()})
    for name, value in names.items():
        OmegaConf.update(linked, name, value, merge=False)
    return OmegaConf.to_container(linked)  # type: ignore[return-value]


@cache
def _links() -> list[tuple[str, str, str]]:
    """What conf/ sets to the value of another option: the key, the option, and what follows it."""
    folders = [files("choosy.conf"), *(f for f in files("choosy.conf").iterdir() if f.is_dir() and f.name != "hydra")]
    found = [LINK.findall(f.read_text()) for folder in folders for f in folder.iterdir() if f.name.endswith(".yaml")]
    return [link for of_file in found for link in of_file]


def _linked(path: str, node: Any, composed: Mapping[str, Any]) -> Any:
    """Put interpolations back where a resolved configuration repeats the value of an option."""
    key = path.rpartition(".")[2]
    if path in ("trainer.callbacks", "trainer.logger") and node == [*composed[key].values()]:
        return f"${{oc.dict.values:{key}}}"
    for name, option, rest in _links() if "." in path and node is not None else ():
        if name == key and option != path and node == _value(composed, option, rest):
            return f"${{{option}}}{rest}"
    if isinstance(node, dict):
        return {name: _linked(f"{path}.{name}", value, composed) for name, value in node.items()}
    return (
        [_linked(f"{path}.{place}", value, composed) for place, value in enumerate(node)]
        if isinstance(node, list)
        else node
    )


def _value(composed: Any, option: str, rest: str) -> Any:
    for part in option.split("."):
        composed = composed.get(part) if isinstance(composed, Mapping) else None
    return f"{composed}{rest}" if rest else composed


def _menu_names(composed: Mapping[str, Any]) -> list[str]:
    """The names of the menu that a composed file has."""
    copies = ("module.", "run.", "data.run.", "hydra.")
    return [name for name in options(composed) if not f"{name}.".startswith(copies)]


def _as_composed(node: Any) -> Any:
    """Translate `class_path` and `init_args` to `_target_` and its arguments, at every depth."""
    if isinstance(node, list):
        return [_as_composed(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _as_composed(value) for key, value in node.items() if key not in ("class_path", "init_args")}
    if "class_path" in node:
        partial = {"_target_": node["class_path"], "_partial_": True}  # LightningCLI says what is missing
        arguments |= partial | _as_composed(node.get("init_args") or {})
    return arguments


def _set(tree: dict[str, Any], name: str, value: str | None) -> bool:
    """Set an argument of LightningCLI in the tree; False where the object there takes no such argument."""
    top, *path = [part for part in name.split(".") if part not in ("init_args", "class_path")]
    places = ["module" if top == "model" and "module" in tree else top, *path[:-1]]
    node: Any = tree
    while places:
        node = node.get(places.pop(0)) if isinstance(node, dict) else None
        if isinstance(node, str) and (found := REFERENCE.match(node)):
            places[:0], node = found[1].split("."), tree
    if not isinstance(node, dict) or not path:
        return isinstance(node, list | str) or not path  # an item of a list, or an interpolation: LightningCLI knows
    try:
        takes = signature(str(node.get("_target_", "lightning.Trainer" if top == "trainer" and len(path) == 1 else "")))
    except Missing:
        takes = None
    if takes is not None and path[-1] not in takes.arguments and not takes.takes_others:
        return False
    if not name.endswith("class_path"):
        node[path[-1]] = parsed(f"v: {value}")["v"]
    return True
