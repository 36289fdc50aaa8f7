"""A run that goes on under another configuration: what has changed, and what a run cannot change any more."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import yaml

log = logging.getLogger(__name__)

# What the weights, the pool or the start's answers were made with.
FIXED = (
    "seed",
    *("model", "model.name", "model.revision", "model.adapter", "model.dtype", "model.chat_template"),
    *("model.lora", "model.lora.*"),
    *("data", "data.train", "data.heldout", "data.limit", "data.heldout_limit"),
    *("data.max_prompt_tokens", "data.max_response_tokens", "data.too_long", "data.as_chat"),
    *("reference", "module.optimizer"),
)
# What says where things lie or which processes compute, and nothing about what is computed.
PLACES = ("*.run_dir", "*.save_dir", "*.dirpath", "trainer.default_root_dir", "trainer.logger*", "trainer.callbacks*")
# The words of the menu for what they set.
TYPED = {
    "module.optimizer.lr": "lr",
    "module.warmup_steps": "warmup_steps",
    "module.max_grad_norm": "max_grad_norm",
    "module.reset_policy": "reset_policy",
    "data.rounds": "rounds",
    "data.batch_size": "batching.batch_size",
    "model.tokens_per_step": "batching.tokens_per_step",
    "data.epochs_per_round": "epochs_per_round",
    "data.train_on": "train_on",
    "data.reference": "reference",
    "data.keep": "pool.keep",
}
GROUPS = ("callbacks", "model", "labeler", "labels", "sampler", "weighting", "loss")  # what they lack is a change too
REPEATED = ("data.seed", "module.seed", "trainer.max_epochs")  # said once, as seed and rounds


class Change(NamedTuple):
    """One setting, as it was when the run began or was last resumed, and as it is wanted now."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {_shown(self.was)} -> {_shown(self.now)}"


def tell_changes(run_dir: Path, now: Mapping[str, Any]) -> None:
    """Say what differs from the run's config.yaml.

    Raises:
        ValueError: Something differs that cannot change in the course of a run.
    """
    file = run_dir / "config.yaml"
    if not file.exists():  # killed before it was written: nothing was done under it
        return
    found = changes(yaml.safe_load(file.read_text()), now)
    refused = [change for change in found if any(fnmatch(change.name, pattern) for pattern in FIXED)]
    if refused:
        raise ValueError(
            f"The run in {run_dir} cannot go on with {'; '.join(map(str, refused))}: its weights, responses and "
            "labels were made with the old value. Type the old value, or choose another name=... for a new run."
        )
    for change in found:
        log.warning("this run goes on with %s", change)


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What two configurations of a run set differently; either may be Hydra's or LightningCLI's.

    Example:
        >>> one = {"seed": 0, "module": {"policy": {"name": "a"}, "loss": {"beta": 0.1}}, "data": {}, "trainer": {}}
        >>> two = {**one, "module": {"policy": {"name": "b"}, "loss": {"beta": 0.1}}}
        >>> [str(change) for change in changes(one, two)]
        ["model.name: 'a' -> 'b'"]
    """
    old, new = dict(leaves(menu(was))), dict(leaves(menu(now)))
    moved = (run_dir_of(was), run_dir_of(now))
    found = []
    for name in sorted(old.keys() | new.keys()):
        if any(fnmatch(name, place) for place in PLACES) or name in REPEATED:
            continue
        one, two = old.get(name), new.get(name)
        if isinstance(one, str) and all(moved):
            one = one.replace(str(moved[0]), str(moved[1]))
        absent = name not in old or name not in new
        group = name.split(".")[0]
        if one == two or (absent and group not in GROUPS):
            continue
        found.append(Change(TYPED.get(name, name), one, two))
    return found


def menu(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in the groups of the menu, each setting once."""
    plain = without_wrappers(config)
    module, data, trainer = (dict(plain.get(k) or {}) for k in ("module", "data", "trainer"))
    if "module" not in plain:  # LightningCLI's word for it
        module = dict(plain["model"])
    parts = {group: data.pop(group, None) for group in ("sampler", "labels", "weighting")}
    parts["labeler"] = (parts["labels"] or {}).pop("labeler", None)
    callbacks = {str(c.get("_target_")).split(".")[-1]: c for c in trainer.pop("callbacks", None) or ()}
    trainer.pop("logger", None)
    policy, loss = module.pop("policy", None), module.pop("loss", None)
    if isinstance(policy, dict) and isinstance(policy.get("lora"), dict):
        policy["lora"].pop("_target_", None)  # LightningCLI writes the only class there is without its name
    seed = plain.get("seed", plain.get("seed_everything"))
    whole = {"seed": seed, "model": policy, "loss": loss, "module": module, "data": data, "trainer": trainer}
    return {**whole, **parts, "callbacks": callbacks}


def without_wrappers(node: Any) -> Any:
    """LightningCLI's `class_path` and `init_args` in Hydra's words."""
    if isinstance(node, list):
        return [without_wrappers(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if "class_path" in node:
        return {"_target_": node["class_path"], **without_wrappers(node.get("init_args") or {})}
    return {k: without_wrappers(v) for k, v in node.items() if k != "_partial_"}


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name; a class goes by the name of what it is the class of."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, name if key == "_target_" else f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def run_dir_of(config: Mapping[str, Any]) -> str | None:
    """Where the run lay under this configuration."""
    where = without_wrappers(config.get("data") or {}).get("run_dir")
    return None if where is None else str(where)


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
