"""Which log-probs tell certainty the gaps that fp32 would? python benchmarks/certainty_logps.py

Two responses to each prompt are sampled by the bf16 policy at three stages: 10%, 30% and all of the way from the start
to the adapter that `make demo` has left (--run: another run's). The gap of implicit rewards, in nats, is taken with the
log-probs that the sampler gave, from merged weights, and with those of a pass of its own; both round to bf16, each in
its way, and are compared with the gap that policy and reference have in fp32. Written to
benchmarks/results/certainty_logps.json: the median gap, and for each way how far it is off, its rank correlation, and
which share of the half with the larger gaps is the same. 3 seeds.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import ROOT, save
from safetensors.torch import load_file
from torch import Tensor

from choosy.data.reading import read_prompts
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.sampling.generate import Generate
from choosy.types import Candidates, seed_of

STAGES = (0.1, 0.3, 1.0)


def gaps(logp_P2: Tensor, ref_P2: Tensor) -> Tensor:
    """How far apart the implicit rewards of two responses are, at beta = 1."""
    return (logp_P2 - ref_P2).diff(dim=-1).squeeze(-1).abs()


def like(gap_P: Tensor, true_P: Tensor) -> dict[str, float]:
    """How well gaps agree with the true ones."""
    ranks_2P = torch.stack([one_P.argsort().argsort().double() for one_P in (gap_P, true_P)])
    half = len(gap_P) // 2
    same = set(gap_P.topk(half).indices.tolist()) & set(true_P.topk(half).indices.tolist())
    return {
        "median off": (gap_P - true_P).abs().median().item(),
        "rank correlation": torch.corrcoef(ranks_2P)[0, 1].item(),
        "same of the half": len(same) / half,
    }


def compared(policy: Policy, exact: Policy, limit: int, seed: int) -> dict[str, Any]:
    """The gaps of the same responses from sampled and from scored log-probs, beside those of fp32."""
    prompts = read_prompts("choosy:prompts/train.jsonl", as_chat=True, limit=limit)
    encoded = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of(seed, prompt.id, n) for n in range(2)] for prompt in prompts]
    sampled = Generate(max_new_tokens=48).sample(policy, encoded, seeds)
    drawn = [Candidates(p, tuple(r), ids) for p, r, ids in zip(prompts, sampled, encoded, strict=True)]

    def reference(of: Policy) -> Tensor:
        return torch.tensor([[r.logp_ref for r in one.responses] for one in of.score_reference(drawn)])

    ref_P2 = reference(policy)
    true_P = gaps(torch.tensor(exact.score(drawn)), reference(exact))
    return {
        "median gap": true_P.median().item(),
        "sampled": like(gaps(torch.tensor([[r.logp for r in of] for of in sampled]), ref_P2), true_P),
        "scored": like(gaps(torch.tensor(policy.score(drawn)), ref_P2), true_P),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--prompts", type=int, default=64)
    typed = parser.parse_args()
    weights = typed.run / "adapter" / "adapter_model.safetensors"
    if not weights.exists():
        raise SystemExit(f"{weights} is not there; type `make demo` first, or give a run's folder with --run.")
    policy, exact = (Policy("demo:smollm2", lora=Lora(), dtype=dtype) for dtype in ("bfloat16", "float32"))
    for one in (policy, exact):
        one.load(device=torch.device("cpu"), seed=0)
    tuned = load_file(weights)
    start = {name: p.detach().clone() for name, p in policy.trainable()}
    found = {}
    for stage, seed in product(STAGES, range(3)):
        with torch.no_grad():
            for name, p in (*policy.trainable(), *exact.trainable()):
                p.copy_(start[name].lerp(tuned[name.replace(".default", "")], stage))
        found[f"stage {stage}, seed {seed}"] = of = compared(policy, exact, typed.prompts, seed)
        print(f"stage {stage}, seed {seed}:", json.dumps(of), flush=True)
    save("certainty_logps", found)


if __name__ == "__main__":
    main()
