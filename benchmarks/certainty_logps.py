"""Do sampled and scored log-probs make certainty choose the same pairs? python benchmarks/certainty_logps.py

Two responses to each of 96 prompts are sampled by the policy at three stages: 10%, 30% and all of the way from the
start to the adapter that `make demo` has left (--run: another run's). The gap of implicit rewards, in nats, is taken
once with the log-probs that the sampler gave, from merged weights, and once with those of a pass of its own; both round
to bf16, each in its way. Written to benchmarks/results/certainty_logps.json: the gaps, how far they are apart, their
rank correlation, and which share of the half with the larger gaps is the same. 3 seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import ROOT, save
from safetensors.torch import load_file

from choosy.formats import read_prompts
from choosy.policy import Lora, Policy
from choosy.sampling.generate import Generate
from choosy.types import Candidates, seed_of

STAGES = (0.1, 0.3, 1.0)


def compared(policy: Policy, limit: int, seed: int) -> dict[str, float]:
    """Gaps from sampled and from scored log-probs, of the same responses."""
    prompts = read_prompts("choosy:prompts/train.jsonl", as_chat=True, limit=limit)
    encoded = [policy.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of(seed, prompt.id, n) for n in range(2)] for prompt in prompts]
    sampled = Generate(max_new_tokens=48).sample(policy, encoded, seeds)
    drawn = [Candidates(p, tuple(r), ids) for p, r, ids in zip(prompts, sampled, encoded, strict=True)]
    drawn = policy.score_reference(drawn)
    ref_P2 = torch.tensor([[r.logp_ref for r in one.responses] for one in drawn])
    gap_P, scored_P = (
        (logp_P2 - ref_P2).diff(dim=-1).squeeze(-1).abs()
        for logp_P2 in (torch.tensor([[r.logp for r in of] for of in sampled]), torch.tensor(policy.score(drawn)))
    )
    ranks_2P = torch.stack([gaps.argsort().argsort().double() for gaps in (gap_P, scored_P)])
    half = limit // 2
    same = set(gap_P.topk(half).indices.tolist()) & set(scored_P.topk(half).indices.tolist())
    return {
        "median gap": scored_P.median().item(),
        "median difference": (gap_P - scored_P).abs().median().item(),
        "rank correlation": torch.corrcoef(ranks_2P)[0, 1].item(),
        "same of the half": len(same) / half,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--prompts", type=int, default=96)
    told = parser.parse_args()
    weights = told.run / "adapter" / "adapter_model.safetensors"
    if not weights.exists():
        raise SystemExit(f"{weights} is not there; type `make demo` first, or give a run's folder with --run.")
    policy = Policy("demo:smollm2", lora=Lora())
    policy.load(device=torch.device("cpu"), seed=0)
    tuned = load_file(weights)
    start = {name: p.detach().clone() for name, p in policy.trainable()}
    found = {}
    for stage in STAGES:
        with torch.no_grad():
            for name, p in policy.trainable():
                p.copy_(start[name].lerp(tuned[name.replace(".default", "")], stage))
        for seed in range(3):
            found[f"stage {stage}, seed {seed}"] = of = compared(policy, told.prompts, seed)
            print(f"stage {stage}, seed {seed}:", ", ".join(f"{k} {v:.3f}" for k, v in of.items()), flush=True)
    save("certainty_logps", found)


if __name__ == "__main__":
    main()
