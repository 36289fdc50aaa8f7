"""Ranks run forwards in lockstep, take the first writer's name, end with their launcher."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from fake_ranks import FakeRanks
from torch import nn

from choosy.parallel.ranks import OneRank, TCPStore, fair_share, first_writer, is_peer_failure
from choosy.parallel.sharding import full_tensor, is_sharded, lockstep, placed_like
from choosy.resume.run_folder import refuse_different_folders


def test_a_process_without_torchrun_takes_its_own_value(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert first_writer("name", "noon") == "noon"


def test_under_torchrun_all_take_the_first_writers_value(monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(store.port)),
    ):
        monkeypatch.setenv(name, value)
    assert [first_writer("time", word) for word in ("noon", "one past noon")] == ["noon", "noon"]
    assert first_writer("date", "today") == "today"


def test_processes_that_choose_different_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 processes of this run chose 2 folders .*give the run a name.*name=\.\.\."):
        FakeRanks.play(2, lambda ranks: refuse_different_folders(tmp_path / str(ranks.rank), ranks))
    FakeRanks.play(2, lambda ranks: refuse_different_folders(tmp_path, ranks))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"), True),
        (RuntimeError("Read error [127.0.0.1]:9: Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # a labeler's server
    ],
)
def test_errors_that_mean_another_rank_has_ended(error, is_one):
    assert is_peer_failure(error) is is_one


def test_tensors_that_are_not_sharded_stay_as_they_are():
    tensor = torch.arange(3.0)
    assert full_tensor(tensor) is tensor
    assert placed_like(tensor, torch.zeros(3)) is tensor
    assert not is_sharded(nn.Linear(1, 1))
    assert OneRank().gather([1]) == [1]


def test_lockstep_lasts_until_the_busiest_rank_is_done():
    class Root(nn.Module):  # what FSDP2 adds to a module
        def unshard(self) -> None: ...
        def reshard(self) -> None: ...

    forwards = [0, 0, 0]
    meeting = threading.Barrier(3)

    class Inner(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

        def forward(self) -> None:
            meeting.wait(timeout=30)  # as an all-gather would: no thread gets past it alone
            forwards[self.rank] += 1

    def program(ranks: FakeRanks) -> None:
        inner = Inner(ranks.rank)
        with lockstep(Root(), inner, inner, ranks):
            for _ in range((4, 0, 1)[ranks.rank]):
                inner()

    FakeRanks.play(3, program)
    assert forwards == [4, 4, 4]


RANK = """
import os, pathlib, sys, time
from choosy.parallel.ranks import end_with_launcher
end_with_launcher(every=0.1)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(120)
"""
LAUNCHER = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env={**os.environ, "LOCAL_RANK": "1"})
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.05)
os._exit(0)
"""


@pytest.mark.slow
def test_a_rank_ends_with_the_process_that_started_it(tmp_path: Path):
    pid_file = tmp_path / "pid"
    ran = subprocess.run(
        [sys.executable, "-c", LAUNCHER, RANK, pid_file], timeout=300, check=True, stderr=subprocess.PIPE, text=True
    )  # returns when the rank has closed stderr, too
    assert "another process of this run has ended" in ran.stderr
    state = Path(f"/proc/{pid_file.read_text()}/stat")
    end = time.monotonic() + 30  # stderr is closed a moment before the process is gone
    while (alive := state.exists() and " Z " not in state.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_fair_share_leaves_no_rank_with_much_more_than_another(size: int) -> None:
    draw = random.Random(size)
    costs = [draw.expovariate(1 / 100) for _ in range(40)]
    shares = FakeRanks.play(size, lambda ranks: fair_share(range(40), costs, ranks))
    assert sorted(n for share in shares for n in share) == list(range(40))
    assert all([costs[n] for n in share] == sorted((costs[n] for n in share), reverse=True) for share in shares)
    loads = [sum(costs[n] for n in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs[share[-1]] for share in shares), "the last one tips the scales at most"
