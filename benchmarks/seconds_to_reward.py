"""Seconds until held-out answers have a mean reward of 0.6: Choosy's demo and TRL's OnlineDPOTrainer take turns.

`python benchmarks/seconds_to_reward.py` writes benchmarks/results/seconds_to_reward.json. Both tune SmolLM2-135M with
LoRA on the prompts that come with Choosy, by VADER's sentiment, with the same sampling and loss. Seconds are those of a
processor, on one thread, for choosing, sampling, scoring and training: loading the model and judging held-out answers
do not count. TRL has the learning rate, of several, that was the fastest on another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import LORA, RESULTS, ROOT, Program, busy_share, middle, peer_python, save

from choosy.data.reading import read_prompts
from choosy.models.locate import resolve_model
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import course

TARGET = 0.6
MOST_SECONDS = 1500.0
TUNED_ON = 101
JOB = {
    "lora": LORA,
    "batch_size": 8,
    "max_new_tokens": 40,
    "temperature": 0.7,
    "top_p": 0.9,
    "missing_eos_penalty": 0.5,
    "beta": 0.2,
    "every": 8,  # steps between the evaluations of TRL
    "target": TARGET,
}


def ours(seed: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds and rewards of the demo's run, with rounds enough to pass the target."""
    typed = ["experiment=demo", "trainer=cpu", "rounds=4", f"seed={seed}", "callbacks.report.console=false"]
    command = [sys.executable, ROOT / "train.py", *typed, f"run_dir={folder}"]
    with Path(f"{folder}.log").open("w") as log:
        busy = busy_share(command, {**os.environ, "HF_HUB_OFFLINE": "1"}, log)
    found = course(read_run(folder))
    return [(busy * seconds, reward) for seconds, reward in zip(found.spent["seconds"], found.quality, strict=True)]


def theirs(seed: int, lr: float, folder: Path, start: float, most: float = MOST_SECONDS) -> list[tuple[float, float]]:
    """The same of TRL's run, which ends at the target; both begin with the same policy and so with the same reward."""
    train, heldout = (
        [p.text for p in read_prompts(f"choosy:prompts/{name}.jsonl", as_chat=False)] for name in ("train", "heldout")
    )
    model = resolve_model("demo:smollm2")
    job: dict[str, Any] = {"model": model, "prompts": train, "heldout": heldout, "folder": str(folder)}
    job |= JOB | {"seed": seed, "lr": lr, "most_seconds": most}
    program = Program(peer_python(), "peers/trl_time.py", job, log="trl_time")
    points = [(0.0, start)]
    while points[-1][1] < TARGET and points[-1][0] <= most:
        said = program.answer()
        points.append((said["seconds"], said["reward"]))
        print(json.dumps({"seed": seed, "lr": lr} | said), flush=True)
    program.process.wait()
    return points


def seconds_to(points: Sequence[tuple[float, float]]) -> float:
    """When the reward, a straight line between evaluations, is first at the target; infinity if it never is."""
    best = np.maximum.accumulate([reward for _, reward in points])
    if best[-1] < TARGET:
        return float("inf")
    at = int(np.argmax(best >= TARGET))
    (before, low), (after, high) = points[at - 1], points[at]
    return before + (after - before) * (TARGET - low) / (high - low)


def tune(lrs: Sequence[str], tried: dict[str, float], folder: Path) -> None:
    """Add TRL's seconds on the seed for tuning with each learning rate; one slower than the best so far is cut."""
    for lr in lrs:
        if lr not in tried:
            start = ours(TUNED_ON, folder / "ours")[0][1]
            most = min([MOST_SECONDS, *tried.values()])
            tried[lr] = seconds_to(theirs(TUNED_ON, float(lr), folder / f"tuning_{lr}", start, most))
            save("seconds_to_reward", {"target": TARGET, "tuned": tried})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", default="2e-4,5e-4,1e-3", help="learning rates that TRL may have")
    parser.add_argument("--fresh", action="store_true", help="repeat what an earlier call has measured")
    typed = parser.parse_args()
    kept = RESULTS / "seconds_to_reward.json"
    before = json.loads(kept.read_text()) if kept.exists() and not typed.fresh else {}
    os.environ["OMP_NUM_THREADS"] = "1"  # of both
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tried, turns = before.get("tuned", {}), before.get("seeds", [])
        tune(typed.lrs.split(","), tried, folder)
        lr = min(tried, key=lambda lr: tried[lr])
        for seed in range(len(turns), typed.seeds):
            mine = ours(seed, folder / f"ours_{seed}")
            theirs_to = seconds_to(theirs(seed, float(lr), folder / f"theirs_{seed}", mine[0][1]))
            turns.append({"ours": seconds_to(mine), "trl": theirs_to})
            ratio = middle([turn["trl"] / turn["ours"] for turn in turns])
            result = {"target": TARGET, "ratio": ratio, "trl_lr": lr, "tuned": tried, "seeds": turns}
            save("seconds_to_reward", result)


if __name__ == "__main__":
    main()
