"""kill -9 at five points, and what is missing or damaged when a run goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tiny import ROOT, command, contents, ending, labels, typed

HERE = Path(__file__).parent
POINTS = {
    "sampling": ("sampling", 30),
    "between two labels": ("labeling", 20),
    "in a training step": ("training", 5),
    "a checkpoint half written": ("checkpoint", 3),
    "a round half written": ("table", 6),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the module's runs are, with their prompts and toy.py."""
    folder = tmp_path_factory.mktemp("kill")
    things = ("tea", "rain", "bread", "snow", "music", "chess", "soup", "maps")
    rows = [{"id": f"p{n}", "prompt": f"Tell me about {thing}."} for n, thing in enumerate(things)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def lines(folder, tiny_policy_dir) -> list[str]:
    """A run that takes a checkpoint after each step, chooses prompts and pairs, and trains several steps a round."""
    steps = ["callbacks.checkpoint.every_n_steps=1", "batching.batch_size=1"]
    chooses = ["selector=optune_certainty", "data.responses=3"]
    return [*typed(folder, tiny_policy_dir, folder / "prompts.jsonl"), *steps, *chooses]


@pytest.fixture(scope="module")
def whole(lines, folder) -> Path:
    """The run that was never killed."""
    run = command(ROOT / "train.py", *lines, f"run_dir={folder}/whole", folder=folder)
    assert run.returncode == 0, run.stderr
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(("point", "count"), POINTS.values(), ids=POINTS)
def test_a_run_killed_here_ends_as_if_never_killed(point, count, lines, whole, folder):
    run = folder / point
    killed = command(HERE / "killed.py", point, count, *lines, f"run_dir={run}", folder=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = labels(run / "ledger.sqlite")
    resumed = command(ROOT / "train.py", *lines, f"run_dir={run}", "ckpt_path=last", folder=folder)
    assert resumed.returncode == 0, resumed.stderr
    after = labels(run / "ledger.sqlite")
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    assert ending(run) == ending(whole)
    assert not [name for name in contents(run) if Path(name).name.startswith(".") or "sampled" in name]
