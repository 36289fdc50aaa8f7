"""Says what is wrong with a word of the command line that Hydra cannot read or compose."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from choosy.options.check import unknown
from choosy.options.names import CHOICES, HINTS, any_of, file_meant, meant
from choosy.options.parts import choices_with

Options = Callable[[], list[str]]  # the names of all options, which take a moment to find
MODEL_FILES = ("config.json", "adapter_config.json")
NO_GROUP = "Config group override must be a string"  # a plain ValueError of Hydra


def unreadable(word: str, options: Options) -> str:
    """Return a sentence on a word that Hydra's grammar does not have."""
    name, equals, value = word.partition("=")
    if not equals:
        known, is_model = options(), any((Path(word) / file).exists() for file in MODEL_FILES)
        near = f"Type {name}=..." if name in known else meant(name, known)
        if Path(word).exists():
            option = "model.name" if is_model else "data.train"
            near = f"Type {shlex.quote(f'{option}={quoted(word)}')}."
        return f"{word} has no value: an option is typed as NAME=VALUE. {near}".rstrip()
    if "'" in value or '"' in value:
        return f"{word} cannot be read: its quotes do not match. A text is typed as {in_shell(name, 'a text')}."
    return f"{word} cannot be read; a value with = ~ or brackets in it needs quotes: {in_shell(name, value)}"


def refuse_dashes(words: Sequence[str], flags: Collection[str], options: Options) -> None:
    """Refuse options that are typed with dashes and are none of Hydra's flags; each value may be a word of its own."""
    found: list[str] = []
    names: list[str] = []
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag not in flags:
            name = flag[2:].replace("-", "_")
            value = value if equals or following.startswith("-") or "=" in following else following
            names = names or options()
            known_as = f"type {name}={value or '...'}." if name in names else meant(name, names, value)
            found.append(f"{word}: options have no dashes here: {known_as or f'there is no {name}.'}")
    if found:
        raise ValueError("\n".join(found))


def flags_first(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return the words of the command line with the options behind the flags: the parser takes them in one place only.

    Example:
        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("overrides", nargs="*"), parser.add_argument("-m", action="store_true")
        >>> flags_first(["lr=1", "-m", "seed=0,1"], parser)
        ['-m', 'lr=1', 'seed=0,1']
    """
    typed, others = parser.parse_known_args(words)
    options = [*typed.overrides, *others]
    return [*(word for word in words if word not in options), *options]


def not_composed(text: str, options: Options, words: Collection[str]) -> str:
    """Return a sentence on an error of Hydra, by its text and the words of the command line."""
    if text.startswith(NO_GROUP):
        nulls = " ".join(word for word in words if word.endswith("=null"))
        others = "selector=none, weighting=uniform, labels.evaluation=none, ~editor, ~logger or ~callbacks"
        return f"{nulls} names no choice of a group; type {others}."
    if found := re.search(r"Could not find '([^'/]+)/+(.*)'", text):
        group, option = found.groups()
        choices = [line.strip() for line in text.split("Config search path")[0].splitlines() if line.startswith("\t")]
        here = CHOICES.get(group, {}).get(option.lower().replace("-", "_"))
        near = f"For {option} type {group}={here}." if here else meant(option, choices)
        sentences = [f"There is no {group}={option}.", near, HINTS.get(group, ""), f"Choices: {', '.join(choices)}."]
        return " ".join(filter(None, sentences))
    if found := re.search(r"Additional config directory '(.*)' not found", text):
        return f"--config-dir={found[1]}: there is no such folder; {file_meant(Path(found[1])) or 'check the path.'}"
    if "rimary config" in text:
        return "--config-path and --config-name are not for Choosy's menu; files of yours go by --config-dir FOLDER."
    if found := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        gone = [word for word in words if word.startswith("~") and f"{found[1]}.".startswith(f"{word[1:]}.")]
        if gone and "delete" not in found[0]:
            return f"{gone[0]} takes {gone[0][1:]} away, and {found[1]} is typed too; leave out one of them."
        if sentence := of_some_arms(found[1], words):
            return sentence
        values = {name.lstrip("+"): value for name, _, value in (word.partition("=") for word in words)}
        known = options()
        of_menu = {*known, found[1]}  # others may be options in a table, such as columns, or of another choice
        more = [name for name in values if name.isidentifier() and name not in of_menu and not choices_with(name)]
        return "\n".join(unknown(name, known, values.get(name, "")) for name in (found[1], *more))
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found[1]} is there already; type {found[1]}=... without the plus."
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        name, value = found.groups()
        one, many = in_shell(name, value), shlex.quote(f"{name}=[{value}]")
        return f"{name}={value} may be a text, a list or a sweep; type {one}, {many}, or -m for a run of each."
    return text


def of_some_arms(name: str, words: Collection[str]) -> str:
    """Return how a sweep is typed in which only some choices of a group have an option; "" where it is no such sweep.

    Example:
        >>> print(of_some_arms("callbacks.optune.count", ["selector=optune,random", "callbacks.optune.count=8"]))
        callbacks.optune.count is of selector=optune alone; type two calls, which go into one folder:
          choosy train -m experiment=compare selector=random
          choosy train -m experiment=compare selector=optune callbacks.optune.count=8
    """
    owners = choices_with(name)
    for word in words:
        group, _, values = word.partition("=")
        arms = values.split(",")
        have = [arm for arm in arms if f"{group}={arm}" in owners]
        if have and len(have) < len(arms):
            own = [word for word in words if word.lstrip("+").startswith(f"{name}=")]
            rest = [one for one in words if one not in (word, "experiment=compare", *own)]
            calls = [
                [f"{group}={','.join(arm for arm in arms if arm not in have)}"],
                [f"{group}={','.join(have)}", *own],
            ]
            lines = [shlex.join(["choosy", "train", "-m", "experiment=compare", *call, *rest]) for call in calls]
            of = f"{group}={any_of(have)}"
            return "\n  ".join([f"{name} is of {of} alone; type two calls, which go into one folder:", *lines])
    return ""


def own_menu(folder: str | Path) -> str:
    """Return the option that Hydra has for a folder of the user's own menu, wherever it is read."""
    return f"hydra.searchpath=['file://{Path(folder).resolve()}']"


def in_the_shell(words: Collection[str]) -> list[str]:
    """Return the words of a run as they are typed, with --config-dir for a folder of the user's own menu.

    Example:
        >>> in_the_shell([own_menu("menu"), "lr=1"]), in_the_shell([own_menu("/else/where")])
        (['--config-dir', 'menu', 'lr=1'], ['--config-dir', '/else/where'])
    """
    typed: list[str] = []
    for word in words:
        folder = re.fullmatch(r"hydra\.searchpath=\['file://(.*)'\]", word)
        if folder is None:
            typed.append(word)
        else:
            path = Path(folder[1])
            typed += ["--config-dir", os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)]
    return typed


def program(name: str) -> str:
    """Return a program of this environment as it is typed: its path where the shell finds none or another one."""
    own, found = Path(sys.executable).with_name(name), shutil.which(name)
    if not own.exists() or (found is not None and Path(found).parent == own.parent):
        return name
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def quoted(value: str) -> str:
    r"""Return a text as Hydra's command line takes it.

    Example:
        >>> print(quoted("runs/demo"), quoted("runs/a b [1]"), quoted("it's"))
        runs/demo 'runs/a b [1]' 'it\'s'
    """
    if re.fullmatch(r"[\w/.+-]+", value, re.ASCII):
        return value
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"


def at_home(word: str) -> str:
    """Return a word of the command line, with the home folder in its values that begin with a tilde.

    A shell replaces a tilde only where the word itself begins with it.

    Example:
        >>> home = os.path.expanduser("~")
        >>> at_home("data.train=[~/a.jsonl,b.jsonl]") == f"data.train=[{home}/a.jsonl,b.jsonl]"
        True
        >>> at_home("~logger"), at_home("name=a~b")
        ('~logger', 'name=a~b')
    """

    def expanded(found: re.Match[str]) -> str:
        path = os.path.expanduser(found["path"])
        return found["mark"] + path if found["mark"] or word.startswith("-") else quoted(path)

    return re.sub(r"(?<=[=\[,])(?P<mark>['\"]?)(?P<path>~[\w.-]*(?:/[^,\]'\"]*)?)(?=$|[,\]'\"])", expanded, word)


def in_shell(name: str, value: str) -> str:
    """Return an option whose value is one text, as a shell takes it.

    Example:
        >>> print(in_shell("name", "lr=1"))
        "name='lr=1'"
    """
    word = f"{name}={quoted(value)}"
    return f'"{word}"' if not re.search(r'["$`\\!]', word) else shlex.quote(word)
