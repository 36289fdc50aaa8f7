"""Reads the options of a run, with their comments, from the YAML files of conf/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from choosy.options.signatures import signature
from choosy.options.values import choices
from choosy.options.yaml_text import load_yaml

WIRES = (
    "${run}",
    "${run_dir}",
    "${labeler}",
    "${editor}",
    "${oc.dict.values:callbacks}",
    "${oc.dict.values:logger}",
)  # nothing to choose


def conf_text(*path: str) -> str:
    """Return the text of a file of conf/; "" if there is none, as for a file of the user's own."""
    file = files("choosy.conf").joinpath(*path[:-1], f"{path[-1]}.yaml")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def menu() -> dict[str, Any]:
    """Return conf/train.yaml; its `defaults` are the names of the groups."""
    found: dict[str, Any] = load_yaml(conf_text("train"))
    pairs = [entry if isinstance(entry, dict) else {entry: None} for entry in found["defaults"]]
    found["defaults"] = [name.rpartition("@")[2] for pair in pairs for name in pair]
    return found


def chosen(group: str, option: str) -> Iterator[str]:
    """Yield the texts of a group's file and of the files of the group that it starts from.

    Example:
        >>> [text.splitlines()[0] for text in chosen("trainer", "cpu")]
        ['# one CPU process', '# one device, the best there is']
    """
    text = conf_text(group, option)
    yield text
    for entry in (load_yaml(text) or {}).get("defaults", []) if text else []:
        if isinstance(entry, str) and entry != "_self_":
            yield from chosen(group, entry)


def comments(text: str) -> dict[str, str]:
    r"""Return the comment behind each option of a YAML file, by the option's dotted name.

    Example:
        >>> comments("a:  # one\n  b: 1  # two\nc: '#'\n")
        {'a': 'one', 'a.b': 'two'}
    """
    found: dict[str, str] = {}
    place: list[tuple[int, str]] = []
    for line in text.splitlines():
        key, colon, rest = line.partition(":")
        if not colon or key.lstrip().startswith(("#", "-")):
            continue
        depth = len(key) - len(key.lstrip())
        place = [(d, name) for d, name in place if d < depth] + [(depth, key.strip())]
        _, hash_mark, comment = rest.partition("  # ")
        if hash_mark:
            found[".".join(name for _, name in place)] = comment.strip()
    return found


def about(text: str) -> str:
    """Return what a file of conf/ says that it is for, in its first comment."""
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    return next((line for line in lines if not line.startswith("@package")), "")


def help_text(config: Mapping[str, Any], choices: Mapping[str, str], groups: Mapping[str, list[str]]) -> str:
    """Return the help on every group and option of a composed configuration.

    Args:
        config: With interpolations as they are written.
        choices: The option chosen in each group.
        groups: All options of each group.
    """
    lines = ["Groups: type GROUP=OPTION", ""]
    for group, options in groups.items():
        lines.append(f"{group}:")
        for option in options:
            mark = "*" if choices.get(group) == option else " "
            lines.append(f"  {mark} {option:25} {about(conf_text(group, option))}".rstrip())
    said = comments(conf_text("train"))
    for group, option in choices.items():
        for text in reversed([*chosen(group, option)] if option else []):
            place = "callbacks." if "# @package callbacks" in text else f"{group}."
            said |= {f"{place}{name}": comment for name, comment in comments(text).items()}
    lines += ["", "Options: type NAME=VALUE, such as model.lora.r=8; another group's choice shows its own options", ""]
    lines += _listing({k: v for k, v in config.items() if k not in ("run", "module")}, said, "")
    return "\n".join(lines)


def _listing(node: Mapping[str, Any], said: Mapping[str, str], name: str) -> Iterator[str]:
    takes = signature(node["_target_"]) if "_target_" in node else None
    for key, value in node.items():
        option = f"{name}{key}"
        argument = takes.arguments.get(key) if takes else None
        known = choices(argument.annotation, argument.module) if argument else []
        words = "; ".join(filter(None, (" | ".join(map(str, known)), said.get(option, ""))))
        comment = f"  # {words}" if words else ""
        if isinstance(value, Mapping) and value:
            if comment:
                yield f"{option}{comment}"
            yield from _listing(value, said, f"{option}.")
        elif key not in ("_target_", "_partial_") and str(value) not in WIRES:
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            yield f"{option}={shown}{comment}"
