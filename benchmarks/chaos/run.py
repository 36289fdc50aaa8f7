"""A monkey that plays, kills, stops, damages and doubles runs: python benchmarks/chaos/run.py --seed 0 --minutes 10

It plays over one ledger, with a labeler that writes down each call that is paid for, and after each operation checks
what docs/promises.md says. Runs are real: `python train.py ...` in a process of its own, forked from one that has
imported the libraries. A moment is counted and not timed, such as the 12th file that a run opens, so that a seed
repeats itself; where two processes race, the system decides which one is first.

At a broken promise it prints the seed, the number of the operation and what was typed, and keeps the folder.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import operations
import spoil  # noqa: F401  # whose operations are registered by it
from promises import Broken, Promises, ending, outcome
from world import RECIPES, Call, Run, World, shown


def play_references(world: World, promises: Promises) -> None:
    """Play a run of each recipe without a disturbance, in a folder of their own, and count what happens in it."""
    with world.beside() as place:
        for name in RECIPES:
            run = Run("reference", name, labeler="reference")
            counts = place / "counts.json"
            call = Call(world.words(run, ledger="reference.sqlite"), run.labeler, {"counts": str(counts)})
            (ended,) = world.play(call, at=place)
            if ended.code:
                raise SystemExit(f"{shown(ended.words)}\n{ended.said}")
            promises.references[name] = ending(world, run, at=place)
            world.counts[name] = json.loads(counts.read_text())
            shutil.rmtree(place / "runs" / "reference")
            for file in place.glob("reference.sqlite*"):
                file.unlink()


class Monkey:
    """Plays operations and counts what becomes of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.world = World(folder)
        self.promises = Promises(self.world)
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.times: Counter[str] = Counter()
        self.began = time.monotonic()

    def start(self) -> None:
        """Make the world, and play the runs that all others are compared with."""
        self.world.make()
        play_references(self.world, self.promises)
        self.began = time.monotonic()

    def step(self, name: str | None = None) -> None:
        """Play the next operation, or this one, and check all promises."""
        world = self.world
        world.number += 1
        world.typed = []
        draw = random.Random(f"{self.seed} {world.number}")
        name = name or operations.drawn(world, draw)
        self.times[name] += 1
        try:
            touched = operations.OPERATIONS[name].play(world, self.promises, draw)
            operations.learn_names(world)
            self.promises.check(*touched)
        finally:
            for ended in world.typed:
                self.outcomes[name][outcome(ended)] += 1
            self.log(name)

    def log(self, name: str) -> None:
        """Append the operation to the log of the folder."""
        typed = [{"typed": shown(one.words), "code": one.code, "said": one.said[-2000:]} for one in self.world.typed]
        with (self.world.folder / "operations.jsonl").open("a") as file:
            file.write(json.dumps({"number": self.world.number, "operation": name, "commands": typed}) + "\n")

    def report(self) -> dict[str, Any]:
        """What was done, what became of it, and what was checked."""
        return {
            "seed": self.seed,
            "operations": self.world.number,
            "commands": sum(sum(found.values()) for found in self.outcomes.values()),
            "seconds": round(time.monotonic() - self.began, 1),
            "labels": len(self.world.labels()),
            "calls": sum(self.promises.billed.values()),
            "calls_cut_off": sum(self.promises.lost.values()),
            "runs_compared": len(self.promises.ended),
            "played": {
                name: {"times": times, "outcomes": dict(self.outcomes[name].most_common())}
                for name, times in self.times.most_common()
            },
            "checked": dict(self.promises.checked.most_common()),
        }


def progress(monkey: Monkey, most: int, until: float) -> str:
    """A line on how far it is."""
    done, spent = monkey.world.number, time.monotonic() - monkey.began
    by_number = spent / done * (most - done)
    left = min(by_number, until - time.monotonic())
    checks = sum(monkey.promises.checked.values())
    return f"{done:5} operations, {checks:6} checks, {spent:4.0f} s; about {max(left, 0):.0f} s to go"


def main() -> None:
    """Let the monkey play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0, help="it begins no operation afterwards")
    parser.add_argument("--operations", type=int, default=None, help="so many, however long they take")
    parser.add_argument("--folder", type=Path, default=None, help="where it plays; deleted if all promises are kept")
    parser.add_argument("--out", type=Path, default=None, help="the file of the report, in JSON")
    typed = parser.parse_args()
    folder = typed.folder or Path(tempfile.mkdtemp(prefix=f"chaos-{typed.seed}-")) / "world"
    monkey = Monkey(typed.seed, folder)
    print(f"seed {typed.seed}, in {folder}", flush=True)
    monkey.start()
    most = typed.operations or sys.maxsize
    until = monkey.began + typed.minutes * 60 if typed.operations is None else float("inf")
    shown_at = time.monotonic()
    try:
        while monkey.world.number < most and time.monotonic() < until:
            monkey.step()
            if time.monotonic() > shown_at + 15:
                shown_at = time.monotonic()
                print(progress(monkey, min(most, 10**6), until), flush=True)
        while any(not monkey.world.is_finished(run) for run in monkey.world.runs):
            monkey.step("resume")
    except Broken as broken:
        commands = "\n  ".join(shown(one.words) for one in monkey.world.typed)
        print(f"\nseed {typed.seed}, operation {monkey.world.number}: a promise is broken\n{broken}\n  {commands}")
        print(f"the folder is kept: {folder}; operations.jsonl has what was typed before")
        sys.exit(1)
    report = json.dumps(monkey.report(), indent=1)
    print(f"{report}\nno promise was broken")
    if typed.out:
        typed.out.write_text(report + "\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
