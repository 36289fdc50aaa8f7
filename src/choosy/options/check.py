"""Refuses a configuration that no run can be built from, with a sentence for each mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from choosy.options.names import WHY_NONE, any_of, meant
from choosy.options.parts import choices_with
from choosy.options.signatures import Missing, Signature, signature
from choosy.options.values import wanted
from choosy.redaction import texts

REFERENCE = re.compile(r"\$\{([\w.]+)\}$")
NO_PART = ("defaults", "hydra", "_self_", "experiment", "labels.evaluation", "selector")  # of a composed configuration
AT_LEAST_ONE = {  # numbers of which 0 leaves nothing
    *("rounds", "epochs_per_round", "batching.batch_size", "batching.tokens_per_step", "sampler.max_new_tokens"),
    *("data.limit", "data.heldout_limit", "data.prompts_per_round", "data.responses", "data.own_samples"),
    *("model.lora.r", "labels.budget", "trainer.devices", "trainer.num_nodes"),
}
OURS = ("choosy.", "data_modules.", "torch.optim.")  # classes that take no negative number
INSTEAD = {  # flags of Lightning's Trainer without effect here: the values that change nothing, and what to type
    "accumulate_grad_batches": ((1, None), WHY_NONE["accumulate_grad_batches"]),
    "gradient_clip_val": ((None,), "Type max_grad_norm=1.0"),
    "precision": ((None, "32-true", "32", 32), "Type model.dtype=bfloat16 or model.dtype=float32"),
    "use_distributed_sampler": ((False,), "The batches of a round are shared out already"),
    "reload_dataloaders_every_n_epochs": ((1,), "Each round has its own batches"),
}


def refuse_mistakes(config: Mapping[str, Any], resolved: Mapping[str, Any], *, menu: Mapping[str, Any]) -> None:
    """Raise a ValueError with a sentence for each option that is unknown, missing, or of a wrong type.

    Args:
        config: The composed configuration, with interpolations as they are written.
        resolved: The same with their values.
        menu: The options that Choosy has besides the arguments of classes: conf/train.yaml.
    """
    found = [*_unused(config, menu), *_mistakes(config, resolved, "", options(config)), *_rounds(resolved)]
    once: dict[tuple[str, str], str] = {}  # an option may stand in several places
    for sentence in found:
        once.setdefault((sentence.split(" wants ")[0].rpartition(".")[2], sentence.rpartition("found")[2]), sentence)
    if once:
        raise ValueError("\n".join(once.values()))


def refuse_blanks(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for values that only the user can give."""
    if found := blanks(config):
        raise ValueError(f"{' and '.join(found)} must be given; type {' '.join(f'{name}=...' for name in found)}")


def blanks(config: Any) -> list[str]:
    """Return the names of all values that are ???.

    Example:
        >>> blanks({"data": {"train": "???", "limit": None}})
        ['data.train']
    """
    return [name for name, value in texts(config) if value == "???"]


def refuse_removed(config: Mapping[str, Any], menu: Mapping[str, Any]) -> None:
    """Raise a ValueError for a part that every run needs, and that was taken away."""
    needed = {*menu, *menu["defaults"]} - {*NO_PART}
    if gone := sorted(name for name in needed if name not in config):
        raise ValueError(f"A run needs {' and '.join(gone)}; leave out ~{gone[0]}.")


def options(node: Any, name: str = "") -> list[str]:
    """Return the names of all options of a configuration.

    Example:
        >>> options({"data": {"_target_": "a.B", "train": "x"}, "lr": 1})
        ['data', 'data.train', 'lr']
    """
    below = [] if not isinstance(node, Mapping) else [(k, v) for k, v in node.items() if not str(k).startswith("_")]
    names = [found for k, v in below for found in options(v, f"{name}.{k}" if name else str(k))]
    return [name, *names] if name else names


def _unused(config: Mapping[str, Any], menu: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each option of the menu's own tables that nothing reads."""
    read = set(re.findall(r"\$\{([\w.]+)\}", str(config)))
    tables = {"": menu} | {
        k: v for k, v in menu.items() if isinstance(v, Mapping) and "_target_" not in v and k in config
    }
    for place, table in tables.items():
        known = {*table, *menu["defaults"]} if not place else table
        for key in config if not place else config[place]:
            name = f"{place}.{key}" if place else str(key)
            if key not in known and not any(r == name or r.startswith(f"{name}.") for r in read):
                value = (config[place] if place else config)[key]
                yield unknown(name, options(config), str(value) if isinstance(value, str | int | float) else "")


def unknown(name: str, known: Collection[str], value: str = "") -> str:
    """Return the sentence on a name, with its value if known, that is no option here.

    It may be one where a group has another choice.
    """
    if owners := choices_with(name):
        return f"There is no option {name}: it belongs to {any_of(owners[:6])}."
    others = [option for option in known if not f"{name}.".startswith(f"{option}.")]
    return f"There is no option {name}. {meant(name, others, value)}".rstrip()


def _mistakes(node: Any, value: Any, name: str, known: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each mistake in what a node builds, and below it."""
    if isinstance(node, list):
        for each, its_value in zip(node, value if isinstance(value, list) else [], strict=False):
            yield from _mistakes(each, its_value, name, known)
    if not isinstance(node, Mapping) or not isinstance(value, Mapping):
        return
    if "_target_" in node:
        try:
            found = signature(str(value["_target_"]))
        except Missing as missing:
            near = meant(missing.name, [f"{missing.name.rpartition('.')[0]}.{each}" for each in missing.known])
            yield f"{name}._target_={node['_target_']} names no class: there is no {missing.name}. {near}".rstrip()
        else:
            if found is not None:
                yield from _of_arguments(node, value, name, found, known)
    for key, below in node.items():
        yield from _mistakes(below, value.get(key), f"{name}.{key}" if name else str(key), known)


def _of_arguments(
    node: Mapping[str, Any], value: Mapping[str, Any], name: str, takes: Signature, known: Collection[str]
) -> Iterator[str]:
    is_ours = str(value["_target_"]).startswith(OURS)
    given = [key for key in node if not str(key).startswith("_")]
    for key in given:
        argument = takes.arguments.get(key)
        place = f"{name}.{key}"
        if argument is None:
            if not takes.takes_others:
                yield unknown(place, {*known, *(f"{name}.{each}" for each in takes.arguments)})
            continue
        typed = REFERENCE.match(node[key]) if isinstance(node[key], str) else None
        option = typed[1] if typed else place
        if value[key] != "???" and (words := wanted(value[key], argument.annotation, argument.module)) is not None:
            yield f"{option} wants {words}, found {_shown(value[key])}."
        elif (typed or is_ours or option in AT_LEAST_ONE) and (least := _least(option, value[key])) is not None:
            yield f"{option} wants {least}, found {value[key]}."
        elif name == "trainer" and key in INSTEAD and value[key] not in INSTEAD[key][0]:
            yield f"{place}={_shown(value[key])} is not for this run. {INSTEAD[key][1]}."
    if not node.get("_partial_"):
        blank = [k for k, a in takes.arguments.items() if a.is_required and k not in node]
        if blank:
            yield f"{any_of([f'{name}.{key}' for key in blank])} must be given; type +{name}.{blank[0]}=..."


def _least(option: str, value: Any) -> str | None:
    """Return what an option wants, if its value is a number that no run can use; None otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if not math.isfinite(value):
        return "a finite number"
    if (option, value) == ("trainer.devices", -1):  # all
        return None
    least = 1 if option in AT_LEAST_ONE else 0
    return f"a number of {least} or more" if value < least else None


def _rounds(resolved: Mapping[str, Any]) -> Iterator[str]:
    epochs, run = (resolved.get("trainer") or {}).get("max_epochs"), (resolved.get("data") or {}).get("run")
    rounds = run.get("rounds") if isinstance(run, Mapping) else None
    if isinstance(rounds, int) and epochs != rounds:
        yield f"trainer.max_epochs={epochs}, and a run has rounds={rounds} epochs; type rounds={epochs}."


def _shown(value: Any) -> str:
    return "null" if value is None else "settings" if isinstance(value, Mapping) else repr(value)
