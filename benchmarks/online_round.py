"""A round of online DPO, 32 prompts x 2 responses of 48 tokens: Choosy and TRL's OnlineDPOTrainer take turns.

`python benchmarks/online_round.py` writes benchmarks/results/online_round.json: with all prompts sampled in every
round, as the peer does, and with OPTune sampling 0.3 of them after the first round. On a machine that others use,
`--one-thread` counts the processor's seconds of one thread, on both sides.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import LORA, Program, middle, peer_python, save

from choosy.data.reading import read_prompts
from choosy.models.locate import resolve_model

WAYS = {
    "online_round": ["selector=none"],
    "online_round_optune03": ["selector=optune", "callbacks.optune.fraction=0.3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--one-thread", action="store_true")
    typed = parser.parse_args()
    windows = typed.windows
    if typed.one_thread:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that are started below
    prompts = [p.text for p in read_prompts("choosy:prompts/train.jsonl", as_chat=False, limit=32)]
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = {
            "model": resolve_model("demo:smollm2"),
            "prompts": prompts,
            "lora": LORA,
            "batch_size": 8,
            "steps": len(prompts) // 8,
            "windows": windows,
            "max_new_tokens": 48,
            "lr": 1e-5,
            "beta": 0.1,
            "one_thread": typed.one_thread,
        }
        programs = {}
        for name, overrides in WAYS.items():
            own = Path(folder) / name
            own.mkdir()
            its = job | {"folder": str(own), "overrides": overrides}
            programs[name] = Program(sys.executable, "ours/online.py", its, log=name)
            programs[name].answer(), programs[name].answer()
        programs["peer"] = Program(peer_python(), "peers/trl_online.py", job | {"folder": folder})
        programs["peer"].answer(), programs["peer"].answer()
        times = [{name: program.go() for name, program in programs.items()} for _ in range(windows)]
    save("online_round", summed_up(times, "processor seconds of one thread" if typed.one_thread else "seconds"))


def summed_up(times: Sequence[dict[str, dict[str, Any]]], clock: str) -> dict[str, Any]:
    """Medians over windows: ratios to the peer, and what they would be if a round were its useful products alone."""
    result: dict[str, Any] = {"clock": clock, "peer_seconds": middle([t["peer"]["seconds"] for t in times])}
    for name in WAYS:
        own, peer = [t[name] for t in times], [t["peer"]["seconds"] for t in times]
        result[name] = {
            "seconds": middle([t["seconds"] for t in own]),
            "ratio": middle([theirs / t["seconds"] for t, theirs in zip(own, peer, strict=True)]),
            "flop_share": middle([t["flops"] / t["seconds"] / t["peak_flop_per_s"] for t in own]),
            "ratio_at_peak": middle(
                [theirs * t["peak_flop_per_s"] / t["flops"] for t, theirs in zip(own, peer, strict=True)]
            ),
            "peak_gflop_per_s": middle([t["peak_flop_per_s"] / 1e9 for t in own]),
            "phases": {k: middle([t["phases"].get(k, 0.0) for t in own]) for k in own[0]["phases"]},
            "peak_gb": own[-1]["peak_gb"],
        }
    return result | {"runs": [{name: t[name]["seconds"] for name in t} for t in times]}


if __name__ == "__main__":
    main()
