"""A sweep leaves a folder a job and one index, and is refused where every process would run it again."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import ROOT, command, contents, summary, typed

pytestmark = pytest.mark.slow


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path) -> list[str]:
    given = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if not line.startswith("selector")]
    return [*given, f"hydra.sweep.dir={tmp_path}/sweep"]


def test_a_sweep_leaves_a_folder_a_job_and_an_index(lines, tmp_path):
    run = command(
        ROOT / "train.py",
        "-m",
        *lines,
        "selector=optune,certainty",
        "seed=0,1",
        "callbacks.report.console=true",
        folder=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert f"Run 2 of 4: selector=optune seed=1 in {tmp_path}/sweep/1\n" in run.stderr
    assert "HYDRA" not in run.stdout + run.stderr
    *jobs, index, compare = run.stdout.rstrip().splitlines()
    assert sum(": Held-out reward" in line for line in jobs) == 4
    assert "Left behind in" not in run.stdout
    assert jobs[-1].startswith("Best: selector=")
    assert index == f"All runs: {tmp_path}/sweep/index.html"
    assert compare == f"Next: choosy compare {tmp_path}/sweep"
    jobs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert jobs == ["0", "1", "2", "3"]
    with (tmp_path / "sweep" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == jobs
    assert {(row["selector"], row["seed"]) for row in rows} == {(s, n) for s in ("optune", "certainty") for n in "01"}
    assert "model.name" not in rows[0]
    for row in rows:
        numbers = summary(tmp_path / "sweep" / row["job"])
        assert float(row["win_rate"]) == numbers["win_rate"]
        assert int(row["labels"]) == numbers["labels"]["spent"] > 0
        assert int(row["seed"]) == numbers["seed"]


def test_a_sweep_over_launched_processes_is_refused_with_the_remedy(lines, tmp_path):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run = command(ROOT / "train.py", "-m", *lines, *ddp, "seed=0,1", folder=tmp_path)
    assert run.returncode == 1
    for word in ("-m with several devices", "torchrun", "submitit", "trainer.devices=1"):
        assert word in run.stderr
    assert "Traceback" not in run.stderr
    assert not [name for name in contents(tmp_path / "sweep") if name != "multirun.yaml"]
