"""What a run or a sweep prints under `Next:` works as it is typed, word for word."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
from annotator import TOKEN, annotator
from programs import free_port
from tiny import command, on_top, summary, typed

pytestmark = pytest.mark.slow

PAIRS = [{"prompt": f"Day {n}?", "chosen": "Good and long.", "rejected": "Bad!"} for n in range(6)]
SMALL = ["data.limit=4", "data.heldout_limit=2", "rounds=1", "callbacks.report.console=true", "name='my run'"]
RUNS = {
    "on-policy": [],
    "offline": ["data=offline", "data.heldout=null", "data.train=pairs.jsonl", "data.heldout_pairs=pairs.jsonl"],
    "human": ["labeler=human", "selector=random_pairs", "weighting=uniform", "labeler.grace=0"],
}


def next_lines(printed: str) -> list[str]:
    """The lines under `Next:`, without their comments."""
    _, _, lines = printed.rpartition("Next:\n")
    return [line.strip() for line in lines.splitlines()]


@pytest.mark.parametrize("kind", RUNS)
def test_what_a_run_proposes_can_be_typed(kind, tmp_path, tiny_policy_dir, prompts_file, monkeypatch):
    (tmp_path / "type.py").write_text("from choosy.__main__ import main\n\nmain()\n")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    lines = typed(tmp_path, tiny_policy_dir, prompts_file)
    groups = {word.split("=")[0] for word in RUNS[kind]} | (
        {"labeler", "selector", "weighting"} if RUNS[kind] else set()
    )
    kept = [line for line in lines if line.split("=")[0].removesuffix(".path") not in groups and "console" not in line]
    port = free_port()
    monkeypatch.setenv("CHOOSY_LABELING_TOKEN", TOKEN)
    more = [f"labeler.port={port}"] if kind == "human" else []
    with annotator(port) if kind == "human" else nullcontext():
        run = command("type.py", "train", *on_top(kept, RUNS[kind]), *SMALL, *more, folder=tmp_path)
        assert run.returncode == 0, run.stderr
        chat, evaluate, again = next_lines(run.stdout)
        for line in (chat, evaluate, again):
            program, *words = shlex.split(line, comments=True)
            assert program == "choosy"
            done = command("type.py", *words, folder=tmp_path)
            assert done.returncode == 0, done.stderr
    folder = Path(tmp_path / "runs" / "my run")
    assert summary(folder)["rounds"] == 2
    assert len(list((folder / "eval").glob("*.jsonl"))) == 1
    assert next_lines(done.stdout)[-1] == again.replace("rounds=2", "rounds=4")
    report = command("type.py", "report", folder.relative_to(tmp_path), folder=tmp_path)
    assert next_lines(report.stdout) == next_lines(done.stdout)


def test_what_a_sweep_proposes_can_be_typed(tmp_path, tiny_policy_dir, prompts_file):
    (tmp_path / "type.py").write_text("from choosy.__main__ import main\n\nmain()\n")
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", "lr=1e-4,1e-3", "hydra.sweep.dir='my sweep'"]
    sweep = command("type.py", "train", "-m", *lines, folder=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    program, *words = shlex.split(sweep.stdout.rpartition("Next: ")[2])
    assert program == "choosy"
    done = command("type.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my sweep" / "compare.html").exists()


def test_one_run_of_an_experiment_that_plays_several_can_be_resumed(tmp_path):
    (tmp_path / "type.py").write_text("from choosy.__main__ import main\n\nmain()\n")
    several = ["train", "experiment=compare", "selector=few_prompts", "seed=0"]
    assert "plays many runs: type -m" in command("type.py", *several, folder=tmp_path).stderr
    alone = command("type.py", *several, "run_dir=gone", "ckpt_path=last", folder=tmp_path)
    assert "gone holds no run to resume" in alone.stderr


def test_a_menu_of_ones_own_is_proposed_with_more_rounds(tmp_path, tiny_policy_dir, prompts_file):
    (tmp_path / "type.py").write_text("from choosy.__main__ import main\n\nmain()\n")
    (tmp_path / "menu" / "selector").mkdir(parents=True)
    mine = "# @package callbacks\nmine:\n  _target_: callbacks.random.RandomPairs\n  fraction: 0.5\n"
    (tmp_path / "menu" / "selector" / "mine.yaml").write_text(mine)
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "selector=mine", "data.heldout=null", *SMALL]
    run = command("type.py", "train", "--config-dir", "menu", *lines, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    _, *again = shlex.split(next_lines(run.stdout)[-1], comments=True)
    assert again[:3] == ["train", "--config-dir", "menu"]
    done = command("type.py", *again, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "runs" / "my run")["rounds"] == 2
