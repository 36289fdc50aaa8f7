"""Runs whose vLLM engine ends in the middle of a round: they end soon, say so, lose nothing, and go on."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from test_kill_ranks import rows
from tiny import ROOT, command, ending, labels, skip_without_vllm, typed
from torch.testing import assert_close

from choosy.main import compose, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FAILS = """

import os, pathlib, signal, time
from choosy.resume import partial_rounds
from choosy.sampling.vllm import Vllm

partial_rounds.EVERY = partial_rounds.SHARE = 0.0
HERE = pathlib.Path(__file__).parent
RANK = os.environ.get("LOCAL_RANK", "0")
HOW, WHO, WHEN = os.environ.get("FAIL", "never 0 0").split()
HERE.joinpath(f"pid{RANK}").write_text(str(os.getpid()))
ended, steps = Vllm._ended, 0

def failing(self, names):
    engine = self._llm.llm_engine
    step = type(engine).step

    def counted():
        global steps
        steps += 1
        if (RANK, steps) == (WHO, int(WHEN)):
            HERE.joinpath("failed").write_text(str(time.time()))
            maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
            named = [line for line in maps if "/dev/shm/" in line and "(deleted)" not in line]
            HERE.joinpath("shared").write_text("".join(named))
            if HOW == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the first error of all")
        return step(engine)

    if RANK == "0":
        with HERE.joinpath("asked").open("a") as file:
            print(len(names), file=file)
    engine.step = counted
    yield from ended(self, names)

Vllm._ended = failing
"""
HERE = Path(__file__).parent
FEW = ["sampler.batch_size=2", "sampler.max_new_tokens=12"]
VLLM = ["sampler=vllm", "sampler.compiled=false"]
SHARED = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "sampler.tensor_parallel=2"]
SOON = 60  # seconds; docs/devices.md
CHECK = 12  # steps in which the engine samples the tokens that the policy checks


def wait_for_the_end(folder: Path) -> None:
    """Both processes of a run have ended within the time that the docs state."""

    def is_running(rank: int) -> bool:
        try:
            return " Z " not in Path(f"/proc/{(folder / f'pid{rank}').read_text()}/stat").read_text()
        except OSError:
            return False

    while any(map(is_running, range(2))):
        time.sleep(0.2)
    assert time.time() < float((folder / "failed").read_text()) + SOON


def test_vllm_one_process_of_a_shared_engine_fails(tmp_path, wide_policy_dir, prompts_file, monkeypatch):
    skip_without_vllm()
    monkeypatch.syspath_prepend(tmp_path)
    lines = [*typed(tmp_path, wide_policy_dir, prompts_file), *VLLM, *FEW, "data.limit=4", "data.heldout=null"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(compose(lines), whole)  # on one process
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(FAILS)

    def play(fail: str) -> tuple[int, str, list[str]]:
        monkeypatch.setenv("FAIL", fail)
        words = [ROOT / "train.py", *lines, *SHARED, f"run_dir={run}", "ckpt_path=auto"]
        ended = command(*words, folder=tmp_path, ranks=2)
        asked = (tmp_path / "asked").read_text().split()
        (tmp_path / "asked").unlink()
        return ended.returncode, ended.stderr, asked

    code, said, asked = play(f"kill 1 {CHECK + 30}")  # two prompts of rank 0 are done, and none of rank 1
    wait_for_the_end(tmp_path)
    assert (code, asked) == (1, ["2", "8"]), said
    assert "another process of this run has ended" in said
    assert "ckpt_path=last" in said
    assert not (tmp_path / "shared").read_text(), "its name would stay where no process is left that deletes it"
    assert "Traceback" not in said
    code, said, asked = play(f"raise 0 {CHECK + 18}")  # and then one more of rank 0
    wait_for_the_end(tmp_path)
    assert (code, asked) == (1, ["2", "4"]), said
    assert 0 < said.find("the first error of all") < said.find("another process of this run has ended")
    assert "Traceback" not in said
    code, said, asked = play("never 0 0")
    assert (code, asked[:2]) == (0, ["2", "2"]), said
    assert rows(run) == rows(whole)
    assert {*labels(run / "ledger.sqlite")["key"]} == {*labels(whole / "ledger.sqlite")["key"]}
    weights, wanted = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (run, whole))
    assert_close(weights, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["vllm", "vllm_server"])
def test_vllm_killed_while_it_samples_ahead_ends_as_if_never_killed(
    sampler, tmp_path, wide_policy_dir, prompts_file, request
):
    skip_without_vllm()
    servers = [*request.getfixturevalue("vllm_servers")] if sampler == "vllm_server" else []
    engine = [f"sampler={sampler}", f"sampler.servers=[{','.join(servers)}]"] if servers else VLLM
    lines = [*typed(tmp_path, wide_policy_dir, prompts_file), *engine, *FEW, "rounds=3", "lr=1e-2", "sampler.ahead=1"]
    lines += ["selector=random", "callbacks.random_prompts.fraction=0.5", "data.heldout_limit=1"]
    lines += ["callbacks.checkpoint.every_n_steps=1"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = command(HERE / "killed.py", "nowhere", 0, *lines, f"run_dir={whole}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"4 prompts sampled ahead, .*: 9?\d tokens from sampler=(.*) in [\d.]+ s", done.stderr)
    assert [of_round.partition(" ")[0] for of_round in found] == [sampler] * 2
    of_servers = [re.findall(r"http:\S+ (\d+)", of_round) for of_round in found]
    assert [sum(map(int, answered)) for answered in of_servers] == [8 if servers else 0] * 2
    ratios = pd.read_csv(whole / "metrics.csv").dropna(subset="seconds/sample")["importance/ratio"]
    assert ratios.isna().tolist() == [True, False, False]
    assert (ratios[1:] - 1).abs().min() > 0.01, "the policy has moved"

    at = 8 + 1 + 2  # as the second of round 1 is written, after round 0 and its end
    killed = command(HERE / "killed.py", "sampling ahead", at, *lines, f"run_dir={run}", folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr  # and no other process has its stderr open any more
    assert len([*run.glob("rounds/sampling_001*")]) == 1
    resumed = command(HERE / "killed.py", "nowhere", 0, *lines, f"run_dir={run}", "ckpt_path=last", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert ending(run) == ending(whole)
    assert not (run / "served").exists()
