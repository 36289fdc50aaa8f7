"""What choosing costs: each selector's share of a round's time, its embeddings and extra log-probs included.

`python benchmarks/choosing.py` writes benchmarks/results/choosing.json: rounds 1 and 2 of three, on the demo's model,
over 3 seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import ROOT, middle, save

from choosy.data.pool import round_file
from choosy.data.table_files import read_about

SELECTORS = ("optune", "certainty", "dissimilarity", "optune_certainty", "optune_dissimilarity", "entropy")


def shares(selector: str, seed: int, folder: str, prompts: int) -> dict[str, float]:
    """Seconds of each phase over the rounds after the first."""
    run = f"{folder}/{selector}_{seed}"
    words = [
        f"selector={selector}",
        f"run_dir={run}",
        f"seed={seed}",
        f"data.limit={prompts}",
        "data.heldout=null",
        "rounds=3",
        "trainer=cpu",
        "callbacks.report.console=false",
    ]
    subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    first, last = (read_about(round_file(Path(run) / "rounds", n))["seconds"] for n in (0, 2))
    return {phase: last[phase] - first.get(phase, 0.0) for phase in last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    typed = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for selector in SELECTORS:
            runs = [shares(selector, seed, folder, typed.prompts) for seed in range(typed.seeds)]
            share = [run["select"] / sum(seconds for phase, seconds in run.items() if phase != "total") for run in runs]
            result[selector] = {
                "share": middle(share),
                "seconds": {phase: middle([run[phase] for run in runs]) for phase in runs[0]},
            }
            print(selector, result[selector], flush=True)
    save("choosing", result)


if __name__ == "__main__":
    main()
