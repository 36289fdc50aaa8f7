"""Reads the command line of `choosy fit`, whose options are names of LightningCLI or of the menu."""

from __future__ import annotations

import re
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from choosy.options.check import REFERENCE, options, unknown
from choosy.options.menu import menu
from choosy.options.signatures import not_taken

HELP = """usage: choosy fit --config run.yaml [--NAME=VALUE ...]

Plays what `choosy train ... --cfg job > run.yaml` composed, or the config.yaml of a run's folder.

  --config FILE       what to play
  --ckpt_path last    resume the run in run_dir; auto = if there is one; start = train it again on its rounds and labels
  --overwrite true    replace the run that run_dir holds; its labels are kept aside
  --NAME=VALUE        any option that `choosy train --help` lists, such as --lr=1e-4, --run_dir=runs/two, --rounds=6
  --trainer.NAME=VALUE, --data.NAME=VALUE, --model.NAME=VALUE   an argument of Lightning's Trainer, of the data, of the
                      LightningModule, as LightningCLI has them; --model.policy.lora.r is --model.lora.r of the menu
  --print_config      print the whole configuration and end"""
CLI = ("config", "print_config", "weights_only", "verbose")  # of LightningCLI itself
START = {"ckpt_path": None, "overwrite": False}  # options of how a run starts, which do not describe it
PLAY_SEVERAL = ("experiment=compare", "experiment=fewest_labels", "experiment=online_tuning")  # without a name
PARTS = ("model", "data", "trainer")
MENU = {"run_dir": "data.run.folder", "rounds": "data.run.rounds", "lr": "module.optimizer.lr"}  # where they are read
LINK = re.compile(r"^ *(\w+): '?([\w/]*)\$\{([\w.]+)\}([^'$\s]*)'?(?:  #.*)?$", re.MULTILINE)


class Typed(NamedTuple):
    """What was typed after `choosy fit`.

    Attributes:
        words: What LightningCLI reads.
        config: What is played, with interpolations as they are written.
        is_composed: Whether `choosy train` composed the file; if not, LightningCLI knows defaults that `config` lacks.
        options: The names of what was typed, as the menu has them.
    """

    words: list[str]
    config: dict[str, Any]
    is_composed: bool
    options: list[str]

    @property
    def menu(self) -> Mapping[str, Any]:
        """The options that the file may have besides the arguments of classes."""
        return menu() if "labels" in self.config else {"defaults": [*self.config]}


def read_words(words: list[str]) -> Typed:
    """Split the words after `choosy fit`, and put what they set into the configuration.

    Raises:
        ValueError: A word is no option, or there is no file to play.
    """
    pairs = [*_pairs(words)]
    paths = [value for name, value in pairs if name == "config" and value is not None]
    if not paths:
        raise ValueError("choosy fit plays a file: type --config run.yaml, from choosy train ... --cfg job > run.yaml")
    found = read_yaml(Path(paths[-1]))
    is_composed = "module" in found
    config = found if is_composed else as_composed(found)
    known = {*START, *_menu_names(config)}
    names = {name: value for name, value in START.items() if name not in config}
    names |= {name: typed_value(str(value)) for name, value in pairs if name in known}
    config = applied(config, names)
    kept: list[str] = []
    for name, value in pairs:
        if name in names or (is_set := _set(config, name, value)):
            continue
        if is_set is False or (is_composed and name.split(".")[0] in PARTS):
            below = options({"model": config["module"], "data": config["data"]})
            raise ValueError(f"--{name}: {unknown(name, {*known, *below}, value or '')}")
        if _is_pipe(value):
            value = "{data: {}, trainer: {}}"  # LightningCLI plays `config` in its place
        kept.append(f"--{name}" if value is None else f"--{name}={value}")
    typed = [re.sub(r"\.(init_args|class_path)\b", "", name).replace("model.policy.", "model.") for name, _ in pairs]
    return Typed(kept, config, is_composed, typed)


def again(words: list[str], run_dir: str) -> str:
    """Return the command that resumes what these words have started.

    Example:
        >>> again(["--config", "run.yaml", "--overwrite=true", "--lr=1e-4"], "runs/one")
        'choosy fit --config=run.yaml --lr=1e-4 --run_dir=runs/one --ckpt_path=last'
    """
    pairs = [(name, f"{run_dir}/config.yaml" if _is_pipe(value) else value) for name, value in _pairs(words)]
    kept = [f"--{name}={value}" for name, value in pairs if name not in (*START, "name", "run_dir")]
    return shlex.join(["choosy", "fit", *kept, f"--run_dir={run_dir}", "--ckpt_path=last"])


def with_dashes(sentence: str) -> str:
    """Return a sentence with the options that it names as `choosy fit` takes them.

    Example:
        >>> with_dashes("choose another name=..., or resume it with ckpt_path=last (choosy train -m seed=0,1)")
        'choose another --name=..., or resume it with --ckpt_path=last (choosy train -m seed=0,1)'
    """
    groups = {*menu()["defaults"]}

    def dashed(found: re.Match[str]) -> str:
        name = found["name"]
        ours = name and name not in groups and name.split(".")[0] in {*menu(), *groups}
        return f"--{found[0]}" if ours else found[0]

    return re.sub(r"choosy train [^;\n]*|(?<![^\s(`])(?P<name>\w+(\.\w+)*)=", dashed, sentence)


def _is_pipe(path: str | None) -> bool:
    """Whether this is a pipe, as of `--config <(choosy train ... --cfg job)`, which can be read only once."""
    return path is not None and Path(path).is_fifo()


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
    if not (path.is_file() or path.is_fifo()):
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


def typed_value(text: str) -> Any:
    """Return the number, list or dict that is typed as YAML; whatever is none of these is text, as it is typed.

    Example:
        >>> typed_value("1e-4"), typed_value("{a: [1, null]}"), typed_value("'1'")
        (0.0001, {'a': [1, None]}, '1')
        >>> typed_value("Say: {answer} # briefly"), typed_value("{% for m in messages %}: {")
        ('Say: {answer} # briefly', '{% for m in messages %}: {')
    """
    try:
        found = parsed(f"v: {text}")["v"]
    except yaml.YAMLError:
        return text
    return text if isinstance(found, str) and not text.startswith(("'", '"')) else found


def time_name(pattern: str) -> str:
    """Return a name made of the time and six random letters or digits, which runs of the same moment differ in."""
    return f"{time.strftime(pattern)}-{uuid.uuid4().hex[:6]}"


def resolved(composed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed configuration with the values of its interpolations."""
    if not OmegaConf.has_resolver("started"):
        OmegaConf.register_new_resolver("started", time_name, use_cache=True)
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(composed)), resolve=True))
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
    return cast(dict[str, Any], OmegaConf.to_container(linked))


@cache
def _links() -> list[tuple[str, str, str, str]]:
    """What conf/ sets to the value of another option: the key, what precedes the option, it, and what follows it."""
    folders = [files("choosy.conf"), *(f for f in files("choosy.conf").iterdir() if f.is_dir() and f.name != "hydra")]
    found = [LINK.findall(f.read_text()) for folder in folders for f in folder.iterdir() if f.name.endswith(".yaml")]
    return [link for of_file in found for link in of_file]


def _linked(path: str, node: Any, composed: Mapping[str, Any]) -> Any:
    """Put interpolations back where a resolved configuration repeats the value of an option."""
    key = path.rpartition(".")[2]
    if path in ("trainer.callbacks", "trainer.logger") and key in composed and node == [*composed[key].values()]:
        return f"${{oc.dict.values:{key}}}"
    for name, before, option, rest in _links() if node is not None else ():
        is_for = bool(before) != ("." in path)  # of the options that others are set to, only run_dir follows another
        if name == key and option != path and is_for and node == _value(composed, before, option, rest):
            return f"{before}${{{option}}}{rest}"
    if isinstance(node, dict):
        return {name: _linked(f"{path}.{name}", value, composed) for name, value in node.items()}
    return (
        [_linked(f"{path}.{place}", value, composed) for place, value in enumerate(node)]
        if isinstance(node, list)
        else node
    )


def _value(composed: Any, before: str, option: str, rest: str) -> Any:
    for part in option.split("."):
        composed = composed.get(part) if isinstance(composed, Mapping) else None
    return f"{before}{composed}{rest}" if before or rest else composed


def _menu_names(composed: Mapping[str, Any]) -> list[str]:
    """The names of the menu that a composed file has."""
    copies = ("module.", "run.", "data.run.", "hydra.")
    return [name for name in options(composed) if not f"{name}.".startswith(copies)]


def as_composed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration of LightningCLI to the form of one that `choosy train` composed.

    Raises:
        ValueError: It says nothing of the run that the data play.
    """
    parts = {name: _with_targets(part) for name, part in config.items()}
    parts = {"seed": parts.pop("seed_everything", None), "module": parts.pop("model", {}), **parts}
    named = {name: _value(parts, "", place, "") for name, place in MENU.items()}
    if named["run_dir"] is None:
        raise ValueError("data.run.folder must be given: the folder of the run; choosy train ... --cfg job composes it")
    return {name: value for name, value in named.items() if value is not None} | parts


def _with_targets(node: Any) -> Any:
    """Translate `class_path` and `init_args` to `_target_` and its arguments, at every depth."""
    if isinstance(node, list):
        return [_with_targets(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _with_targets(value) for key, value in node.items() if key not in ("class_path", "init_args")}
    if "class_path" in node:
        partial = {"_target_": node["class_path"], "_partial_": True}  # LightningCLI says what is missing
        arguments |= partial | _with_targets(node.get("init_args") or {})
    return arguments


def _set(config: dict[str, Any], name: str, value: str | None) -> bool | None:
    """Set an argument of LightningCLI; False if there is none, None where only LightningCLI can know."""
    top, *path = [part.replace("class_path", "_target_") for part in name.split(".") if part != "init_args"]
    if top not in PARTS or not path:
        return None if top in (*CLI, *PARTS) else False
    node = _node(config, ["module" if top == "model" else top, *path[:-1]])
    if not isinstance(node, dict):
        return None if isinstance(node, list | str) else False  # an item of a list
    if path[-1] == "_target_":
        for key in not_taken(str(value), node):
            del node[key]  # an argument of the class before
    elif not_taken(node.get("_target_", "lightning.Trainer" if top == "trainer" and len(path) == 1 else ""), path[-1:]):
        return False
    while (link := REFERENCE.match(str(node.get(path[-1])))) is not None:
        path = link[1].split(".")
        node = _node(config, path[:-1])
    node[path[-1]] = typed_value(str(value))
    return True


def _node(config: Mapping[str, Any], places: list[str]) -> Any:
    """Return what is at a place of a configuration, through its interpolations."""
    node: Any = config
    while places:
        node = node.get(places.pop(0)) if isinstance(node, Mapping) else None
        if isinstance(node, str) and (link := REFERENCE.match(node)):
            places[:0], node = link[1].split("."), config
    return node
