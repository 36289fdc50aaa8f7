"""Processes that others start, machines that others take back, and sweeps over both."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from programs import Program, free_port
from tiny import ROOT, command, ending, environ, labels, summary, typed

from choosy.main import compose, join_tasks, train
from choosy.reporting.summary import read_run
from choosy.rounds.evaluate import objective

pytestmark = pytest.mark.slow

DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
TRAIN = str(ROOT / "train.py")


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file) -> list[str]:
    small = ["data.limit=4", "data.heldout_limit=2", "rounds=1", "~logger.tensorboard"]
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), *small]


def test_torchrun_starts_the_processes_and_they_name_the_run_once(lines, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = command(*torchrun, TRAIN, *lines, *DDP, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    (named,) = (tmp_path / "runs").iterdir()
    named.rename(tmp_path / "run")
    assert_one_run(lines, tmp_path)


def test_srun_starts_the_processes_of_choosy_fit(lines, tmp_path):
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "choosy",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    config = tmp_path / "run.yaml"
    config.write_text(OmegaConf.to_yaml(compose([*lines, *DDP, f"run_dir={tmp_path / 'run'}"]), resolve=True))
    words = ["-m", "choosy", "fit", "--config", str(config)]
    tasks = [
        Program(words, folder=tmp_path, environ=environ(tmp_path, **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank))
        for rank in ("0", "1")
    ]
    errors = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert_one_run(lines, tmp_path)


def assert_one_run(lines: list[str], folder: Path) -> None:
    """The two processes played what one plays."""
    alone = command(TRAIN, *lines, f"run_dir={folder}/alone", folder=folder)
    assert alone.returncode == 0, alone.stderr
    assert summary(folder / "run") == summary(folder / "alone")
    assert set(labels(folder / "run" / "ledger.sqlite")["key"]) == set(
        labels(folder / "alone" / "ledger.sqlite")["key"]
    )


def test_a_submitit_grid_of_one_process_and_of_two(lines, tmp_path):
    grid = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", f"hydra.sweep.dir={tmp_path}/sweep"]
    jobs = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1,2"]
    run = command(TRAIN, "-m", *lines, *jobs, *grid, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    one, two = tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"
    assert yaml.safe_load((two / "config.yaml").read_text())["trainer"]["devices"] == 2
    assert summary(one) == summary(two)
    assert len(list((tmp_path / "sweep" / ".submitit").rglob("*_1_log.out"))) == 2, "there was no second process"
    assert (tmp_path / "sweep" / "index.csv").exists()


def test_submitit_with_too_few_processes_says_what_to_type(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_NTASKS", "2")
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "0")
    with pytest.raises(ValueError, match=r"trainer.devices=4, but submitit starts 2.*hydra.launcher.tasks_per_node=4"):
        join_tasks(4)


# -- a signal --------------------------------------------------------------------------------------------------

SLOW = """
import time
import torch
step = torch.optim.AdamW.step
def slow(*args, **kwargs):
    time.sleep(0.5)
    return step(*args, **kwargs)
torch.optim.AdamW.step = slow
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/requeued"
"""


@pytest.fixture
def long_lines(lines) -> list[str]:
    """A run of ten steps; only a signal makes it write a checkpoint among them."""
    return [*lines, "data.limit=8", "batching.batch_size=1", "epochs_per_round=2", "selector=none", "weighting=uniform"]


def signalled(words: list[str], signum: int, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run train.py with slow steps, and send it a signal in the middle of its training."""
    (folder / "slow.py").write_text(f"{SLOW}\nimport runpy, sys\ndel sys.argv[0]\nrunpy.run_path(sys.argv[0])\n")
    run = Program(["slow.py", *words], folder=folder, environ=environ(folder, **more))
    wait_for(lambda: (folder / "run" / "metrics.csv").exists() or run.poll() is not None)
    run.send_signal(signum)
    errors = run.communicate(timeout=300)[1]
    return subprocess.CompletedProcess(words, run.returncode, "", errors)


def wait_for(there: Callable[[], Any]) -> None:
    patience = time.monotonic() + 300
    while not there():
        assert time.monotonic() < patience, "it did not happen within five minutes"
        time.sleep(0.05)


def test_a_preempted_run_writes_a_checkpoint_and_goes_on_from_it(long_lines, tmp_path):
    words = [TRAIN, *long_lines, f"run_dir={tmp_path}/run", "ckpt_path=auto"]
    stopped = signalled(words, signal.SIGTERM, tmp_path)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "run" / "checkpoints" / "round_000.ckpt").exists()
    resumed = command(*words, folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole = command(TRAIN, *long_lines, f"run_dir={tmp_path}/whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert ending(tmp_path / "run") == ending(tmp_path / "whole")


LABELS = """
import pathlib, time
def slow(prompt, response):
    pathlib.Path("asked").touch()
    time.sleep(0.2)
    return float(len(response))
"""


def test_a_process_that_labels_ends_at_once_though_another_one_waits_for_it(lines, tmp_path):
    (tmp_path / "sleepy.py").write_text(LABELS)
    words = [TRAIN, *lines, *DDP, "labeler.path=sleepy.slow", f"run_dir={tmp_path}/run"]
    run = Program(words, folder=tmp_path, environ=environ(tmp_path), ranks=2)
    wait_for(lambda: (tmp_path / "asked").exists() or run.poll() is not None)
    run.send_signal(signal.SIGTERM)
    errors = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + signal.SIGTERM, errors


def test_slurm_s_warning_queues_the_job_again(long_lines, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "choosy", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    words = [TRAIN, *long_lines, f"run_dir={tmp_path}/run", "ckpt_path=auto"]
    stopped = signalled(words, signal.SIGUSR1, tmp_path, **slurm, PATH=path)
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.stderr
    assert (tmp_path / "bin" / "requeued").read_text() == "requeue 4711\n"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


# -- Optuna ----------------------------------------------------------------------------------------------------


def test_optuna_looks_for_the_fewest_labels(lines, tmp_path):
    search = ["experiment=fewest_labels", "hydra.sweeper.n_trials=3", "target_win_rate=0"]
    space = ["hydra.sweeper.params={lr:'interval(1e-4,1e-3)',data.responses:'choice(2,3)'}"]
    run = command(TRAIN, "-m", *lines, *search, *space, f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    bought = [summary(tmp_path / "sweep" / str(n))["labels"]["spent"] for n in range(3)]
    assert best["best_value"] == min(bought)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("objective=loss", "objective=loss is none of win_rate, labels_to_win_rate, quality"),
        ("objective=labels_to_win_rate data.heldout=null", "labels_to_win_rate needs win rates"),
    ],
)
def test_an_objective_that_nothing_measures(line, message, lines, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(compose([*lines, *line.split()]), tmp_path / "run")


def test_labels_to_a_win_rate(lines, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose([*lines, "objective=labels_to_win_rate", "target_win_rate=0"])
    train(cfg, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert objective(cfg, run) == summary(tmp_path / "run")["labels"]["spent"]
    cfg.target_win_rate = 1.1
    assert objective(cfg, run) == float("inf")
