"""Seconds until held-out answers have a mean reward of 0.6: Choosy's demo and TRL's OnlineDPOTrainer take turns.

`python benchmarks/seconds_to_reward.py` writes benchmarks/results/seconds_to_reward.json. Both tune SmolLM2-135M with
LoRA on the prompts that come with Choosy, by VADER's sentiment, with the same sampling and loss. Seconds are those of a
processor, on one thread, for choosing, sampling, scoring and training: loading the model and judging held-out answers
do not count. Each has its own learning rate: of the two that were the fastest of several on one other seed, the one
that is faster on two. What is measured is kept, so that a call that was stopped can be continued.
"""

from __future__ import annotations

import argparse
import json
import math
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

NAME = "seconds_to_reward"
TARGET = 0.6
START = (
    0.2  # about the reward of the policy that both begin with; it counts only where the first point is past the target
)
MOST_SECONDS = 1500.0
TUNED_ON = (101, 102)
JOB = {
    "lora": LORA,
    "batch_size": 8,
    "max_new_tokens": 40,
    "temperature": 0.7,
    "top_p": 0.9,
    "missing_eos_penalty": 0.5,
    "beta": 0.2,
    "every": 4,  # steps between the evaluations of TRL
    "target": TARGET,
}


def ours(seed: int, lr: str, folder: Path) -> list[tuple[float, float]]:
    """Seconds and rewards of the demo's run with VADER alone, and rounds enough to pass the target."""
    typed = ["experiment=demo", "trainer=cpu", "rounds=4", f"lr={lr}", f"seed={seed}", "callbacks.report.console=false"]
    typed += ["labeler=vader", f"labels.missing_eos_penalty={JOB['missing_eos_penalty']}", f"loss.beta={JOB['beta']}"]
    command = [sys.executable, ROOT / "train.py", *typed, f"run_dir={folder}"]
    with Path(f"{folder}.log").open("w") as log:
        busy = busy_share(command, {**os.environ, "HF_HUB_OFFLINE": "1"}, log)
    found = course(read_run(folder))
    points = [(busy * seconds, reward) for seconds, reward in zip(found.spent["seconds"], found.quality, strict=True)]
    print(json.dumps({"choosy": points, "seed": seed, "lr": lr}), flush=True)
    return points


def theirs(seed: int, lr: str, folder: Path, most: float = MOST_SECONDS) -> list[tuple[float, float]]:
    """The same of TRL's run, which ends at the target or at `most` seconds."""
    train, heldout = (
        [p.text for p in read_prompts(f"choosy:prompts/{name}.jsonl", as_chat=False)] for name in ("train", "heldout")
    )
    model = resolve_model("demo:smollm2")
    job: dict[str, Any] = {"model": model, "prompts": train, "heldout": heldout, "folder": str(folder)}
    job |= JOB | {"seed": seed, "lr": float(lr), "most_seconds": most}
    program = Program(peer_python(), "peers/trl_time.py", job, log="trl_time")
    points = [(0.0, START)]
    while points[-1][1] < TARGET and points[-1][0] <= most:
        said = program.answer()
        points.append((said["seconds"], said["reward"]))
        print(json.dumps({"seed": seed, "lr": lr} | said), flush=True)
    program.process.wait()
    return points


def seconds_to(points: Sequence[tuple[float, float]]) -> float | None:
    """When the reward, a straight line between evaluations, is first at the target; None if it never is."""
    best = np.maximum.accumulate([reward for _, reward in points])
    if best[-1] < TARGET:
        return None
    at = int(np.argmax(best >= TARGET))
    (before, low), (after, high) = points[at - 1], points[at]
    return before + (after - before) * (TARGET - low) / (high - low)


Tried = dict[str, dict[str, list[float | None]]]  # seconds to the target on the seeds for tuning, by trainer and rate


def total(seconds: Sequence[float | None]) -> float:
    """Their sum, where one that is never there counts as the most that is waited for."""
    return sum(MOST_SECONDS if one is None else one for one in seconds)


def fastest(tried: dict[str, list[float | None]], seeds: int, count: int = 1) -> list[str]:
    """The learning rates with the fewest seconds on so many seeds, of those that were tried on as many."""
    known = {lr: total(found[:seeds]) for lr, found in tried.items() if len(found) >= seeds}
    return sorted(known, key=lambda lr: known[lr])[:count]


def tune(lrs: Sequence[str], known: dict[str, Any], folder: Path) -> dict[str, str]:
    """Add to the known what is missing on the seeds for tuning, and return each trainer's learning rate.

    On the first seed, a run of TRL that is slower than its best so far is cut.
    """
    runs = {"choosy": ours, "trl": theirs}
    tried: Tried = known.setdefault("tuned", {name: {} for name in runs})
    for number, seed in enumerate(TUNED_ON):
        for trainer, run in runs.items():
            for lr in fastest(tried[trainer], number, 2) if number else lrs:
                found = tried[trainer].setdefault(lr, [])
                if len(found) == number:
                    best = [total(one) for one in tried[trainer].values() if one]
                    most = {"most": min(best, default=MOST_SECONDS)} if trainer == "trl" and not number else {}
                    found.append(seconds_to(run(seed, lr, folder / f"{trainer}_{seed}_{lr}", **most)))
                    save(NAME, known)
    return {trainer: fastest(tried[trainer], len(TUNED_ON))[0] for trainer in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", default="2e-4,5e-4,1e-3,2e-3,4e-3", help="learning rates, with commas")
    parser.add_argument("--fresh", action="store_true", help="repeat what an earlier call has measured")
    typed = parser.parse_args()
    kept = RESULTS / f"{NAME}.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and not typed.fresh else {}
    known.pop("machine", None)
    known["target"] = TARGET
    os.environ["OMP_NUM_THREADS"] = "1"  # of both
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lrs = tune(typed.lrs.split(","), known, folder)
        if lrs != known.get("lrs"):
            known |= {"lrs": lrs, "seeds": []}
        turns = known["seeds"]
        for seed in range(len(turns), typed.seeds):
            mine = seconds_to(ours(seed, lrs["choosy"], folder / f"ours_{seed}"))
            turns.append({"choosy": mine, "trl": seconds_to(theirs(seed, lrs["trl"], folder / f"theirs_{seed}"))})
            known["ratio"] = middle([(turn["trl"] or math.inf) / (turn["choosy"] or math.inf) for turn in turns])
            save(NAME, known)


if __name__ == "__main__":
    main()
