"""What top_p costs: the demo's policy samples 64 chats with top_p=0.9 and without, in turns.

`python benchmarks/top_p.py` writes benchmarks/results/top_p.json. The price of a token is what choosing it takes more,
as a share of all that a token takes without top_p. Seconds are those of the processor, which other programs on the
machine change little; the first run of each kind warms up.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import middle, save

from choosy.data.reading import read_prompts
from choosy.models.loading import Lora
from choosy.models.policy import Policy
from choosy.sampling import generate
from choosy.types import seed_of

SHARES = (1.0, 0.9)


class Watched:
    """`choose_token` with a stopwatch."""

    def __init__(self) -> None:
        self.choose, self.seconds = generate.choose_token, 0.0

    def __call__(self, *inputs: Any) -> torch.Tensor:
        began = time.process_time()
        token_R = self.choose(*inputs)
        self.seconds += time.process_time() - began
        return token_R


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--chats", type=int, default=64)
    asked.add_argument("--tokens", type=int, default=32)
    asked.add_argument("--runs", type=int, default=3)
    typed = asked.parse_args()

    policy = Policy("demo:smollm2", lora=Lora())
    policy.load(device=torch.device("cpu"), seed=0)
    prompts = read_prompts("choosy:prompts/train.jsonl", as_chat=True, limit=typed.chats)
    ids = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    generate.choose_token = watch = Watched()  # type: ignore[assignment]
    runs: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for run in range(typed.runs + 1):
        seeds = [[seed_of("bench", run, prompt.id)] for prompt in prompts]
        for share in SHARES:
            engine = generate.Generate(top_p=share, max_new_tokens=typed.tokens, batch_size=typed.chats)
            watch.seconds, began = 0.0, time.process_time()
            sampled = engine.sample(policy, ids, seeds)
            whole = time.process_time() - began
            tokens = sum(len(r.ids) for of_prompt in sampled for r in of_prompt)
            runs[share].append((1000 * watch.seconds / tokens, 1000 * whole / tokens))
            print(
                f"top_p={share}: {1000 * whole / tokens:.2f} ms a token, {runs[share][-1][0]:.3f} choosing", flush=True
            )
    with_p, without = runs[0.9][1:], runs[1.0][1:]
    prices = [(p[0] - one[0]) / one[1] for p, one in zip(with_p, without, strict=True)]
    save(
        "top_p",
        {
            "what": f"{len(ids)} chats x {typed.tokens} new tokens, {policy.compute_dtype}",
            "threads": torch.get_num_threads(),
            "price": middle(prices),
            "prices": [float(f"{price:.3g}") for price in prices],
            "choosing_ms": {str(share): middle([run[0] for run in of_share[1:]]) for share, of_share in runs.items()},
            "token_ms": {str(share): middle([run[1] for run in of_share[1:]]) for share, of_share in runs.items()},
            "seconds_ratio": median(p[1] / one[1] for p, one in zip(with_p, without, strict=True)),
        },
    )


if __name__ == "__main__":
    main()
