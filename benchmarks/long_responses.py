"""Memory and time of one training step of a pair with long responses, against their length.

`python benchmarks/long_responses.py` writes benchmarks/results/long_responses.json and docs/images/long_responses.png:
a random Llama with adapters, small enough for a CPU, and a pair of a prompt of 128 tokens with two responses of 512 to
8,192. Each step is made by a process of its own, in one thread. Memory is what the step adds to what the process held
before it, at its fullest (freed memory goes back to the system here); seconds are those of the processor. All ways of a
length have to give the same loss, and the same gradient up to the rounding of bf16.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import torch.nn.functional as F
from common import save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from choosy.models import logprobs
from choosy.models.adapters import Lora
from choosy.models.compute import Compute
from choosy.models.locate import resolve_model
from choosy.models.policy import Policy
from choosy.models.rows import Group

PROMPT, LENGTHS = 128, (512, 1024, 2048, 4096, 8192)  # tokens
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WHOLE = "whole logits"
WAYS: dict[str, dict[str, Any]] = {
    WHOLE: {},  # those of all tokens at once, as most trainers have them
    "as it is": {},
    "split_long": {"split_long": True},
    "checkpointing": {"gradient_checkpointing": True},
    "both": {"gradient_checkpointing": True, "split_long": True},
}
MOST_WHOLE = 2048  # whole logits of longer ones do not fit into the memory of the machine


def small_llama(folder: str) -> str:
    """A Llama with random weights and the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo:smollm2"))
    torch.manual_seed(0)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=16_384, **SHAPE, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def own_memory(name: str = "RssAnon") -> float:
    """Megabytes that this process has for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def step(model: str, way: str, length: int) -> dict[str, Any]:
    """Forward and backward of one pair, in this process."""
    torch.set_num_threads(1)
    if way == WHOLE:
        logprobs.chosen_token_logps = partial(logprobs.chosen_token_logps, chunk=sys.maxsize)
    policy = Policy(model, lora=Lora(), dtype="bfloat16", compute=Compute(keep_freed_memory=False, **WAYS[way]))
    policy.load(device=torch.device("cpu"), seed=0)
    policy.train()  # layers are recomputed in training only
    torch.manual_seed(1)
    for name, p in policy.trainable():
        if "lora_B" in name:  # zeros at first, which would leave the other half without a gradient
            torch.nn.init.normal_(p, std=0.01)
    draw = random.Random(length)

    def tokens(n: int) -> list[int]:
        return draw.choices(range(1000, 49_000), k=n)

    def both(n: int) -> float:
        logp_2T = policy.token_logps([Group(tokens(PROMPT), [tokens(n), tokens(n)])]).view(2, -1)
        loss = -F.logsigmoid(0.001 * (logp_2T[0] - logp_2T[1]).sum())
        loss.backward()
        return loss.item()

    both(16)  # what is allocated once
    policy.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted from here on
    before, began = own_memory("VmRSS"), time.process_time()
    loss = both(length)
    seconds = time.process_time() - began
    gradient = torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])
    measured = {"memory_mb": own_memory("VmHWM") - before, "seconds": seconds}
    return {"way": way, "length": length, **measured, "loss": loss, "gradient": gradient.norm().item()}


def run(model: str, way: str, length: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", f"{model},{way},{length}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help="MODEL,WAY,LENGTH: measure this alone, and write nothing")
    typed = parser.parse_args()
    if typed.one:
        model, way, length = typed.one.split(",")
        print(json.dumps(step(model, way, int(length))))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = small_llama(folder)
        runs = [run(model, way, n) for n in LENGTHS for way in WAYS if way != WHOLE or n <= MOST_WHOLE]
    save("long_responses", {"model": SHAPE, "prompt": PROMPT, "runs": runs})


if __name__ == "__main__":
    main()
