"""What README and docs tell people to type is there: every setting composes, and every command of the README runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from choosy.main import compose

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ("log.md",))]
TRAIN = ("python train.py ", "choosy train ")
NOT_HERE = {  # words of a command that a test machine cannot run, and what they need
    r"^make ": "installs from the network",
    r"^pip ": "installs from the network",
    r"^source ": "sets up a shell",
    r"labeler=human": "people",
    r"labeler=queue": "people",
    r"labeler=judge": "a judge's endpoint",
    r"submitit_slurm|^srun|^#SBATCH|^sbatch": "SLURM",
    r"trainer=(gpu|ddp|fsdp|multi_node)|sampler=vllm": "a GPU",
    r"experiment=": "many runs",
}
TINY = ["trainer=cpu", "model.dtype=float32", "data.limit=4", "data.heldout_limit=2", "batching.batch_size=4"]
TINY += [
    "labeler=function",
    "labeler.path=my_rewards.helpful",
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
        commands = [re.sub(r"(^|\s+)#\s.*", "", line).strip() for line in lines]
        yield [command for command in commands if command]


def commands(path: Path) -> list[str]:
    """Every command of a page's code blocks, one that joins several by && as several."""
    return [part.strip() for block in blocks(path.read_text()) for line in block for part in line.split("&&")]


def settings_of(command: str) -> list[str]:
    """The overrides in a command for Hydra, without its flags."""
    words = shlex.split(command.split(" > ")[0])
    first = next(i for i, word in enumerate(words) if word in ("train.py", "train")) + 1
    return [word for word in words[first:] if re.match(r"[+~]{0,2}[\w.@/]+=|~", word)]


def typed(path: Path) -> list[str]:
    """The commands of a page that train."""
    return [command for command in commands(path) if re.search(r"train\.py |choosy train ", f"{command} ")]


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


def single(overrides: list[str]) -> list[str]:
    """The overrides of one job of a sweep, with a value for those that are left open, and without what is Hydra's."""
    rest = (word for word in overrides if not word.startswith(("hydra", "experiment=")))
    return [re.sub(r"\.\.\.|\b[A-Z]{3,}\b", "x", word.split(",")[0]) for word in rest]


TYPED = [pytest.param(command, id=f"{path.name}: {command}") for path in PAGES for command in typed(path)]


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


@pytest.mark.parametrize("command", TYPED)
def test_what_is_typed_composes(command):
    compose(single(settings_of(command)))


def test_what_the_readme_names_is_on_the_menu(menu):
    groups = {choice.split("=")[0] for choice in menu if "=" in choice}
    named = {re.sub(r"@[\w.]+=", "=", word) for word in mentioned()}  # labeler@labels.evaluation=judge is a labeler
    unknown = {word for word in named if word.split("=")[0] in groups} - menu
    unknown |= {word for word in named if (name := word.split("=")[0]) not in groups and name.lstrip("+") not in menu}
    assert unknown == set()
    assert len(named) > 20
    assert len(typed(README)) >= 4


# -- the README's commands, one after the other in one folder ------------------------------------------------------


PROGRAM = """
import os, sys
words = sys.argv[1:]
if words[0] in ("train.py", "train"):  # what makes the run tiny comes after the last setting: Hydra wants them together
    last = max((i for i, word in enumerate(words) if "=" in word), default=0)
    words[last + 1 : last + 1] = {tiny!r}
    words[0] = words[0].replace("train.py", "{root}/train.py")
os.execv(sys.executable, [sys.executable, *(["-m", "choosy"] if "{name}" == "choosy" else []), *words])
"""


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
    for name in ("python", "choosy"):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!{sys.executable}\n" + PROGRAM.format(root=ROOT, name=name, tiny=tiny))
        file.chmod(0o755)
    paths = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def run(command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    return run


@pytest.mark.slow
@pytest.mark.demo
def test_the_commands_of_the_readme_run(shell):
    left_out: dict[str, str] = {}
    shell("python train.py name=demo")  # which the README makes by `make demo`
    for command in commands(README):
        reason = next((why for words, why in NOT_HERE.items() if re.search(words, command)), None)
        if reason:
            left_out[command] = reason
        elif command.startswith(("python ", "choosy ")):
            shell(command)
        else:
            assert "->" in command or command.startswith("slot"), f"say in NOT_HERE why this cannot run: {command}"
    assert len(left_out) < len(commands(README)) / 2
