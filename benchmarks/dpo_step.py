"""DPO steps on 64 real pairs of mixed length: Choosy and TRL's DPOTrainer take turns.

`python benchmarks/dpo_step.py` writes benchmarks/results/dpo_step.json. The peer's reference log-probs are
precomputed, its better mode; its set-up, which computes them, is not in its time, nor is our reference pass.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import DATA, LORA, Program, middle, peer_python, save

from choosy.data.reading import read_candidates
from choosy.models.locate import resolve_model
from choosy.models.policy import Policy

PAIRS = 64
LONGEST = 512  # tokens of a prompt with one response: at 800 the peer's step takes more than 21 GB


def rows(n: int, longest: int = LONGEST) -> list[dict[str, list[int]]]:
    """The first pairs of HH-RLHF's harmless part, in the model's chat template."""
    source = DATA / "hh_harmless.jsonl"
    if not source.exists():
        raise SystemExit(f"needs the pairs in {source}")
    policy = Policy("demo:smollm2")
    found: list[dict[str, list[int]]] = []
    for c in read_candidates(str(source)):
        chosen, rejected = (policy.tokens.encode_response(r.text.strip()) for r in c.responses)
        prompt = policy.tokens.encode_prompt(c.prompt)
        if len(prompt) + max(len(chosen), len(rejected)) <= longest and min(len(chosen), len(rejected)) > 1:
            found.append({"prompt_ids": [*prompt], "chosen_ids": [*chosen], "rejected_ids": [*rejected]})
        if len(found) == n:
            break
    return found


def compare(kind: str, *, windows: int, steps: int) -> dict[str, Any]:
    """Paired windows of so many steps of 8 pairs, the two programs one after the other; they go round the rows."""
    pairs = steps * 8
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": resolve_model("demo:smollm2"),
            "rows": rows(PAIRS),
            "lora": LORA if kind == "lora" else None,
            "folder": folder,
            "batch_size": 8,
            "warmup_steps": 1,
            "steps": steps,
            "windows": windows,
            "lr": 1e-6,
            "beta": 0.1,
            "bf16": True,
            "precompute": True,
            "tokens_per_step": 2048,
        }
        ours = Program(sys.executable, "ours/dpo.py", job)  # one after the other: neither disturbs the other's set-up
        ours_setup, _ = ours.answer(), ours.answer()
        peer = Program(peer_python(), "peers/trl_dpo.py", job)
        peer_setup, _ = peer.answer(), peer.answer()
        times: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for _ in range(windows):
            times.append((ours.go(), peer.go()))
            print(kind, [round(pairs / t["seconds"], 3) for t in times[-1]], "pairs/s, ours and the peer's", flush=True)
    mine, theirs = zip(*times, strict=True)
    return {
        "pairs_per_s": middle([pairs / t["seconds"] for t in mine]),
        "peer_pairs_per_s": middle([pairs / t["seconds"] for t in theirs]),
        "ratio": middle([b["seconds"] / a["seconds"] for a, b in times]),
        "ratio_with_reference_pass": middle(
            [
                (b["seconds"] / pairs + peer_setup["setup_seconds"] / PAIRS)
                / (a["seconds"] / pairs + ours_setup["reference_seconds"] / PAIRS)
                for a, b in times
            ]
        ),
        "pairs_per_window": pairs,
        "peak_gb": middle([mine[-1]["peak_gb"]]),
        "peer_peak_gb": middle([theirs[-1]["peak_gb"]]),
        "memory_ratio": middle([mine[-1]["peak_gb"] / theirs[-1]["peak_gb"]]),
        "flop_share": middle([t["flop_per_s"] / t["peak_flop_per_s"] for t in mine]),
        "peak_gflop_per_s": middle([t["peak_flop_per_s"] / 1e9 for t in mine]),
        "reference_seconds": middle([ours_setup["reference_seconds"]]),
        "peer_setup_seconds": middle([peer_setup["setup_seconds"]]),
        "runs": [[a["seconds"], b["seconds"]] for a, b in times],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--steps", type=int, default=PAIRS // 8, help="of 8 pairs, in each window")
    parser.add_argument("--kinds", default="lora,full")
    typed = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    save("dpo_step", {kind: compare(kind, windows=typed.windows, steps=typed.steps) for kind in typed.kinds.split(",")})


if __name__ == "__main__":
    main()
