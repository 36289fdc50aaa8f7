"""A grid of `experiment=compare` that is killed, read as far as it came, and typed again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml
from tiny import CONF, ROOT, command, labels, typed

from choosy.reporting.compare import compare

HERE = Path(__file__).parent


def test_the_arms_are_on_the_menu_and_the_last_one_is_the_baseline():
    experiment = yaml.safe_load((CONF / "experiment" / "compare.yaml").read_text())
    arms = experiment["hydra"]["sweeper"]["params"]["selector"].split(",")
    assert {*arms} <= {path.stem for path in (CONF / "selector").glob("*.yaml")}
    assert arms[-1] == "random_pairs"


def test_a_comparison_without_its_flag_is_refused(tmp_path):
    run = command(ROOT / "train.py", "experiment=compare", folder=tmp_path)
    assert run.returncode == 1
    assert "choosy train -m experiment=compare" in run.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_killed_grid_is_read_and_typed_again_repeats_no_finished_job(tmp_path, tiny_policy_dir, prompts_file):
    line = [
        *typed(tmp_path, tiny_policy_dir, prompts_file),
        *("experiment=compare", "selector=random_pairs,certainty", "seed=0,1,2", "rounds=2"),
        "callbacks.checkpoint.every_n_steps=1",
    ]
    killed = command(HERE / "killed.py", "training", 7, "-m", *line, folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sweep = tmp_path / "multirun" / "compare"
    finished = {path.parent for path in sweep.rglob("summary.json")}
    begun = {path.parent for path in sweep.rglob("run_id")} - finished
    assert len(finished) in (2, 3, 4)
    assert len(begun) == 1
    read = compare(sweep)
    assert sum(map(len, read.arms.values())) >= len(finished), "a grid is read as far as it came"
    before = {run: (run / "summary.json").stat().st_mtime_ns for run in finished}
    bought = {run: len(labels(run / "ledger.sqlite")) for run in finished}

    again = command(ROOT / "train.py", "-m", *line, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" is finished: Held-out reward") == len(finished)
    assert {run: (run / "summary.json").stat().st_mtime_ns for run in finished} == before
    assert {run: len(labels(run / "ledger.sqlite")) for run in finished} == bought
    found = compare(sweep)
    assert {name: sorted(arm) for name, arm in found.arms.items()} == {
        "certainty": [0, 1, 2],
        "random_pairs": [0, 1, 2],
    }
    assert all(len(run.quality) == 3 for arm in found.arms.values() for run in arm.values())
    assert not found.skipped
    assert len((sweep / "index.csv").read_text().splitlines()) == 7

    more = command(ROOT / "train.py", "-m", *line, "seed=0,1,2,3", "selector=random_pairs", folder=tmp_path)
    assert more.returncode == 0, more.stderr
    assert more.stdout.count(" is finished: Held-out reward") == 3
    assert sorted(compare(sweep).arms["random_pairs"]) == [0, 1, 2, 3]
