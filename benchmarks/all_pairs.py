"""What training on all pairs of four responses costs beside as many pairs without a response in common.

`python benchmarks/all_pairs.py` writes benchmarks/results/all_pairs.json: forward and backward passes over 24 pairs of
SmolLM2-135M with LoRA, which are all pairs of 4 prompts or one pair of each of 24 prompts, in turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import middle, save

from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.models.rows import Group

PROMPT, RESPONSE = 40, 60  # tokens


def groups(prompts: int, responses: int) -> list[Group]:
    """All pairs of so many responses to so many prompts, of random tokens."""
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> list[int]:
        return torch.randint(100, 40_000, (length,), generator=draw).tolist()

    asked = [(text(PROMPT), [text(RESPONSE) for _ in range(responses)]) for _ in range(prompts)]
    return [Group(prompt, pair) for prompt, texts in asked for pair in combinations(texts, 2)]


def seconds(policy: Policy, pairs: Sequence[Group]) -> float:
    """Of one forward and backward pass."""
    began = time.process_time()
    policy.token_logps(pairs).sum().backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    typed = parser.parse_args()
    policy = Policy("demo:smollm2", lora=Lora())
    policy.load(device=torch.device("cpu"), seed=0)
    kinds = {"all_pairs": groups(4, 4), "alone": groups(24, 2)}
    turns = [{kind: seconds(policy, pairs) for kind, pairs in kinds.items()} for _ in range(typed.turns + 1)][1:]
    found = {kind: middle([turn[kind] for turn in turns]) for kind in kinds}
    save("all_pairs", {"seconds": found, "ratio": middle([turn["all_pairs"] / turn["alone"] for turn in turns])})


if __name__ == "__main__":
    main()
