"""Memory and time of one training step of a pair with long responses, against their length.

`python benchmarks/long_responses.py` writes benchmarks/results/long_responses.json and docs/images/long_responses.png:
a random Llama with adapters, small enough for a CPU, and a pair of a prompt of 128 tokens with two responses of 2,048
to 8,192. Each step is made by a process of its own, in one thread. Memory is what the step adds to what the process
held before it, at its fullest (freed memory goes back to the system here); seconds are those of the processor. All
ways of a length have to give the same loss, and the same gradient up to the rounding of bf16.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import torch.nn.functional as F
from common import ROOT, save, write_between
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from choosy.models import logprobs
from choosy.models.adapters import Lora
from choosy.models.compute import M_MMAP_THRESHOLD, Compute
from choosy.models.locate import resolve_model
from choosy.models.policy import Policy
from choosy.models.rows import Group

PROMPT, LENGTHS = 128, (2048, 4096, 8192)  # tokens
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
START, END = "<!-- measured: written by benchmarks/long_responses.py -->", "<!-- end of measured -->"
IMAGE = ROOT / "docs" / "images" / "long_responses.png"
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
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**21)  # what is freed goes back to the system
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
    before, began = own_memory("VmRSS"), os.times().user
    loss = both(length)
    seconds = os.times().user - began
    gradient = torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])
    measured = {"memory_mb": own_memory("VmHWM") - before, "seconds": seconds}
    return {"way": way, "length": length, **measured, "loss": loss, "gradient": gradient.norm().item()}


def run(model: str, way: str, length: int) -> dict[str, Any]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        found = pool.submit(step, model, way, length).result()
    print(found, flush=True)
    return found


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown, one for each length."""
    found = {(run["length"], run["way"]): run for run in runs}
    lines = ["| tokens of a response | " + " | ".join(WAYS) + " |", "| --- |" + " --- |" * len(WAYS)]
    for n in sorted({n for n, _ in found}):
        cells = [f"{r['memory_mb']:.0f} MB, {r['seconds']:.1f} s" if (r := found.get((n, way))) else "" for way in WAYS]
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return lines


def draw(runs: list[dict[str, Any]]) -> None:
    """Memory against length, a line for each way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for way in WAYS:
        mine = sorted((run["length"], run["memory_mb"]) for run in runs if run["way"] == way)
        axes.plot(*zip(*mine, strict=True), marker="o", label=way)
    axes.set(xscale="log", xlabel="tokens of a response", ylabel="memory of a step, MB", ylim=(0, None))
    axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS], minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = small_llama(folder)
        for n in LENGTHS[::-1]:
            for way in WAYS:
                if way != WHOLE or n <= MOST_WHOLE:
                    runs.append(run(model, way, n))
                    save("long_responses", {"model": SHAPE, "prompt": PROMPT, "runs": runs})
    write_between(ROOT / "docs" / "training.md", START, END, table(runs))
    draw(runs)


if __name__ == "__main__":
    main()
