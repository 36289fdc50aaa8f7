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
    result: dict[str, Any] = {
        "clock": "processor seconds of one thread" if typed.one_thread else "seconds",
        "peer_seconds": middle([t["peer"]["seconds"] for t in times]),
    }
    for name in WAYS:
        result[name] = {
            "seconds": middle([t[name]["seconds"] for t in times]),
            "ratio": middle([t["peer"]["seconds"] / t[name]["seconds"] for t in times]),
            "flop_share": middle([t[name]["flops"] / t[name]["seconds"] / t[name]["peak_flop_per_s"] for t in times]),
            "ratio_at_peak": middle(
                [t["peer"]["seconds"] * t[name]["peak_flop_per_s"] / t[name]["flops"] for t in times]
            ),
            "peak_gflop_per_s": middle([t[name]["peak_flop_per_s"] / 1e9 for t in times]),
            "phases": {k: middle([t[name]["phases"].get(k, 0.0) for t in times]) for k in times[0][name]["phases"]},
            "peak_gb": times[-1][name]["peak_gb"],
        }
    save("online_round", result | {"runs": [{n: t[n]["seconds"] for n in t} for t in times]})


if __name__ == "__main__":
    main()
