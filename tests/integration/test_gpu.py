"""What only a GPU can show: the CPU's values from its kernels, and whole runs on it. Without one this is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT, command, summary, typed

from choosy.models.adapters import Lora
from choosy.models.compute import Compute, free_memory
from choosy.models.policy import Policy
from choosy.models.rows import Group

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
GROUPS = [
    Group([*range(5, 40)], [[*range(7, 30)], [*range(30, 130)]]),
    Group([*range(5, 35)], [[9, 8], [1, 2, 3], [*range(90)]]),
    Group([*range(60, 200)], [[*range(40, 140)], [5]]),
]
ROUNDING = {"float32": 5e-3, "bfloat16": 0.1}
PATHS: dict[str, dict[str, Any]] = {
    "padded": {"attention": "sdpa", "share_prompt": False},
    "sdpa": {"attention": "sdpa"},
    "not fused": {"attention": "sdpa", "fused": False},
    "checkpointing": {"attention": "sdpa", "gradient_checkpointing": True},
    "grouped": {"attention": "grouped"},
    "flex_attention": {"attention": "flex_attention"},
}


def outcome(folder: Path, device: torch.device, *, lora: bool, dtype: Any, **how: Any) -> dict[str, torch.Tensor]:
    """Log-probs of the groups' tokens, and the gradient of their sum, each with a factor of its own."""
    policy = Policy(str(folder), lora=Lora(r=4) if lora else None, dtype=dtype, compute=Compute(**how))
    policy.load(device=device, seed=0)
    noise = torch.Generator().manual_seed(1)
    for name, p in policy.trainable():
        if "lora_B" in name:
            p.data.copy_(torch.empty(p.shape).normal_(0, 0.05, generator=noise))
    assert policy.shares_prompts == how.get("share_prompt", True)
    assert policy.one_row == (how["attention"] in ("grouped", "flex_attention"))
    logp_T = policy.token_logps(GROUPS)
    (logp_T * torch.linspace(-1, 1, len(logp_T), device=logp_T.device)).sum().backward()
    gradients = {name: p.grad.cpu() for name, p in policy.trainable() if p.grad is not None}
    return {"log-probs": logp_T.detach().cpu(), **gradients}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_log_probs_and_gradients_are_those_of_the_cpu(path: str, lora: bool, dtype: str, wide_policy_dir: Path) -> None:
    plain = {"attention": "sdpa", "share_prompt": False, "fused": False}
    wanted = outcome(wide_policy_dir, torch.device("cpu"), lora=lora, dtype="float32", **plain)
    found = outcome(wide_policy_dir, DEVICE, lora=lora, dtype=dtype, **PATHS[path])
    assert found.keys() == wanted.keys()
    far = {name: float((found[name] - value).norm() / value.norm()) for name, value in wanted.items()}
    assert max(far.values()) < ROUNDING[dtype], far


ALONE = ["logger.tensorboard=null"]  # a machine without a network may lack TensorBoard
RUNS = {
    "plain": [],
    "bf16": ["model.dtype=bfloat16"],
    "all weights": ["model=smollm2_full", "model.dtype=bfloat16"],
    "flex_attention": ["model.compute.attention=flex_attention", "model.dtype=bfloat16"],
    "certainty": ["selector=certainty", "model.dtype=bfloat16"],
    "entropy": ["selector=entropy"],
    "learned reward": ["selector=predicted_gap", "learned_reward.embedder=policy", "learned_reward.min_labels=4"],
    "unpaired": ["loss=kto", "data.responses=3"],
    "a list": ["loss=pro", "data.responses=3"],
    "of tokens": ["loss=bmc"],
    "own samples": ["loss=hypo", "loss.shares.kl=1.0", "data.responses=3"],
    "a head": ["loss=spo", "loss.share=1.0"],
    "of the step": ["loss=aot"],
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_a_run_is_played_on_the_gpu(words: list[str], play: Any, wide_policy_dir: Path) -> None:
    run = play("trainer=gpu", f"model.name={wide_policy_dir}", *ALONE, *words)
    assert run.policy.device.type == "cuda"
    assert run.summary["rounds"] == 2
    assert run.losses
    assert any(not torch.equal(now.cpu(), run.witness.start[name].cpu()) for name, now in run.weights.items())


def test_a_sharded_run_on_one_gpu(tmp_path: Path, wide_policy_dir: Path, prompts_file: Path) -> None:
    words = [*typed(tmp_path, wide_policy_dir, prompts_file), "trainer=fsdp", "trainer.accelerator=gpu"]
    words += ["trainer.devices=1", *ALONE]
    run = command(ROOT / "train.py", *words, "name=sharded", folder=tmp_path, fresh=True)
    assert run.returncode == 0, run.stderr
    assert summary(tmp_path / "runs" / "sharded")["rounds"] == 2


def test_the_message_of_a_step_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_step=8 does not fit into the memory of cuda.*tokens_per_step=4"):  # noqa: SIM117
        with Compute(8).explain_oom(DEVICE, []):
            torch.empty(1 << 45, device=DEVICE)


def test_free_memory_falls_by_what_is_taken_and_counts_what_is_freed() -> None:
    before = free_memory(DEVICE)
    taken = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    assert before - free_memory(DEVICE) == pytest.approx(1 << 30, rel=0.1)
    del taken
    assert free_memory(DEVICE) == pytest.approx(before, rel=0.01)
