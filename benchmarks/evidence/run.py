"""Does choosing pay? Runs the arms of a task over many seeds, and compares them with random choice at equal cost.

`make evidence` runs the task film; `make evidence ONLY=film SEEDS=5` with fewer seeds. A run that is finished
is not repeated, so that hours of runs survive a kill. Each arm has the learning rate that was best for it on other
seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import film
import page
from common import DATA, ROOT, save

from choosy.reporting.compare import compare, draw
from choosy.reporting.courses import Versus

HERE = Path(__file__).parent
RUNS = HERE / "cache" / "runs"
TUNED = (101, 102, 103)  # seeds on which the learning rates are chosen
RATES = (3e-4, 1e-3)


@dataclass(frozen=True)
class Task:
    """What an arm is run on.

    Attributes:
        lines: What is typed for every run of it.
        pairs: Pairs that are labeled in a round.
        arms: What is typed for each arm besides.
        seeds: How many seeds its figures rest on.
    """

    lines: Sequence[str]
    pairs: int
    arms: Mapping[str, Sequence[str]]
    seeds: int


def pair_arms(pairs: int, responses: int) -> dict[str, list[str]]:
    """The selectors of pairs, each labeling so many pairs a round, and the best against the worst of fewer prompts."""

    def chosen_by(selector: str, callback: str, *more: str) -> list[str]:
        return [
            f"selector={selector}",
            f"callbacks.{callback}.fraction=null",
            f"callbacks.{callback}.count={pairs}",
            *more,
        ]

    prompts = pairs * 2 // responses  # as many labels: all responses of a prompt are scored
    return {
        "random_pairs": chosen_by("random_pairs", "random_pairs"),
        "certainty": chosen_by("certainty", "certainty"),
        "dissimilarity": chosen_by("dissimilarity", "dissimilarity"),
        "d_optimal": chosen_by("d_optimal", "d_optimal"),
        "predicted_gap": chosen_by("predicted_gap", "predicted_gap"),
        "delta_ucb": chosen_by("delta_ucb", "predicted_gap"),
        "best_against_worst": [
            "selector=random",
            "callbacks.random_prompts.fraction=null",
            f"callbacks.random_prompts.count={prompts}",
            "callbacks.random_prompts.warmup_rounds=0",
        ],
        "spread": ["selector=spread", "callbacks.spread.fraction=null", f"callbacks.spread.count={prompts}"],
    }


def tasks(only: Sequence[str]) -> Iterator[tuple[str, Task]]:
    """The tasks by name, made ready when their turn comes."""
    if "film" in only:
        made = film.prepare(DATA / "movie_sentences.jsonl")
        yield "film", Task(film.lines(made), 64, pair_arms(64, 4), 20)


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / "summary.json").exists()


def play(folder: Path, lines: Sequence[str]) -> None:
    """Play a run in a process of its own, unless it is finished."""
    if finished(folder):
        return
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(ROOT / "train.py"), *lines, f"run_dir={folder}", "ckpt_path=auto"]
    log = RUNS / "log" / f"{'_'.join(folder.relative_to(RUNS).parts)}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        ended = subprocess.run(command, env=environ, stdout=output, stderr=output, check=False)
    if ended.returncode:
        raise SystemExit(f"a run failed; see {log}")


def play_all(jobs: Sequence[tuple[Path, Sequence[str]]], at_once: int) -> None:
    """Play runs, so many at once, with a line for each that says how long the rest will take."""
    left = [job for job in jobs if not finished(job[0])]
    began = time.monotonic()
    print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished", flush=True)
    with ThreadPoolExecutor(at_once) as pool:
        for done, _ in enumerate(pool.map(lambda job: play(*job), left), 1):
            per_run = (time.monotonic() - began) / done
            print(f"{done} of {len(left)} runs, about {per_run * (len(left) - done) / 60:.0f} min left", flush=True)


def rate_of(task: str, arm: str, tuned: Sequence[int]) -> float:
    """The learning rate with the highest mean final reward on the seeds for tuning."""

    def mean(rate: float) -> float:
        folders = [RUNS / "tuning" / task / arm / f"{rate:g}" / str(seed) for seed in tuned]
        finals = [json.loads((folder / "summary.json").read_text())["reward"]["final"] for folder in folders]
        return sum(finals) / len(finals)

    return max(RATES, key=mean)


def plain(versus: Versus) -> dict[str, Any]:
    """The numbers as JSON has them, an interval as [value, low, high]; null = never reached, or not known."""

    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return {n: list(map(finite, x)) if isinstance(x, tuple) else finite(x) for n, x in asdict(versus).items()}


def evidence(name: str, task: Task, seeds: int, tuned: Sequence[int], at_once: int) -> dict[str, Any]:
    """Tune and run the arms of a task, and compare them with random choice."""
    tuning = [
        (RUNS / "tuning" / name / arm / f"{rate:g}" / str(seed), [*task.lines, *lines, f"lr={rate}", f"seed={seed}"])
        for seed in tuned
        for arm, lines in task.arms.items()
        for rate in RATES
    ]
    play_all(tuning, at_once)
    rates = {arm: rate_of(name, arm, tuned) for arm in task.arms}
    jobs = []
    for seed in range(seeds):
        arms = list(task.arms)
        random.Random(seed).shuffle(arms)
        for arm in arms:
            typed = [*task.lines, *task.arms[arm], f"lr={rates[arm]}", f"seed={seed}"]
            jobs.append((RUNS / name / arm / f"{rates[arm]:g}" / str(seed), typed))
    play_all(jobs, at_once)
    asked = {folder for folder, _ in jobs}

    def arm_of(folder: Path) -> tuple[str, ...] | None:
        return (folder.parents[1].name,) if folder in asked else None

    found = compare(RUNS / name, baseline="random_pairs", arm_of=arm_of)
    (ROOT / "docs" / "images" / f"evidence_{name}.png").write_bytes(draw(found))
    beside = {arm: {cost: plain(versus) for cost, versus in costs.items()} for arm, costs in found.beside.items()}
    return {
        "seeds": seeds,
        "tuned_on": tuned,
        "lr": rates,
        "comparisons": len(beside),
        "sentence": found.sentence,
        "beside_random": beside,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="film", help="tasks, with commas between them")
    parser.add_argument("--seeds", type=int, help="seeds of each arm (default: as many as each task says)")
    parser.add_argument("--arms", help="arms, with commas between them (default: all)")
    parser.add_argument("--tuning-seeds", type=int, default=len(TUNED))
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    typed = parser.parse_args()
    result = {}
    for name, whole in tasks((typed.only or "film").split(",")):
        arms = typed.arms.split(",") if typed.arms else whole.arms
        task = replace(whole, arms={arm: whole.arms[arm] for arm in arms})
        tuned = TUNED[: typed.tuning_seeds]
        result[name] = evidence(name, task, typed.seeds or task.seeds, tuned, typed.at_once)
        print(result[name]["sentence"], flush=True)
    save("evidence", result)
    (ROOT / "docs" / "evidence.md").write_text(page.written(result))


if __name__ == "__main__":
    main()
