"""Choosy's WeightedDPO under Lightning's Trainer on given rows, a window of steps at a time."""

from __future__ import annotations

import functools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from flops import flops, matmul_peak

from choosy.data.batches import Batch, Item, batch_of
from choosy.methods.losses import SigmoidLoss
from choosy.models.adapters import Lora
from choosy.models.compute import Compute
from choosy.models.policy import Policy
from choosy.module import WeightedDPO
from choosy.reporting.display import quiet
from choosy.types import Candidates, Prompt, Response

job = json.loads(sys.argv[1])


def say(**what: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(what | {"peak_gb": peak}), flush=True)


class Windows(Callback):
    """Stops before each window of steps until a line comes in, and says what it took."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.flops = 0.0
        self.started = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, step: int) -> None:
        measured = step - job["warmup_steps"]
        if measured == 0:
            say(warm=True)
        if measured >= 0 and measured % job["steps"] == 0:
            sys.stdin.readline()
            self.peak, self.flops, self.started = matmul_peak(), 0.0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, step: int) -> None:
        self.losses.append(float(trainer.callback_metrics["loss_step"]))
        self.flops += flops(module.policy, batch.groups)
        if step >= job["warmup_steps"] and (step + 1 - job["warmup_steps"]) % job["steps"] == 0:
            seconds = time.perf_counter() - self.started
            say(seconds=seconds, flop_per_s=self.flops / seconds, peak_flop_per_s=max(self.peak, matmul_peak()))


def main() -> None:
    quiet()
    started = time.perf_counter()
    policy = Policy(
        job["model"],
        lora=Lora(r=job["lora"]["r"], alpha=job["lora"]["lora_alpha"]) if job["lora"] else None,
        dtype="bfloat16" if job["bf16"] else "float32",
        compute=Compute(tokens_per_step=job["tokens_per_step"], **job.get("compute", {})),
    )
    policy.load(device=torch.device("cpu"), seed=0)
    rows = [(tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), tuple(row["rejected_ids"])) for row in job["rows"]]
    reference = time.perf_counter()
    scored = policy.score_reference(
        [Candidates(Prompt("", ""), (Response("", c), Response("", r)), p) for p, c, r in rows]
    )
    reference_seconds = time.perf_counter() - reference
    items = [
        Item(str(i), p, [c, r], [scored.logp_ref for scored in s.responses])
        for i, ((p, c, r), s) in enumerate(zip(rows, scored, strict=True))
    ]
    size, n = job["batch_size"], job["warmup_steps"] + job["windows"] * job["steps"]
    batches = [batch_of([items[(i * size + j) % len(items)] for j in range(size)]) for i in range(n)]
    windows = Windows()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[windows],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = WeightedDPO(
        policy,
        loss=SigmoidLoss(job["beta"]),
        optimizer=functools.partial(torch.optim.AdamW, lr=job["lr"], weight_decay=0.0, fused=True),
    )
    say(setup_seconds=time.perf_counter() - started, reference_seconds=reference_seconds)
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    say(losses=windows.losses)


main()
