"""What goes wrong on a machine ends a run soon and in a sentence, and loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from tiny import ROOT, command, labels, typed
from torch.testing import assert_close

from choosy.methods.losses import SigmoidLoss
from choosy.models.compute import Compute
from choosy.models.policy import Policy
from choosy.module import WeightedDPO
from choosy.sampling.generate import Generate

BROKEN = '''
import os, pathlib, signal, time
from lightning.pytorch import Callback

class Broken(Callback):
    """Notes the process; in a step of the training, one rank raises or is killed."""

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_train_start(self, trainer, pl_module):
        pathlib.Path(__file__).with_name(f"pid{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == self.rank:
            pathlib.Path(__file__).with_name("failed").write_text(str(time.time()))
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the first error of all")

class NotANumber(Callback):
    """From the second step on, the log-probs of one prompt's pairs are nan."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        import torch
        policy = pl_module.policy
        if batch_idx != 1 or "token_logps" in vars(policy):
            return
        bad, real = trainer.datamodule.prompts[3], policy.token_logps
        ids = tuple(policy.tokens.encode_prompt(bad))

        def cracked(groups, **more):
            good = [0.0 if tuple(g.prompt_ids) == ids else 1.0 for g in groups for r in g.response_ids for _ in r]
            logp_T = real(groups, **more)
            return logp_T / torch.tensor(good) if 0.0 in good else logp_T
        policy.token_logps = cracked
'''
LAUNCHERS = {"lightning": [], "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
SOON = 60  # seconds; docs/devices.md


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "launcher"), [(1, "raise", "lightning"), (1, "kill", "lightning"), (0, "kill", "torchrun")]
)
def test_one_rank_that_fails_ends_all(rank, how, launcher, tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "data.heldout=null", f"run_dir={tmp_path / 'run'}"]
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(BROKEN)
    broken = f"+callbacks.broken={{_target_: toy.Broken, rank: {rank}, how: {how}}}"
    run = command(*LAUNCHERS[launcher], ROOT / "train.py", *lines, *DDP, broken, folder=tmp_path)
    assert run.returncode != 0
    pids = [int((tmp_path / f"pid{r}").read_text()) for r in (0, 1)]
    failed = float((tmp_path / "failed").read_text())
    while any(map(is_running, pids)) and time.time() < failed + SOON:
        time.sleep(0.2)
    assert not any(map(is_running, pids)), "there is an orphan"
    assert time.time() < failed + SOON
    found = [
        where
        for words in ("the first error of all", "another process of this run")
        if (where := run.stderr.find(words)) >= 0
    ]
    if how == "raise":
        assert "the first error of all" in run.stderr
        assert found == sorted(found), "the first error is on top"
    assert "gloo" not in run.stderr, "what follows from the first error is stated in a sentence"


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "choice"), [("cpu", "stop"), ("ddp", "skip"), ("fsdp", "skip")])
def test_a_loss_that_is_no_number(strategy, choice, tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "data.heldout=null", "selector=none", "rounds=1"]
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(BROKEN)
    many = [] if strategy == "cpu" else [f"trainer={strategy}", *DDP[1:]]
    cracked = "+callbacks.cracked={_target_: toy.NotANumber}"
    settings = [*many, cracked, f"on_bad_loss={choice}", "epochs_per_round=2", f"run_dir={tmp_path / 'run'}"]
    run = command(ROOT / "train.py", *lines, *settings, folder=tmp_path, ranks=2 if many else 1)
    message = re.search(r"The loss of 1 items is not finite \(prompts p03\);", run.stderr + run.stdout)
    assert message, run.stderr
    if choice == "stop":
        assert run.returncode != 0
        assert "the last checkpoint is good" in run.stderr
        assert "on_bad_loss=skip" in run.stderr
        return
    assert run.returncode == 0, run.stderr
    shown = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert shown["loss_step"].notna().sum() == 4
    assert (tmp_path / "run" / "adapter").is_dir()


def test_on_bad_loss_is_one_of_two():
    with pytest.raises(ValueError, match=r"on_bad_loss=ignore is none of stop, skip"):
        WeightedDPO(Policy("any"), loss=SigmoidLoss(), optimizer=torch.optim.AdamW, on_bad_loss="ignore")


def test_gather_is_one_of_three():
    with pytest.raises(ValueError, match=r"model.compute.gather=often is none of auto, always, never"):
        Compute(gather="often")


class Blown(Callback):
    """Makes one step's gradient infinite, though its loss is finite."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == 1:
            self.before = {name: p.detach().clone() for name, p in pl_module.policy.trainable()}
            next(pl_module.policy.trainable())[1].grad.fill_(torch.inf)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.before and not self.after:
            self.after = {name: p.detach().clone() for name, p in pl_module.policy.trainable()}


def test_a_gradient_that_is_no_number_stops_the_run(play):
    with pytest.raises(ValueError, match=r"gradient of step 1 is (inf|nan), .*the last checkpoint is good"):
        play("data.heldout=null", callbacks=[Blown()])


def test_a_gradient_that_is_no_number_is_skipped(play):
    blown = Blown()
    ended = play("data.heldout=null", "on_bad_loss=skip", callbacks=[blown])
    assert_close(blown.after, blown.before, rtol=0, atol=0)
    assert all(torch.isfinite(p).all() for p in ended.weights.values())


class SmallMemory:
    """A forward hook of a machine that holds so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.largest = 0

    def __call__(self, module, args, kwargs) -> None:
        rows = len(kwargs["input_ids"])
        if rows > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.largest = max(self.largest, rows)


def test_sampling_that_does_not_fit_goes_on_with_half(load_policy, caplog):
    policy: Policy = load_policy()
    prompts = [policy.tokens.tokenizer(text).input_ids for text in ("Tea.", "Rain is", "Of bread", "Snow and", "Music")]
    seeds = [[10 * p + n for n in range(2)] for p in range(len(prompts))]
    wanted = Generate(max_new_tokens=8).sample(policy, prompts, seeds)
    memory = SmallMemory(5)
    policy.causal_lm.get_decoder().register_forward_pre_hook(memory, with_kwargs=True)
    sampler = Generate(max_new_tokens=8)
    found = sampler.sample(policy, prompts, seeds)
    assert [[r.text for r in of_prompt] for of_prompt in found] == [[r.text for r in of_prompt] for of_prompt in wanted]
    assert memory.largest <= 5
    assert sampler.batch_size <= 5
    assert "it continues with sampler.batch_size=" in caplog.text


def test_one_prompt_that_does_not_fit_is_told(load_policy):
    policy: Policy = load_policy()
    policy.causal_lm.get_decoder().register_forward_pre_hook(SmallMemory(1), with_kwargs=True)
    ids = policy.tokens.tokenizer("Tea.").input_ids
    with pytest.raises(ValueError, match=r"does not fit .*smaller sampler.max_new_tokens, data.responses"):
        Generate(max_new_tokens=8).sample(policy, [ids], [[1, 2]])


class TrainingNeedsMemory(Callback):
    def on_train_start(self, trainer, pl_module) -> None:
        pl_module.policy.causal_lm.get_decoder().register_forward_pre_hook(self.fail)

    def fail(self, module, args) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_training_that_does_not_fit_names_the_setting(play):
    wanted = r"step=2048 does not fit .*batching.tokens_per_step=1024 or model.compute.gradient_checkpointing=true"
    with pytest.raises(ValueError, match=wanted):
        play("data.heldout=null", callbacks=[TrainingNeedsMemory()])


SMALL_MEMORY = """
import torch
from lightning.pytorch import Callback

class NeedsMemory(Callback):
    def on_train_start(self, trainer, pl_module):
        pl_module.policy.causal_lm.get_decoder().register_forward_pre_hook(self.fail)

    def fail(self, module, args):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
"""


@pytest.mark.parametrize("trainer", ["cpu", "fsdp"])
def test_an_item_is_not_advised_what_sharded_weights_refuse(trainer, tmp_path, tiny_policy_dir, prompts_file):
    (tmp_path / "small_memory.py").write_text(SMALL_MEMORY)
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "data.heldout=null", "batching.tokens_per_step=1"]
    many = [] if trainer == "cpu" else ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1"]
    small = "+callbacks.small={_target_: small_memory.NeedsMemory}"
    run = command(ROOT / "train.py", *lines, *many, small, f"run_dir={tmp_path / 'run'}", folder=tmp_path)
    assert run.returncode != 0
    found = re.search(r"The item of prompt p.* does not fit .*; type model.compute.gradient_check.*", run.stderr)
    assert found, run.stderr
    assert ("model.compute.split_long=true" in found[0]) == (trainer == "cpu")


# -- disks and clocks ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root to mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FULL = """
import resource, sys

def hear(event, args):  # once the file is to be written, no file may grow
    if event in ("open", "os.mkdir") and {name!r} in str(args[0]) and "r" not in str(args[1]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

sys.addaudithook(hear)
sys.argv[0] = "train.py"
from choosy.main import main
main()
"""


class Disk(Callback):
    """Fills the disk, or makes it read-only, before a step of round 1."""

    def __init__(self, folder: Path, fault: str) -> None:
        self.folder = folder
        self.fault = fault

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            self.break_down()

    def break_down(self) -> None:
        if self.fault == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
            return
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"0" * 4096)
            except OSError:
                return

    def mend(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
        (self.folder / "filler").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_fails_loses_nothing(fault, play, small_disk, tmp_path):
    settings = ["rounds=3", "selector=random", "logger=default", "~logger.tensorboard"]
    whole = play(*settings, name="whole")
    disk = Disk(small_disk, fault)
    with pytest.raises(Exception, match=r"(?i)no space|disk|read-?only|cannot be written"):
        play(*settings, name="disk/run", callbacks=[disk])
    disk.mend()
    bought = set(labels(small_disk / "run" / "ledger.sqlite")["key"])
    resumed = play(*settings, "ckpt_path=last", name="disk/run")
    assert_close(resumed.weights, whole.weights, rtol=0, atol=0)
    assert resumed.summary["labels"] == whole.summary["labels"]
    assert bought
    assert bought <= set(labels(small_disk / "run" / "ledger.sqlite")["key"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.csv", "round_000.ckpt", "run/adapter", "report.html"])
def test_a_full_disk_is_named_in_a_sentence(name, tmp_path, tiny_policy_dir, prompts_file):
    script = tmp_path / "full.py"
    script.write_text(FULL.format(name=name))
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", "data.heldout=null", "run_dir=run"]
    full = command(script, *lines, folder=tmp_path)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert re.search(
        r"The disk has no room \(File too large\).*\n  python train\.py .*ckpt_path=last$", full.stderr.strip()
    )
    again = command(ROOT / "train.py", *lines, "ckpt_path=last", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_clock_that_jumps_changes_nothing(play, monkeypatch):
    settings = ["data.heldout=null", "rounds=2", "selector=random"]
    whole = play(*settings, name="whole")
    now, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 86400.0)
    jumped = play(*settings, name="jumped")
    assert_close(jumped.weights, whole.weights, rtol=0, atol=0)
    pd.testing.assert_frame_equal(jumped.pool, whole.pool)
    assert jumped.summary["labels"] == whole.summary["labels"]
