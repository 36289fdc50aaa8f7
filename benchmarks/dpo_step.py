"""DPO steps on 64 pairs of mixed length: Choosy and TRL's DPOTrainer take turns.

`python benchmarks/dpo_step.py` writes benchmarks/results/dpo_step.json; `--data FILE` takes pairs of your own. The
peer's reference log-probs are precomputed, its better mode; its set-up, which computes them, is not in its time, nor is
our reference pass.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import LORA, Program, middle, peer_python, save
from sources import preference_pairs

from choosy.data.reading import read_candidates
from choosy.models.locate import resolve_model
from choosy.models.policy import Policy

PAIRS = 64
LONGEST = 512  # tokens of a prompt with one response: at 800 the peer's step takes more than 21 GB


def rows(n: int, source: Path, longest: int = LONGEST) -> list[dict[str, list[int]]]:
    """The first pairs of a file that are short enough, in the model's chat template."""
    policy = Policy("demo:smollm2")
    found: list[dict[str, list[int]]] = []
    for c in read_candidates(str(source)):
        chosen, rejected = (policy.tokens.encode_response(r.text.strip()) for r in c.responses)
        prompt = policy.tokens.encode_prompt(c.prompt)
        if len(prompt) + max(len(chosen), len(rejected)) <= longest and min(len(chosen), len(rejected)) > 1:
            found.append({"prompt_ids": [*prompt], "chosen_ids": [*chosen], "rejected_ids": [*rejected]})
        if len(found) == n:
            return found
    raise SystemExit(f"{source} has {len(found)} pairs of at most {longest} tokens, and {n} are needed")


def lengths(rows: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """The fewest, the median and the most tokens of the prompts and of the responses."""
    responses = [ids for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]
    found = {"prompt_tokens": [row["prompt_ids"] for row in rows], "response_tokens": responses}
    return {
        what: [min(tokens), round(median(tokens)), max(tokens)]
        for what, every in found.items()
        for tokens in [[len(ids) for ids in every]]
    }


def compare(kind: str, pairs_of: list[dict[str, list[int]]], *, windows: int, steps: int) -> dict[str, Any]:
    """Paired windows of so many steps of 8 pairs, the two programs one after the other; they go round the rows."""
    pairs = steps * 8
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": resolve_model("demo:smollm2"),
            "rows": pairs_of,
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
    parser.add_argument("--data", type=Path, help="JSONL of prompt, chosen, rejected, instead of what is at hand")
    typed = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    source = preference_pairs(typed.data)
    pairs = rows(PAIRS, source.path)
    print(f"{PAIRS} pairs of {source.what}: {lengths(pairs)}", flush=True)
    result: dict[str, Any] = {"data": {"what": source.what, **lengths(pairs)}}
    for kind in typed.kinds.split(","):
        result[kind] = compare(kind, pairs, windows=typed.windows, steps=typed.steps)
    save("dpo_step", result)


if __name__ == "__main__":
    main()
