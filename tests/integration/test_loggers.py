"""Trackers get a run's name, settings, metrics under TRL's names and answers; no key reaches a file of theirs."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, command, typed

KEYS = {
    "WANDB_API_KEY": "canary0123456789canary0123456789canary01",
    "HF_TOKEN": "hf_canary0123456789canary0123456789",
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow-0123456789",
    "TRACKIO_WRITE_TOKEN": "canary-of-trackio-0123456789",
}
ALL = "logger=[wandb,mlflow,trackio]"
MLFLOWS_OWN = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # it reads runs by it
OF_TRL = ("loss", "learning_rate", "grad_norm", "rewards/chosen", "rewards/accuracies", "logps/rejected")


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lacking = [package for package in ("wandb", "mlflow", "trackio") if find_spec(package) is None]
    if lacking:
        pytest.skip(f"pip install 'choosy-tuning[trackers]' brings {', '.join(lacking)}")
    for name, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), **KEYS}.items():
        monkeypatch.setenv(name, value)
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", "data.heldout_limit=2", "lr=0.00123"]


def play(*words: str, folder: Path) -> None:
    run = command(ROOT / "train.py", *words, folder=folder)
    assert run.returncode == 0, run.stderr


def of_wandb(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The bytes of each part of the W&B run of a folder, which are one run's, and the rows of its tables."""
    parts = {path.name: path.read_bytes() for path in (folder / "wandb").glob("offline-run-*/*.wandb")}
    tables = [json.loads(path.read_text()) for path in sorted(folder.glob("wandb/offline-run-*/files/media/table/*"))]
    return parts, [dict(zip(each["columns"], row, strict=True)) for each in tables for row in each["data"]]


def of_mlflow(folder: Path, uri: str = "") -> list[tuple[Any, list[dict[str, Any]]]]:
    """Each MLflow run that is kept in a folder, by name, with the rows of its tables."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
    found = []
    ids = [each.experiment_id for each in client.search_experiments()]
    for run in sorted(client.search_runs(ids), key=lambda run: run.info.run_name):
        tables = sorted((Path(run.info.artifact_uri) / "completions").glob("*.json"))
        read = [json.loads(path.read_text()) for path in tables]
        found.append((run, [dict(zip(table["columns"], row, strict=True)) for table in read for row in table["data"]]))
    return found


def of_trackio(folder: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of each run of Trackio its settings and what it logged."""
    with closing(sqlite3.connect(folder / "trackio" / "choosy.db")) as db:
        settings = dict(db.execute("SELECT run_name, config FROM configs"))
        logged = db.execute("SELECT run_name, metrics, step FROM metrics ORDER BY id").fetchall()
    return {
        run: (json.loads(text), [{**json.loads(row), "step": step} for name, row, step in logged if name == run])
        for run, text in settings.items()
    }


def is_table(rows: list[dict[str, Any]], rounds: int) -> None:
    """A table of the answers of so many rounds."""
    assert {"prompt", "completion", "reward", "choice", "utility", "logp", "ref_logp"} <= {*rows[0]}
    trained, heldout = ([row for row in rows if row["split"] == split] for split in ("train", "heldout"))
    assert [row["choice"] for row in heldout] == ["tuned", "start"] * 2 * rounds
    choices = [row["choice"] for row in trained]
    assert choices.count("chosen") == choices.count("rejected") > 0
    assert all(row["prompt"].startswith("Tell me about") and row["reward"] is not None for row in rows)


def has_no_key(*folders: Path) -> None:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        kept = path.read_bytes()
        assert not [name for name, key in KEYS.items() if key.encode() in kept], path


@MLFLOWS_OWN
def test_trackers_get_each_run_of_a_sweep_and_its_resumed_rounds(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("key: none\n")  # of a repository whose uncommitted changes hold a key
    for words in ("init -q", "add notes.txt", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    (tmp_path / "notes.txt").write_text(f"key: {KEYS['HF_TOKEN']}\n")
    resumed = ["seed=0,1", "rounds=1,2", "ckpt_path=auto", "hydra.sweep.dir=runs", "hydra.sweep.subdir=${seed}"]
    play("-m", *lines, ALL, "name=plum", *resumed, folder=tmp_path)  # in one process: it imports the trackers once
    played, other = tmp_path / "runs/0", tmp_path / "runs/1"

    parts, rows = of_wandb(played)
    assert len({*parts, *of_wandb(other)[0]}) == 2, "a run of the sweep is one W&B run, which it continues"
    (part,) = parts.values()
    for words in (b"plum", b"loss.beta", b"0.00123", b"labels/spent", *(f"train/{name}".encode() for name in OF_TRL)):
        assert words in part, words
    is_table(rows, 2)

    (run, rows), _ = of_mlflow(tmp_path)
    assert (run.info.run_name, run.info.status, run.data.tags["resumed with rounds"]) == ("plum 0", "FINISHED", "2")
    assert (run.data.params["lr"], run.data.params["loss.beta"]) == ("0.00123", "0.1")
    assert {*OF_TRL, "labels/spent", "objective/scores", "objective/kl", "val/contain_eos_token"} <= {*run.data.metrics}
    is_table(rows, 2)

    runs = of_trackio(tmp_path)
    assert {*runs} == {"plum 0", "plum 1"}
    settings, logged = runs["plum 0"]
    assert (settings["lr"], settings["loss.beta"], settings["rounds"]) == (0.00123, 0.1, 2)
    assert {f"train/{name}" for name in OF_TRL} <= {name for row in logged for name in row}
    is_table([row for each in logged for row in each.get("completions", {}).get("_value", [])], 2)

    again = ["--config=runs/0/config.yaml", "--run_dir=runs/0", "--rounds=3", "--ckpt_path=last"]  # in another
    run = command("-m", "choosy", "fit", *again, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    parts, rows = of_wandb(played)
    assert (len(parts), len(of_mlflow(tmp_path)), len(of_trackio(tmp_path))) == (1, 2, 2)
    is_table(rows, 3)
    (run, rows), _ = of_mlflow(tmp_path)
    assert (run.info.status, run.data.tags["resumed with rounds"]) == ("FINISHED", "3")
    is_table(rows, 3)
    settings, logged = of_trackio(tmp_path)["plum 0"]
    assert settings["rounds"] == 3
    is_table([row for each in logged for row in each.get("completions", {}).get("_value", [])], 3)
    has_no_key(played, other, tmp_path / "trackio", *tmp_path.glob("ml*"))


@MLFLOWS_OWN
def test_processes_of_one_run_begin_one_mlflow_run(lines: list[str], tmp_path: Path) -> None:
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.heldout=null"]
    words = [ROOT / "train.py", *lines, *ranks, "logger=mlflow", "name=plum"]
    run = command(*words, folder=tmp_path, ranks=2)
    assert run.returncode == 0, run.stderr
    ((run_of_both, rows),) = of_mlflow(tmp_path)
    assert (run_of_both.info.status, {row["split"] for row in rows}) == ("FINISHED", {"train"})
