"""Correct while fast: 20 steps of DPO on a tiny model in fp32, Choosy against TRL's DPOTrainer, loss by loss.

`python benchmarks/trajectory.py [--data FILE]` fails unless every loss is within 1e-4 of the peer's, with each
fast path on and off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from common import Program, peer_python, save
from dpo_step import lengths, rows
from sources import preference_pairs

from choosy.models.locate import resolve_model

STEPS, BATCH, BOUND = 20, 4, 1e-4
WAYS: dict[str, dict[str, Any]] = {
    "all fast paths": {},
    "no fused layers": {"fused": False},
    "prompts not shared": {"share_prompt": False},
    "padded rows": {"attention": "sdpa"},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


def tiny(folder: Path) -> str:
    """A Llama of two layers with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo:smollm2"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="JSONL of prompt, chosen, rejected, instead of what is at hand")
    source = preference_pairs(parser.parse_args().data)
    pairs = rows(STEPS * BATCH, source.path)
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = {
            "model": tiny(Path(folder) / "model"),
            "rows": pairs,
            "lora": None,
            "folder": folder,
            "batch_size": BATCH,
            "warmup_steps": 0,
            "steps": STEPS,
            "windows": 1,
            "lr": 1e-3,
            "beta": 0.1,
            "bf16": False,
            "precompute": False,
            "tokens_per_step": 512,
        }

        def losses(python: str, script: str, job: dict[str, Any]) -> list[float]:
            program = Program(python, script, job)
            program.answer()
            if "ours" in script:
                program.answer()
            program.go()
            found: list[float] = program.answer()["losses"]
            return found

        theirs = losses(peer_python(), "peers/trl_dpo.py", job)
        worst = {}
        for name, compute in WAYS.items():
            ours = losses(sys.executable, "ours/dpo.py", job | {"compute": compute})
            worst[name] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            print(f"{name}: largest difference of {STEPS} losses {worst[name]:.2e}", flush=True)
    data = {"what": source.what, **lengths(pairs)}
    save("trajectory", {"data": data, "steps": STEPS, "losses": theirs, "largest_difference": worst})
    if max(worst.values()) > BOUND:
        sys.exit(f"a loss is further than {BOUND} from the peer's")


if __name__ == "__main__":
    main()
