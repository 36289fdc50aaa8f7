"""What README and docs tell people to type is there: every setting composes, and every command of the README runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny import ROOT, command

from choosy.main import compose

README = ROOT / "README.md"
PAGES = [README, *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ("log.md",))]
NOT_HERE = {  # words of a command that a test machine cannot run, and what they need
    r"^make ": "installs from the network",
    r"^pip ": "installs from the network",
    r"^source ": "sets up a shell",
    r"labeler=human": "people",
    r"labeler=queue": "people",
    r"labeler=judge": "a judge's endpoint",
    r"submitit_slurm|^srun|^#SBATCH|^sbatch": "SLURM",
    r"trainer=(gpu|ddp|fsdp|multi_node)|sampler=vllm": "a GPU",
    r"experiment=(compare|apl|real|optune)": "many runs, or large models",
    r"choosy compare": "a finished sweep",
}
TINY = ["trainer=cpu", "model.dtype=float32", "data.limit=4", "data.heldout_limit=2", "batching.batch_size=4"]
TINY += [
    "labeler=function",
    "labeler.path=my_rewards.py:helpful",
    "rounds=1",
    "sampler.max_new_tokens=6",
    "callbacks.report.console=false",
    "~logger.tensorboard",
]


def blocks(text: str) -> Iterator[list[str]]:
    """The commands of each code block: one a line, continued lines joined, without comments.

    >>> list(blocks("a\\n```\\nb \\\\\\n  c  # d\\n\\n# e\\n```\\n"))
    [['b c']]
    """
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        typed = [re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in lines]
        yield [line for line in typed if line]


def commands(path: Path) -> list[str]:
    """Every command of a page's code blocks, one that joins several by && as several."""
    return [part.strip() for block in blocks(path.read_text()) for line in block for part in line.split("&&")]


def settings_of(line: str) -> list[str]:
    """The overrides in a command for Hydra, without its flags."""
    words = shlex.split(line.split(" > ")[0])
    first = next(i for i, word in enumerate(words) if word in ("train.py", "train")) + 1
    return [word for word in words[first:] if re.match(r"[+~]{0,2}[\w.@/]+=|~", word)]


def typed(path: Path) -> list[str]:
    """The commands of a page that train."""
    return [line for line in commands(path) if re.search(r"train\.py |choosy train ", f"{line} ")]


def alternatives(word: str) -> list[str]:
    """What a setting in the text stands for.

    >>> alternatives("loss=ipo|hinge")
    ['loss=ipo', 'loss=hinge']
    """
    name, _, values = word.partition("=")
    return [f"{name}={value}" for value in values.split("|")]


def mentioned() -> set[str]:
    """The settings that the README names in its text, such as `loss=ipo|hinge` or `labels.budget=500`."""
    text = re.sub(r"^```.*?^```", "", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    words = [word for code in re.findall(r"`([^`]+)`", text) for word in code.split()]
    found = [word for word in words if re.fullmatch(r"\+?[a-z][a-z\w.@/]*=[^=]+", word)]
    return {one for word in found for one in alternatives(word)}


SWEEPS = {
    f"experiment={path.stem}" for path in (ROOT / "conf/experiment").glob("*.yaml") if "\nhydra:" in path.read_text()
}


def single(overrides: list[str]) -> list[str]:
    """The overrides of one job of a sweep, with a value for those that are left open, and without what is Hydra's."""
    rest = (word for word in overrides if not word.startswith("hydra") and word not in SWEEPS)
    return [re.sub(r"\.\.\.|\b[A-Z]{3,}\b", "x", re.split(r",(?![^{[]*[]}])", word)[0]) for word in rest]


TYPED = [pytest.param(line, id=f"{path.name}: {line}") for path in PAGES for line in typed(path)]


@pytest.fixture(scope="module")
def menu() -> set[str]:
    """Every name that some choice of the menu knows, and every choice as group=option."""
    groups = sorted(path.name for path in (ROOT / "conf").iterdir() if any(path.glob("*.yaml")))
    choices = [f"{group}={file.stem}" for group in groups for file in (ROOT / "conf" / group).glob("*.yaml")]
    names = {name for choice in choices for name in dotted(OmegaConf.to_container(compose([choice])))}
    return names | set(choices)


def dotted(node: Any, name: str = "") -> Iterator[str]:
    if name:
        yield name
    if isinstance(node, dict):
        for key, value in node.items():
            yield from dotted(value, f"{name}.{key}" if name else key)


@pytest.mark.parametrize("line", TYPED)
def test_what_is_typed_composes(line):
    compose(single(settings_of(line)))


def test_what_the_readme_names_is_on_the_menu(menu):
    groups = {choice.split("=")[0] for choice in menu if "=" in choice}
    named = {re.sub(r"@[\w.]+=", "=", word) for word in mentioned()}  # labeler@labels.evaluation=judge is a labeler
    unknown = {word for word in named if word.split("=")[0] in groups} - menu
    unknown |= {word for word in named if (name := word.split("=")[0]) not in groups and name.lstrip("+") not in menu}
    assert unknown <= OF_EVALUATE
    assert len(named) > 20
    assert len(typed(README)) >= 4


OF_EVALUATE = {"data=FILE", "data=my"}  # words of choosy evaluate


def messages() -> Iterator[str]:
    """The texts in the sources; what is filled in is {}."""
    for folder in ("src", "callbacks", "data_modules"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            nodes = [*ast.walk(ast.parse(path.read_text()))]
            filled = [node for node in nodes if isinstance(node, ast.JoinedStr)]
            parts = {id(part) for node in filled for part in node.values}
            for node in filled:
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from (
                n.value
                for n in nodes
                if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in parts
            )


def test_every_option_that_a_message_names_is_on_the_menu(menu):
    """Dotted names, and the choices of groups; a plus is before what only a class knows."""
    groups = {choice.split("=")[0] for choice in menu if "=" in choice}
    option = re.compile(r"(?<![\w.@/{}\[+-])~?([a-z]\w*)((?:\.\w+)*)(?:@[\w.]+)?=([\w|]*)(?![\w{/]|\.\w)")
    named = {found for text in messages() for found in option.findall(text)}
    unknown = {first + below for first, below, _ in named if below and first != "hydra"} - menu
    unknown |= {
        f"{first}={one}"
        for first, below, value in named
        if first in groups and not below
        for one in value.split("|")
        if one
    } - menu
    assert unknown <= OF_EVALUATE
    assert len(named) > 100


# -- the README's commands, one after the other in one folder ------------------------------------------------------


@pytest.fixture
def shell(tmp_path, tiny_policy_dir, prompts_file):
    """Run a command as typed, where `python train.py` and `choosy train` play tiny runs on the tiny policy."""
    rows = [{"prompt": f"Why {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(4)]
    pairs = "".join(json.dumps(row) + "\n" for row in rows)
    folder = tmp_path / "typed"
    folder.mkdir()
    for name, text in {"pairs": pairs, "prompts": prompts_file.read_text(), "test": prompts_file.read_text()}.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "my_rewards.py").write_text("def helpful(prompt, response):\n    return sum(map(ord, response)) % 7\n")
    tiny = [*TINY, f"model.name={tiny_policy_dir}"]

    def run(typed: str) -> None:
        typed, _, output = typed.partition(" > ")
        program, *words = shlex.split(typed)
        if words[0] in ("train.py", "train"):  # Hydra wants the settings together, before or after its flags
            last = max((i for i, word in enumerate(words) if "=" in word), default=0)
            words[last + 1 : last + 1] = tiny
        entry = {"python": [str(ROOT / words[0]), *words[1:]], "choosy": ["-m", "choosy", *words]}[program]
        done = command(*entry, folder=folder, timeout=600)
        assert done.returncode == 0, f"{typed}\n{done.stderr}"
        if output:
            (folder / output).write_text(done.stdout)

    return run


@pytest.mark.slow
@pytest.mark.demo
def test_the_commands_of_the_readme_run(shell):
    left_out: dict[str, str] = {}
    shell("python train.py experiment=demo name=demo")  # which the README makes by `make demo`
    for line in commands(README):
        reason = next((why for words, why in NOT_HERE.items() if re.search(words, line)), None)
        if reason:
            left_out[line] = reason
        elif line.startswith(("python ", "choosy ")):
            shell(line)
        else:
            assert "->" in line or line.startswith("slot"), f"say in NOT_HERE why this cannot run: {line}"
    assert len(left_out) < len(commands(README)) / 2
