"""Which engine samples fastest here? The same 48 chats, 64 new tokens each, every engine that is installed.

    .venv/bin/python benchmarks/engines.py          # generate
    .venv-vllm/bin/python benchmarks/engines.py     # vllm as well (make test-vllm builds it)

Runs are interleaved, so that what else the machine does meets all engines alike; the first pass warms up and does not
count; tokens are those that were really sampled, end-of-sequence included. The policy is the demo's, its adapter moved
away from zero, so that merging (and for vLLM the handing over of weights) is part of what is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import save

from choosy.data.encode import Reader
from choosy.data.reading import read_prompts
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling import vllm
from choosy.sampling.generate import Generate
from choosy.sampling.protocol import Sampler
from choosy.types import seed_of


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", default="demo:smollm2")
    asked.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked.add_argument("--chats", type=int, default=48)
    asked.add_argument("--tokens", type=int, default=64)
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--skip", nargs="*", default=[], choices=["generate", "vllm", "vllm_adapter"])
    typed = asked.parse_args()

    policy = moved(typed.model, torch.device(typed.device))
    prompts = read_prompts("choosy:prompts/train.jsonl", as_chat=True, limit=typed.chats)
    prompts = list(Reader().within_limit({p.id: p for p in prompts}, policy, "prompts").values())
    ids = [policy.tokens.encode_prompt(p) for p in prompts]
    engines = {name: e for name, e in built(typed.tokens, typed.chats).items() if name not in typed.skip}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for run in range(typed.runs + 1):
        for name, engine in engines.items():
            found = timed(engine, policy, ids, [[seed_of("bench", run, p.id)] for p in prompts])
            print(
                f"{name:13}{'warm-up' if run == 0 else f'run {run}':9}{found['tokens_per_second']:7.0f} tok/s",
                flush=True,
            )
            runs[name].append(found)
    for engine in engines.values():
        engine.close()
    speed = {name: statistics.median(r["tokens_per_second"] for r in found[1:]) for name, found in runs.items()}
    result: dict[str, Any] = {
        "what": f"{len(ids)} chats x {typed.tokens} new tokens, {typed.model}, {policy.compute_dtype}",
        "device": torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else "cpu",
        "tokens_per_second": speed,
        "against_generate": {name: s / speed["generate"] for name, s in speed.items() if "generate" in speed},
        "sync_seconds": {name: statistics.median(r["sync"] for r in found[1:]) for name, found in runs.items()},
        "first_call_seconds": {name: found[0]["seconds"] for name, found in runs.items()},
        "runs": runs,
    }
    save("engines", result)


def built(tokens: int, chats: int) -> dict[str, Sampler]:
    """Every engine that is installed."""
    engines: dict[str, Sampler] = {
        "generate": Generate(max_new_tokens=tokens, batch_size=chats),
    }
    if vllm.is_installed():
        engines["vllm"] = vllm.Vllm(max_new_tokens=tokens, batch_size=chats)
        engines["vllm_adapter"] = vllm.Vllm(max_new_tokens=tokens, batch_size=chats, sync="adapter")
    return engines


@torch.no_grad()
def moved(name: str, device: torch.device) -> Policy:
    """The policy, its adapter a little away from zero, as after some training."""
    policy = Policy(name, lora=Lora())
    policy.load(device=device, seed=0)
    noise = torch.Generator().manual_seed(0)
    for parameter, p in policy.trainable():
        if "lora_B" in parameter:
            p.copy_(torch.empty(p.shape).normal_(0, 1e-3, generator=noise))
    return policy


def timed(engine: Sampler, policy: Policy, ids: list[tuple[int, ...]], seeds: list[list[int]]) -> dict[str, float]:
    """One pass over all prompts."""
    synced, begun = engine.sync_seconds, time.perf_counter()
    sampled = engine.sample(policy, ids, seeds)
    seconds = time.perf_counter() - begun
    tokens = sum(len(r.ids) for of_prompt in sampled for r in of_prompt)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "sync": engine.sync_seconds - synced,
    }


if __name__ == "__main__":
    main()
