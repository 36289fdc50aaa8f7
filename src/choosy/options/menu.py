"""Reads the options of a run, with their comments, from the YAML files of conf/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

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
    shown = listing({k: v for k, v in config.items() if k not in ("run", "module")}, said)
    lines += [option.line for option in shown]
    return "\n".join(lines)


class Option(NamedTuple):
    """An option as it is shown: its name, its value (None for settings with names of their own), what is said of it."""

    name: str
    value: str | None
    said: str

    @property
    def line(self) -> str:
        """Its line of the help."""
        comment = f"  # {self.said}" if self.said else ""
        return f"{self.name}{comment}" if self.value is None else f"{self.name}={self.value}{comment}"


def listing(node: Mapping[str, Any], said: Mapping[str, str], place: str = "") -> Iterator[Option]:
    """Yield the options of a configuration; what is said of one is the words that it takes, and its comment.

    Args:
        node: The configuration.
        said: The comment of each option, by its dotted name.
        place: What stands before each name, such as "labeler.".

    Example:
        >>> [option.line for option in listing({"r": 16, "options": {}}, {"model.lora.r": "the rank"}, "model.lora.")]
        ['model.lora.r=16  # the rank', 'model.lora.options={}']
    """
    takes = signature(node["_target_"]) if "_target_" in node and node["_target_"] != "???" else None
    for key, value in node.items():
        name = f"{place}{key}"
        argument = takes.arguments.get(key) if takes else None
        known = choices(argument.annotation, argument.module) if argument else []
        words = "; ".join(filter(None, (" | ".join(map(str, known)), said.get(name, ""))))
        if isinstance(value, Mapping) and value:
            if words:
                yield Option(name, None, words)
            yield from listing(value, said, f"{name}.")
        elif key not in ("_target_", "_partial_") and str(value) not in WIRES:
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield Option(name, shown, words)
