"""What it saves to ask a slow judge while a round is sampled, and what it costs to keep the round in parts.

    python benchmarks/overlap.py

Rounds of the demo's policy take turns, with a judge on loopback that takes a while to answer: asked while the round is
sampled, and asked afterwards. The same labels are bought; what differs is the time from the first prompt to the last
label. Written to benchmarks/results/overlap.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from common import RESULTS, machine
from faulty_judge import Asked, FaultyJudge, prefers_longer

import choosy.main
from choosy.labeling.buyer import LabelBuyer
from choosy.resume.partial_rounds import PartWriter


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--prompts", type=int, default=64)
    asked.add_argument("--tokens", type=int, default=40)
    asked.add_argument("--seconds", type=float, default=1.0, help="that the judge takes for a reply")
    asked.add_argument("--runs", type=int, default=3)
    typed = asked.parse_args()

    found: dict[str, list[dict[str, float]]] = {"afterwards": [], "ahead": []}
    for _ in range(typed.runs):
        for way, rounds in found.items():
            rounds.append(played(way == "ahead", typed))
            print(way, {name: round(seconds, 2) for name, seconds in rounds[-1].items()}, flush=True)
    result = {
        "what": f"{typed.prompts} prompts, 2 responses of {typed.tokens} tokens, {typed.seconds} s a reply, 8 at once",
        "machine": machine(),
        "median": {way: median(r["to_labels"] for r in rounds) for way, rounds in found.items()},
        "rounds": found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overlap.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["median"], indent=2))


def played(ahead: bool, typed: argparse.Namespace) -> dict[str, float]:
    """One round; seconds from the first prompt to the last label, of each phase, and of writing parts."""
    spent = {"parts": 0.0, "written": 0.0}
    write = PartWriter.write

    def timed(self: PartWriter) -> None:
        spent["written"] += bool(self._waiting)
        begun = time.perf_counter()
        write(self)
        spent["parts"] += time.perf_counter() - begun

    def slow(asked: Asked) -> str:
        time.sleep(typed.seconds)
        return prefers_longer(asked)

    PartWriter.write = timed  # type: ignore[method-assign]
    covers = LabelBuyer.covers
    LabelBuyer.covers = lambda self, answers: ahead and covers(self, answers)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, FaultyJudge(slow, usage=None) as server:
            choosy.main.train(choosy.main.compose(lines(typed, server.url)), Path(folder) / "run")
            summary: dict[str, Any] = json.loads((Path(folder) / "run" / "summary.json").read_text())
    finally:
        PartWriter.write = write  # type: ignore[method-assign]
        LabelBuyer.covers = covers  # type: ignore[method-assign]
    phases = {name: summary["seconds"][name] for name in ("sample", "score", "select", "label")}
    return {"to_labels": sum(phases.values()), **phases, **spent}


def lines(typed: argparse.Namespace, url: str) -> list[str]:
    """What is typed."""
    return [
        "model.name=demo:smollm2",
        "trainer=cpu",
        "data.heldout=null",
        f"data.limit={typed.prompts}",
        f"sampler.max_new_tokens={typed.tokens}",
        "sampler.batch_size=16",
        "rounds=1",
        "selector=none",
        "data.responses=2",
        "weighting=uniform",
        "labeler=judge",
        "labeler.model=toy",
        f"labeler.base_url={url}",
        "callbacks.report.console=false",
    ]


if __name__ == "__main__":
    main()
