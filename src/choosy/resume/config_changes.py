"""Compares a resumed run's configuration with the one it was started with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from choosy.options.parts import (
    CLASS,
    COLLECTIONS,
    Option,
    classes,
    collection,
    leaves,
    option_of_collection,
    option_of_part,
    within,
)
from choosy.sealed import read_yaml
from choosy.terminal import logger

log = logger(__name__)

FIXED = (  # the weights, the responses or the labels were made with these
    *("seed", "reference", "optimizer", "data"),
    *("model", "model.name", "model.revision", "model.adapter", "model.dtype", "model.chat_template*", "model.lora*"),
    *("data.train*", "data.heldout", "data.limit", "data.shares", "data.heldout_limit", "data.reader.*"),
    *("data.instructions*", "sampler.ahead"),
)
OFF = {  # in every run of a version that could not set them
    "model.compute.split_long": False,
    "sampler.ahead": 0,
    "sampler.ahead_device": "auto",
    "sampler.max_ratio": 2.0,
    "sampler.tensor_parallel": 1,
}
JUDGE = {"labeler", *(f"labeler.{name}" for name in ("path", "name", "model", "template", "wrapped"))}
INSIDE = ("labeler.parts", "labeler.weights", "labeler.members")  # whose settings are the judge too
REFERS = "${"  # to another option
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
    "data.run.labels.editor": "editor",
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
        ValueError: Something differs that the run's weights, responses or labels were made with; or that file is
            damaged.
    """
    file = folder / "config.yaml"
    if not file.exists():  # the run was killed before it did anything, or a script of the user's plays it
        return
    old = read_yaml(file)
    parts = "module" if "module" in old else "model", "data", "trainer"
    if lacks := [part for part in parts if not isinstance(old.get(part), dict)]:
        raise ValueError(f"{file} does not describe a run: {lacks[0]} is missing; put back what was there.")
    found = changes(old, config)
    if refused := [text for name, text in found.items() if is_fixed(name)]:
        raise ValueError(
            f"The run in {folder} cannot be resumed with {'; '.join(refused)}: its weights, responses and labels were "
            "made with the old value. Type the old value, or choose another name=... or run_dir=... for a new run."
        )
    if found:
        log.warning("the run is resumed with %s", "; ".join(found.values()))
    if found.keys() & JUDGE or any(_below(INSIDE, name) for name in found):
        log.warning(
            "Earlier labels and held-out results are the old labeler's, perhaps on another scale, and the run trains "
            "on both; choose another name=... or run_dir=... for a run with the new labeler alone."
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what two configurations of one run set differently, by the name that is typed for it.

    Another option of a group comes first, and brings its own settings, which are not listed. Between a configuration
    of Hydra and one of LightningCLI, which also writes the defaults, only settings of both are compared, and those
    that are fixed.

    Example:
        >>> one = {"seed": 0, "module": {"policy": {"name": "a"}}, "data": {}, "trainer": {}}
        >>> changes(one, {**one, "module": {"policy": {"name": "b"}}})
        {'model.name': "model.name: 'a' -> 'b'"}
    """
    was, now = settings(old), settings(new)
    if "run_dir" in was and "run_dir" in now:  # a run may be moved
        old_folder = re.compile(rf"(?<![\w./-]){re.escape(str(was['run_dir']))}(?![^/])")  # not in another's name
        was = {n: old_folder.sub(lambda _: str(now["run_dir"]), v) if isinstance(v, str) else v for n, v in was.items()}
    alike = ("module" in old) == ("module" in new)

    def comparable(name: str) -> bool:
        in_both = name in was and name in now
        return alike or in_both or (is_fixed(name) and not name.startswith("data.reader."))  # which is never null

    then, later = {**OFF, **was}, {**OFF, **now}
    differing = sorted(n for n in then.keys() | later.keys() if then.get(n) != later.get(n) and comparable(n))
    options, with_them = other_options(was, now, differing)
    rest = [name for name in differing if name not in with_them]
    return options | {name: f"{name}: {_shown(was.get(name))} -> {_shown(now.get(name))}" for name in rest}


def other_options(
    was: Mapping[str, Any], now: Mapping[str, Any], differing: Collection[str]
) -> tuple[dict[str, str], set[str]]:
    """Return the parts that are another option now, and the differing settings that come and go with these."""
    found, brought = dict[str, str](), dict[str, Any]()
    replaced: set[str] = set()
    for group, place in COLLECTIONS.items():
        parts = [collection(group, each) for each in (was, now)]
        then, later = (option_of_collection(group, each) for each in parts)
        if classes(parts[0]) != classes(parts[1]) or became(then, later, *parts):
            found[group] = f"{group}: {then.name} -> {later.name}"
            brought |= {f"{place}.{name}": value for name, value in later.settings.items()}
            replaced |= {f"{place}.{name.removesuffix(f'.{CLASS}')}" for each in parts for name in classes(each)}
    for part in sorted({name.removesuffix(f".{CLASS}") for name in (*was, *now) if name.endswith(f".{CLASS}")}):
        inside = [within(part, each) for each in (was, now)]
        then, later = map(option_of_part, inside)
        is_other = f"{part}.{CLASS}" in differing or (became(then, later, *inside) and not is_fixed(part))
        if is_other and not _below(replaced, part):
            found[part] = f"{part}: {_option(part, was)} -> {_option(part, now)}"
            brought |= {f"{part}.{k}": v for k, v in later.settings.items()}
            replaced.add(part)

    def comes_with(name: str) -> bool:
        own = brought.get(name)
        is_class = name.removesuffix(f".{CLASS}") in replaced
        return _below(replaced, name) and (is_class or now.get(name) in (None, own) or REFERS in str(own))

    return found, {name for name in differing if comes_with(name)}


def became(then: Option, later: Option, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a part of the same class has become another option: it took the values in which that one differs."""
    changed = [name for name in was.keys() | now.keys() if was.get(name) != now.get(name)]
    apart = [name for name in changed if then.settings.get(name) != later.settings.get(name)]
    return bool(apart) and all(now.get(name) == later.settings.get(name) for name in apart)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a configuration of Hydra or LightningCLI by the name that is typed for it."""
    module, seed = ("module", "seed") if "module" in config else ("model", "seed_everything")
    trainer = {**config["trainer"], **{name: config[name] for name in ("callbacks", "logger") if config.get(name)}}
    parts = {"seed": config.get(seed), "module": config[module], "data": config["data"], "trainer": trainer}
    return {_typed(name): value for name, value in leaves(parts) if value is not None}


def named_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the options of the menu by their names, as loggers show them."""
    found = settings(config)
    named = {name.removesuffix(f".{CLASS}"): value for name, value in found.items()}
    options = {part: _option(part, found) for part in named if f"{part}.{CLASS}" in found}
    return named | options | {"selector": option_of_collection("selector", collection("selector", found)).name}


def is_fixed(name: str) -> bool:
    """Whether a setting cannot change in the course of a run."""
    return any(fnmatch(name.removesuffix(f".{CLASS}"), pattern) for pattern in FIXED)


def _typed(name: str) -> str:
    """Return what is typed for a setting: the menu's name for it or for the group that it is in."""
    place = max((p for p in MENU if f"{name}.".startswith(f"{p}.")), key=len, default="")
    typed = (MENU.get(place, "") + name.removeprefix(place)).lstrip(".")
    return typed if typed not in ("", CLASS) else name


def _below(parts: Iterable[str], name: str) -> bool:
    """Whether a setting is one of the parts or belongs to one."""
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def _option(part: str, settings: Mapping[str, Any]) -> str:
    """Return what is typed for a part as it is in some settings."""
    inside = within(part, settings)
    return option_of_part(inside).name if CLASS in inside else _shown(settings.get(part))


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
