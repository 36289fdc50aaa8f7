"""kill -9 of all processes of a run, or of one of them; it goes on, on as many processes as before or on others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from tiny import ROOT, command, labels, summary, typed, write_prompts
from torch.testing import assert_close

pytestmark = pytest.mark.slow

DIES = """

import collections, os, pathlib, signal, sys
import torch
from choosy.rounds.sample import FreshResponses

HERE = pathlib.Path(__file__).parent
RUN = pathlib.Path(next(word for word in sys.argv if word.startswith("run_dir=")).removeprefix("run_dir="))
RANK = int(os.environ.get("LOCAL_RANK", "0"))
POINT, COUNT, *DOOMED = os.environ.get("KILL", "nowhere 0").split()  # the last of the doomed kills the others
HERE.joinpath(f"pid{RANK}").write_text(str(os.getpid()))
calls = collections.Counter()

def perhaps_die(point):
    calls[point] += 1
    if POINT == point and calls[point] == int(COUNT) and DOOMED[-1] == str(RANK):
        for rank in DOOMED:
            os.kill(int(HERE.joinpath(f"pid{rank}").read_text()), signal.SIGKILL)

def dies_first(point, act):
    def dying(*args, **kwargs):
        perhaps_die(point)
        return act(*args, **kwargs)
    return dying

def noted(self, at, chosen, *, begun, sample=FreshResponses.__call__, **how):
    if any(prompt.id not in begun for prompt, _ in chosen):
        with RUN.with_suffix(".sampled").open("a") as file:
            print(RANK, at.number, file=file)
    return sample(self, at, chosen, begun=begun, **how)

FreshResponses.__call__ = noted
torch.optim.AdamW.step = dies_first("training", torch.optim.AdamW.step)
vowels = dies_first("labeling", vowels)
"""
SAME = ("origin", "responses", "response_ids", "rewards")
PAIR = ("chosen", "rejected", "source", "round")
SOON = 60  # seconds; docs/devices.md

Launch = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's runs are, with their prompts and toy.py."""
    folder = tmp_path_factory.mktemp("ranks")
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def launch(folder: Path, tiny_policy_dir: Path) -> Launch:
    """Start a run, or go on with it, on so many processes."""
    steps = ["callbacks.checkpoint.every_n_steps=1", "batching.batch_size=2", "epochs_per_round=2"]
    chooses = ["selector=optune_certainty", "data.responses=3"]
    lines = [*typed(folder, tiny_policy_dir, folder / "prompts.jsonl"), *steps, *chooses]
    with (folder / "toy.py").open("a") as toy:
        toy.write(DIES)

    def launched(name: str, processes: int) -> Any:
        many = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"] if processes > 1 else []
        words = [ROOT / "train.py", *lines, *many, f"run_dir={folder / name}", "ckpt_path=auto"]
        return command(*words, folder=folder, ranks=processes)

    return launched


@pytest.fixture(scope="module")
def whole(launch: Launch, folder: Path) -> Path:
    """The run on two processes that was never killed."""
    run = launch("whole", 2)
    assert run.returncode == 0, run.stderr
    return folder / "whole"


def rows(run: Path) -> list[tuple[Any, ...]]:
    """What was chosen, sampled and labeled in all rounds."""
    return [
        (path.name, row["split"], row["prompt_id"], *(row[column] for column in SAME), pairs)
        for path in sorted(run.glob("rounds/*.parquet"))
        for row in pq.read_table(path).to_pylist()
        for pairs in [[tuple(pair[word] for word in PAIR) for pair in row["pairs"]]]
    ]


def sampled_rounds(run: Path) -> list[int]:
    """The rounds that rank 0 has sampled, in order."""
    found = [line.split() for line in run.with_suffix(".sampled").read_text().splitlines()]
    return [int(number) for rank, number in found if rank == "0"]


def wait_for_the_end(folder: Path, processes: int) -> None:
    """All processes of a run have ended within the time that the docs state."""

    def is_running(pid: str) -> bool:
        try:
            return " Z " not in Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False

    end = time.monotonic() + SOON
    pids = [(folder / f"pid{rank}").read_text() for rank in range(processes)]
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "there is an orphan"
        time.sleep(0.2)


KILLS = {
    "all, in a training step": ("training 6 1 0", 2, 2),
    "one, in a training step": ("training 6 1", 2, 2),
    "one, between two labels": ("labeling 12 0", 2, 2),
    "all, between two labels, on one": ("labeling 10 1 0", 2, 1),
    "in a training step, on two": ("training 6 0", 1, 2),
}


@pytest.mark.parametrize(("kill", "before", "after"), KILLS.values(), ids=KILLS)
def test_a_run_whose_ranks_were_killed_ends_as_if_never_killed(kill, before, after, launch, whole, folder, monkeypatch):
    point, count, *doomed = kill.split()
    name = f"{kill} {after}".replace(" ", "-")
    run = folder / name
    with monkeypatch.context() as patched:
        patched.setenv("KILL", kill)
        killed = launch(name, before)
    assert killed.returncode == (-signal.SIGKILL if "0" in doomed else 1), killed.stderr
    wait_for_the_end(folder, before)
    bought = labels(run / "ledger.sqlite")
    if point == "labeling":
        assert len(bought) == int(count) - 1
    resumed = launch(name, after)
    assert resumed.returncode == 0, resumed.stderr

    ours, theirs = labels(run / "ledger.sqlite"), labels(whole / "ledger.sqlite")
    assert ours.merge(bought).shape == bought.shape, "a label was bought twice or lost"
    columns = ["key", "score", "purpose"]
    ours, theirs = (frame.sort_values("key", ignore_index=True) for frame in (ours, theirs))
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])
    assert sampled_rounds(run) == [0, 1], "a round was sampled again"
    assert rows(run) == rows(whole)
    assert summary(run)["labels"] == summary(whole)["labels"]
    weights, wanted = (load_file(r / "adapter" / "adapter_model.safetensors") for r in (run, whole))
    assert_close(weights, wanted, rtol=0, atol=1e-6)
    metrics, known = (pd.read_csv(r / "metrics.csv") for r in (run, whole))
    compared = [name for name in known if not name.startswith("seconds/")]
    pd.testing.assert_frame_equal(metrics[compared], known[compared], check_exact=False, rtol=1e-4, atol=1e-5)
