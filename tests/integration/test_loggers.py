"""A logger of others gets a run's name, settings and metrics; without its package the test is skipped."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import ROOT, command, typed


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path) -> list[str]:
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", "data.heldout=null", "lr=0.00123"]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install {package}")


@needs("wandb")
def test_weights_and_biases(lines, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = command(ROOT / "train.py", *lines, "logger=wandb", "name=plum", folder=tmp_path, fresh=True)
    assert run.returncode == 0, run.stderr
    (file,) = (tmp_path / "runs/plum/wandb").glob("offline-run-*/*.wandb")
    kept = file.read_bytes()
    for words in (b"plum", b"loss.beta", b"0.00123", b"rewards/accuracies", b"labels/spent"):
        assert words in kept, words
    again = [*lines, "logger=wandb", "run_dir=runs/plum", "rounds=2", "ckpt_path=last"]
    resumed = command(ROOT / "train.py", *again, folder=tmp_path, fresh=True)
    assert resumed.returncode == 0, resumed.stderr
    found = {path.name.rpartition("-")[2] for path in (tmp_path / "runs/plum/wandb").glob("offline-run-*")}
    assert found == {file.stem.removeprefix("run-")}, "a resumed run continues its W&B run"


@needs("mlflow")
def test_mlflow(lines, tmp_path):
    run = command(ROOT / "train.py", *lines, "logger=mlflow", "name=plum", folder=tmp_path, fresh=True)
    assert run.returncode == 0, run.stderr
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:
        assert db.execute("SELECT name, status FROM runs").fetchall() == [("plum", "FINISHED")]
        params = dict(db.execute("SELECT key, value FROM params"))
        metrics = {name for (name,) in db.execute("SELECT key FROM metrics")}
    assert params["lr"] == "0.00123"
    assert params["loss.beta"] == "0.1"
    assert {"rewards/accuracies", "labels/spent", "loss_step"} <= metrics
    again = [*lines, "logger=mlflow", "run_dir=runs/plum", "rounds=2", "ckpt_path=last"]
    resumed = command(ROOT / "train.py", *again, folder=tmp_path, fresh=True)
    assert resumed.returncode == 0, resumed.stderr
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:
        assert db.execute("SELECT name, status FROM runs").fetchall() == [("plum", "FINISHED")], "it continues its run"
        tags = dict(db.execute("SELECT key, value FROM tags"))
    assert tags["resumed with rounds"] == "2"
    lost = command(
        ROOT / "train.py", *again, "logger.mlflow.tracking_uri=sqlite:///other.db", folder=tmp_path, fresh=True
    )
    assert "names an MLflow run that sqlite:///other.db does not have" in lost.stderr
