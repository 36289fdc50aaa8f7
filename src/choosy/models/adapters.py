"""Which model and which trained adapter a run starts from."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from choosy.models.checksums import refuse_changed
from choosy.models.locate import refuse_lone_name, refuse_unreachable

CONFIG = "adapter_config.json"
REWRITES = ("pissa", "olora", "corda", "eva", "loftq")  # ways of starting that change the frozen weights too


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters, in fp32 on frozen weights.

    Args:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        targets: Which layers: `all-linear`, names, or a regular expression of whole names.
        options: Further arguments of PEFT's LoraConfig, such as use_dora, use_rslora, modules_to_save.
    """

    r: int = 16
    alpha: int = 32
    targets: str | list[str] = "all-linear"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"model.lora.r={self.r} trains nothing; choose r >= 1, or model.lora=null.")
        if "lora_dropout" in self.options:
            raise ValueError(
                "model.lora.options.lora_dropout would have no effect: every dropout is 0, so that a response is "
                "scored as it is sampled; leave it out."
            )
        start = str(self.options.get("init_lora_weights", "")).lower()
        if start.startswith(REWRITES):
            raise ValueError(
                f"model.lora.options.init_lora_weights={start} changes the frozen weights, with which no adapter is "
                "saved; choose true, gaussian or orthogonal."
            )


class StartingPoint(NamedTuple):
    """A model's folder or hub id, and the folder or hub id of its adapter."""

    name: str
    adapter: str | None


def starting_point(name: str, adapter: str | None, lora: Lora | None, *, typed: Collection[str] = ()) -> StartingPoint:
    """Return the model and the adapter that two names stand for, either of which may be a run's folder.

    Args:
        name: A model; or a folder with an adapter, which then starts from the model that it was trained on.
        adapter: A trained adapter.
        lora: Settings of a new adapter.
        typed: Names of options that were typed; `model.lora.r` among them asks for a rank even if it is the default.

    Raises:
        ValueError: There is no adapter in the folder, or it has other settings than `lora`.
    """
    whole, of_name = _in_run(name, "model", "config.json"), _in_run(name, "adapter", CONFIG)
    if (whole / "config.json").exists():
        name = str(whole)
    elif (of_name / CONFIG).exists():
        if adapter is not None and _in_run(adapter, "adapter", CONFIG) != of_name:
            raise ValueError(f"model.name={name} is an adapter, and model.adapter={adapter} another; leave one out.")
        name, adapter = str(_config(of_name).get("base_model_name_or_path")), str(of_name)
        if name == "None":
            raise ValueError(f"{adapter} does not say what model it was trained on; type model.name=... too.")
    if adapter is None:
        return StartingPoint(name, None)
    folder = _in_run(adapter, "adapter", CONFIG)
    if (folder / CONFIG).exists():
        adapter = str(folder)
        if lora is not None:
            _refuse_overruled(adapter, _config(folder), lora, typed)
    elif Path(adapter).expanduser().exists() or adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
        is_model = (_in_run(adapter, "model", "config.json") / "config.json").exists()
        type_this = f"type model.name={adapter}" if is_model else "check the path"
        raise ValueError(f"model.adapter={adapter} holds no adapter: there is no {CONFIG} in it; {type_this}.")
    return StartingPoint(name, adapter)


def with_tokenizer(adapter: str | None) -> str | None:
    """Return the adapter if its folder holds a tokenizer, whose chat template it was trained with; else None."""
    return adapter if adapter and (Path(adapter) / "tokenizer_config.json").exists() else None


def refuse_model(model: Mapping[str, Any], *, typed: Collection[str] = ()) -> None:
    """Refuse a configured model or adapter that is not there, where the policy is Choosy's own.

    Args:
        model: The configuration of the policy.
        typed: As of `starting_point`.
    """
    if model.get("_target_") == "choosy.models.policy.Policy":
        lora = model.get("lora") and Lora(**{name: value for name, value in model["lora"].items() if name[0] != "_"})
        name, adapter = starting_point(model["name"], model.get("adapter"), lora, typed=typed)
        for folder in filter(None, (name, adapter)):
            refuse_changed(folder)
        if not name.startswith("demo:"):
            refuse_lone_name(name)
            refuse_unreachable(name, model.get("revision"))


def _in_run(name: str, part: str, file: str) -> Path:
    """Return the folder of this name, or the part of it that a run has written."""
    folder = Path(name).expanduser()
    return folder / part if (folder / part / file).exists() and not (folder / file).exists() else folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{folder / CONFIG} does not describe an adapter: wanted an object, found {found!r:.40}.")
    return found


def _refuse_overruled(adapter: str, config: Mapping[str, Any], lora: Lora, typed: Collection[str]) -> None:
    """Refuse settings of a new adapter that a trained one overrules; defaults that were not typed ask for nothing."""
    new = Lora()
    for name, its in (("r", "r"), ("alpha", "lora_alpha"), ("targets", "target_modules")):
        asked, has = getattr(lora, name), config.get(its)
        if (asked != getattr(new, name) or f"model.lora.{name}" in typed) and _plain(asked) != _plain(has):
            raise ValueError(
                f"model.adapter={adapter} has {its}={has}, and model.lora.{name}={asked} would change nothing; leave "
                f"out model.lora.{name}, or model.adapter for a new adapter."
            )
    different = {name: value for name, value in lora.options.items() if config.get(name) != value}
    if different:
        raise ValueError(
            f"model.adapter={adapter} has its own settings, and model.lora.options={different} would change nothing; "
            "leave them out."
        )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
