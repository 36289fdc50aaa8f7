"""The job of docs/clusters.md under SLURM itself; what preemption does to it is played by benchmarks/slurm.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_slurm import missing, small_slurm
from tiny import environ, summary, typed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())} not found"),
]


def test_srun_starts_one_run_on_two_nodes(tiny_policy_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    small = ["data.limit=4", "data.heldout_limit=2", "rounds=1", "~logger.tensorboard", f"run_dir={tmp_path}/run"]
    words = [*typed(tmp_path, tiny_policy_dir, prompts_file), *small, "trainer=ddp", "trainer.accelerator=cpu"]
    line = f"srun {sys.executable} -m choosy train {' '.join(words)} trainer.num_nodes=2 trainer.devices=1"
    (tmp_path / "cluster").mkdir()
    with small_slurm(tmp_path / "cluster") as slurm:
        slurm.environ |= environ(tmp_path, **slurm.environ)
        job = slurm.submit(["--nodes=2", "--ntasks-per-node=1"], f"{line} ckpt_path=auto", tmp_path)
        state = slurm.finish(job)
    said = (tmp_path / f"{job}.out").read_text()
    assert state == "COMPLETED", said
    assert said.count("round 1/1  sample") == 1, "each process has played a run of its own"
    assert summary(tmp_path / "run")["rounds"] == 1
