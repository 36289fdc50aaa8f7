"""Ranks: keeping step, agreeing on a name, ending with the launcher."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from choosy.parallel import launch
from choosy.parallel.launch import agreed, another_ended
from choosy.parallel.ranks import FakeRanks, OneRank
from choosy.parallel.sharding import in_step, is_sharded, placed_like, whole
from choosy.resume.run_folder import refuse_scattered


def test_alone_one_takes_the_own_word(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert agreed("name", "noon") == "noon"


def test_under_torchrun_all_take_the_first_word(monkeypatch):
    store = launch.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(store.port)),
    ):
        monkeypatch.setenv(name, value)
    assert [agreed("time", word) for word in ("noon", "one past noon")] == ["noon", "noon"]
    assert agreed("date", "today") == "today"


def test_processes_that_choose_different_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 processes of this run chose 2 folders .*give the run a name.*name=\.\.\."):
        FakeRanks.play(2, lambda ranks: refuse_scattered(tmp_path / str(ranks.rank), ranks))
    FakeRanks.play(2, lambda ranks: refuse_scattered(tmp_path, ranks))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"), True),
        (RuntimeError("Read error [127.0.0.1]:9: Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # a labeler's server
    ],
)
def test_what_says_that_another_rank_has_ended(error, is_one):
    assert another_ended(error) is is_one


def test_whole_tensors_stay_as_they_are():
    tensor = torch.arange(3.0)
    assert whole(tensor) is tensor
    assert placed_like(tensor, torch.zeros(3)) is tensor
    assert not is_sharded(nn.Linear(1, 1))
    assert OneRank().gather([1]) == [1]


def test_ranks_keep_step_until_the_busiest_is_done():
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
            meeting.wait(timeout=30)  # as an all-gather would: nobody gets past it alone
            forwards[self.rank] += 1

    def program(ranks: FakeRanks) -> None:
        inner = Inner(ranks.rank)
        with in_step(Root(), inner, inner, ranks):
            for _ in range((4, 0, 1)[ranks.rank]):
                inner()

    FakeRanks.play(3, program)
    assert forwards == [4, 4, 4]


RANK = """
import os, pathlib, sys, time
from choosy.parallel.launch import end_with_launcher
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
