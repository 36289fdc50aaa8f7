"""What a round needs on 1 to 64 GPUs, by formulas that are held to measured small runs: python benchmarks/scaling.py

Prints the tables of docs/scaling.md and writes benchmarks/results/scaling.json. Counts of weights are checked on the
real architectures without memory (the meta device); bytes of activations, optimiser, rows and collectives on a small
model and two gloo processes here. What the pool needs on several ranks is measured by pool_ranks.py. Bytes that cross
are those of the loopback; where other programs use it, too:

    unshare -n sh -c "ip link set lo up && python benchmarks/scaling.py"
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from choosy.parallel.ranks import TorchRanks, shard
from choosy.parallel.sharding import shard_weights
from choosy.types import Candidates, Pair, Prompt, Response

RESULTS = Path(__file__).resolve().parent / "results" / "scaling.json"
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A Llama: what its cost follows from."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def kv(self) -> int:
        """Width of keys, and of values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block, which LoRA adapts."""
        d, kv, m = self.hidden, self.kv, self.mlp
        return [(d, d), (d, kv), (d, kv), (d, d), (d, m), (d, m), (m, d)]

    @property
    def adapted(self) -> int:
        """Weights of all linear layers."""
        return self.layers * sum(i * o for i, o in self.linears)

    @property
    def outside(self) -> int:
        """Weights outside of the blocks: embeddings, head, the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def weights(self) -> int:
        """All weights."""
        return self.outside + self.adapted + self.hidden * 2 * self.layers

    def lora(self, r: int) -> int:
        """Weights of adapters of rank r on every linear layer."""
        return self.layers * r * sum(i + o for i, o in self.linears)


MODELS = {
    "8B": Shape(32, 4096, 14336, 32, 8, 128256),
    "70B": Shape(80, 8192, 28672, 64, 8, 128256),
}


@dataclass(frozen=True)
class Setting:
    """A run: what is asked of the policy, and what the machine can do."""

    prompts: int = 1_000_000
    fraction: float = 0.3  # sampled again in a later round
    responses: int = 2
    prompt_tokens: int = 128
    response_tokens: int = 256
    tokens_per_step: int = 8192
    batch_size: int = 512  # pairs of an optimiser step, over all ranks
    in_flight: int = 256  # responses that one model replica samples at once
    r: int = 16
    flops: float = 989e12 * 0.4  # bf16 of an H100 at 40%
    memory: float = 3.35e12 * 0.6  # its bytes per second at 60%
    network: float = 50e9 * 0.7  # bytes per second between nodes for one GPU (400 Gbit/s)


# -- memory of one rank ----------------------------------------------------------------------------------------


def activations(shape: Shape, tokens: int, *, r: int, checkpointing: bool) -> float:
    """Bytes that a training pass keeps for its backward, head included, under bf16 autocast with LoRA."""
    d, kv, m = shape.hidden, shape.kv, shape.mlp
    attention = 4 * d * 2 + 4 * d + 2 * (2 * d + 4 * kv) + 2 * d  # two norms, q k v before and after rope, output
    mlp = 2 * (2 * d + 4 * m)
    adapters = 7 * 2 * r
    block = tokens * (attention + mlp + adapters)
    kept = tokens * d * 2 * shape.layers + block if checkpointing else block * shape.layers
    return kept + tokens * d * 4  # hidden states before the head, whose logits are never whole


def memory(shape: Shape, s: Setting, *, gpus: int, way: str) -> dict[str, float]:
    """Bytes on one rank at its fullest. Ways: lora (whole model a rank), lora sharded, full sharded."""
    shards = 1 if way == "lora" else gpus
    a = shape.lora(s.r)
    full = way == "full sharded"
    trained = shape.weights if full else a
    train = {
        "weights": (4 if full else 2) * shape.weights / shards,
        "adapters": 0 if full else 4 * a / shards,
        "gradients": 4 * trained / shards * (2 if way == "lora" and gpus > 1 else 1),  # and DDP's buckets
        "optimiser": 8 * trained / shards,
        "start and reference": 4 * trained / shards,  # one copy of what is trained; a moved reference is another
        "activations": activations(shape, s.tokens_per_step, r=s.r, checkpointing=True),
        "one gathered block": 0 if shards == 1 else 2 * 2 * shape.adapted / shape.layers,
    }
    merged = 2 * shape.weights if way != "lora" else 2 * shape.adapted
    cache = s.in_flight * (s.prompt_tokens + s.response_tokens) * 2 * 2 * shape.kv * shape.layers
    fixed = sum(train[k] for k in ("weights", "adapters", "optimiser", "start and reference"))
    return {**train, "training": sum(train.values()), "sampling": fixed + merged + cache, "cache": cache}


# -- seconds and bytes of a later round ------------------------------------------------------------------------


def bytes_of_step(shape: Shape, s: Setting, *, gpus: int, way: str, parts: float) -> float:
    """Bytes that one rank receives in an optimiser step of so many forward and backward passes.

    Sharded, a block is gathered before its forward and again before its backward, what lies outside of the blocks
    once, and adapters in fp32.
    """
    full = way == "full sharded"
    trained = shape.weights if full else shape.lora(s.r)
    if way == "lora":
        return 2 * 4 * trained * (gpus - 1) / gpus
    a_pass = 2 * (2 * shape.weights - shape.outside) + (0 if full else 2 * 4 * shape.lora(s.r))
    return (a_pass * parts + 4 * trained) * (gpus - 1) / gpus


def round_costs(shape: Shape, s: Setting, *, gpus: int, way: str) -> dict[str, float]:
    """Seconds of the phases of a later round, and bytes that one rank receives in it."""
    asked = s.prompts * s.fraction
    fresh, pairs = asked * s.responses, float(s.prompts)  # the whole pool is trained on
    cached = s.in_flight * (s.prompt_tokens + s.response_tokens / 2) * 4 * shape.kv * shape.layers
    step_bytes = 2 * shape.weights + cached
    tokens_a_second = s.in_flight * s.memory / step_bytes
    pass_tokens = s.prompt_tokens + 2 * s.response_tokens
    steps = pairs / s.batch_size
    parts = max(1.0, s.batch_size * pass_tokens / s.tokens_per_step / gpus)
    collective = steps * bytes_of_step(shape, s, gpus=gpus, way=way, parts=parts)
    row = bytes_of_row(s)
    return {
        "sample": fresh * s.response_tokens / tokens_a_second / gpus,
        "score": asked * (s.prompt_tokens + s.responses * s.response_tokens) * 2 * shape.weights / s.flops / gpus,
        "train": pairs * pass_tokens * (6 if way == "full sharded" else 4) * 4 / 3 * shape.weights / s.flops / gpus,
        "network": collective / s.network,
        "gradient bytes": collective,
        "gather bytes": asked * row * (gpus - 1) / gpus,
        "pool file bytes": s.prompts * row,
    }


def candidates(number: int, s: Setting) -> Candidates:
    """A prompt with its responses as a round has them, of random tokens."""
    draw = torch.Generator().manual_seed(number)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 128256, (n,), generator=draw).tolist())

    responses = tuple(
        Response("word " * (s.response_tokens * 4 // 5), ids(s.response_tokens), True, -50.0, -51.0, float(n))
        for n in range(s.responses)
    )
    prompt = Prompt(f"p{number:07d}", "word " * (s.prompt_tokens * 4 // 5))
    return Candidates(prompt, responses, ids(s.prompt_tokens), 1, 0.5, (Pair(0, 1, 1.0, 0.5, "labeler", 1),))


def bytes_of_row(s: Setting) -> float:
    """What one prompt with its responses weighs when it crosses to another rank: 4 bytes of text a token, 4 of id."""
    tokens = s.prompt_tokens + s.responses * s.response_tokens
    return tokens * (4 + 4) + 80 * s.responses


# -- the formulas against what is measured here ----------------------------------------------------------------


def built(shape: Shape, device: str = "meta") -> Any:
    """The architecture itself; on the meta device it needs no memory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)


def with_adapters(model: Any, r: int) -> Any:
    """The model with LoRA on all linear layers, as the policy makes it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))


def check_weights(shape: Shape, r: int) -> dict[str, tuple[float, float]]:
    """Weights and adapters by formula and as built."""
    model = built(shape)
    found = sum(p.numel() for p in model.parameters())
    adapted = with_adapters(model, r)
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return {"weights": (shape.weights, found), "adapters": (shape.lora(r), added)}


SMALL = Shape(4, 256, 704, 8, 4, 4096)
WAYS = ("lora", "lora sharded", "full sharded")


def check_activations(tokens: int, r: int) -> tuple[float, float]:
    """Bytes kept for the backward by formula, and as autograd keeps them."""
    model = built(SMALL, "cpu").to(torch.bfloat16)
    model = with_adapters(model, r)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.dtype in (torch.bfloat16, torch.float32):
            kept[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # or another tensor could take its place in memory
        return tensor

    held: list[torch.Tensor] = []
    ids = torch.randint(0, SMALL.vocabulary, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        model.get_base_model().model(input_ids=ids).last_hidden_state.float()
    return activations(SMALL, tokens, r=r, checkpointing=False), float(sum(kept.values()))


def check_optimiser(r: int) -> tuple[float, float]:
    """Bytes of AdamW's state by formula and as it is after a step."""
    adapted = with_adapters(built(SMALL, "cpu"), r)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    found = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.dim())
    return float(8 * SMALL.lora(r)), float(found)


def received() -> int:
    """Bytes that this machine has received from itself so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[1])
    raise OSError("no loopback in /proc/net/dev")


def passes(model: Any) -> Callable[[], None]:
    """Takes a forward and backward pass of 64 tokens."""
    ids = torch.randint(0, SMALL.vocabulary, (1, 64))

    def once() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    return once


def held(model: Any, *, full: bool) -> dict[str, float]:
    """Bytes that this rank holds of a model, of its gradients, and of AdamW's state after a step."""
    local = {p: p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()}
    optimizer = torch.optim.AdamW([p for p in local if p.requires_grad], lr=0.0)
    optimizer.step()
    states = [x.to_local() if isinstance(x, DTensor) else x for of in optimizer.state.values() for x in of.values()]
    gradients = [p.grad for p in local if p.grad is not None]
    return {
        "weights": sum(x.nbytes for p, x in local.items() if full or not p.requires_grad),
        "adapters": sum(x.nbytes for p, x in local.items() if not full and p.requires_grad),
        "gradients": sum((g.to_local() if isinstance(g, DTensor) else g).nbytes for g in gradients),
        "optimiser": sum(x.nbytes for x in states if x.numel() > 1),
    }


def two_ranks(rank: int, port: int, n: int, s: Setting, box: Any) -> None:
    """One of two gloo processes that gather candidates and train a small model: what crosses, and what each holds."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    ranks = TorchRanks()

    def crossing(act: Callable[[], object]) -> int:
        torch.distributed.barrier()
        before = received()
        act()
        torch.distributed.barrier()
        return received() - before

    mine = [candidates(i, s) for i in shard(range(n), ranks)]
    found: dict[str, Any] = {"gather": crossing(lambda: ranks.gather(mine))}
    for way in WAYS:
        torch.manual_seed(0)
        full = way == "full sharded"
        model = built(SMALL, "cpu").float() if full else with_adapters(built(SMALL, "cpu").to(torch.bfloat16), s.r)
        if way == "lora":
            whole_on_each = DistributedDataParallel(model)
            trains = passes(whole_on_each)
        else:
            blocks = [m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer"]
            shard_weights(model, blocks, device=torch.device("cpu"), compute=torch.bfloat16 if full else None)
            trains = passes(model)
        for _ in range(2):  # the first passes set up buckets and groups
            trains()
            model.zero_grad()
        found[f"{way}: a step"] = crossing(trains)
        found[way] = held(model, full=full)
        if way == "lora":
            sizes = whole_on_each._get_ddp_logging_data()["bucket_sizes"]
            found[way]["gradients"] += sum(map(int, str(sizes).split(",")))
    if rank == 0:
        box.update(found)
    torch.distributed.destroy_process_group()


def check_two_processes(n: int, s: Setting) -> dict[str, tuple[float, float]]:
    """Bytes that cross between both ranks, and that one holds, by formula and as counted in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        box = manager.dict()
        mp.spawn(two_ranks, (port, n, s, box), nprocs=2)
        found = dict(box)
    # the gather pads both shares to the longer one and each rank receives the other's
    checks = {f"gathering {n} prompts crosses": (n * bytes_of_row(s), float(found["gather"]))}
    for way in WAYS:
        crosses = 2 * bytes_of_step(SMALL, s, gpus=2, way=way, parts=1)
        if way != "lora":  # gloo gives every rank the whole sum of the gradients
            crosses += 4 * (SMALL.weights if way == "full sharded" else SMALL.lora(s.r))
        checks[f"{way}: a step crosses"] = (crosses, float(found[f"{way}: a step"]))
        formula = memory(SMALL, s, gpus=2, way=way)
        checks |= {f"{way}: {what} of a rank": (formula[what], float(x)) for what, x in found[way].items() if x}
    return checks


def check_cache(s: Setting) -> tuple[float, float]:
    """Bytes of keys and values of 4 responses of 32 tokens by formula, and as transformers keeps them."""
    model = built(SMALL, "cpu").to(torch.bfloat16)
    with torch.no_grad():
        cache = model(torch.zeros(4, 32, dtype=torch.long), use_cache=True).past_key_values
    found = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    few = replace(s, in_flight=4, prompt_tokens=16, response_tokens=16)
    return memory(SMALL, few, gpus=1, way="lora")["cache"], float(found)


def pickled(s: Setting) -> tuple[float, float]:
    """Bytes of one prompt's candidates by formula, and pickled as a gather does it."""
    return bytes_of_row(s), float(len(pickle.dumps([candidates(i, s) for i in range(50)])) / 50)


# -- tables ----------------------------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(x) for x in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(x: float, unit: float = 1.0) -> str:
    """A number with about three digits."""
    x /= unit
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def ways(name: str) -> list[str]:
    """What is worth a column for a model."""
    return ["lora", "lora sharded", "full sharded"] if name == "8B" else ["lora sharded", "full sharded"]


def projections(s: Setting) -> str:
    """The tables of docs/scaling.md."""
    parts = []
    for name, shape in MODELS.items():
        rows = []
        for way in ways(name):
            for gpus in (1, 8, 64):
                if gpus == 1 and way != "lora":
                    continue
                m, c = memory(shape, s, gpus=gpus, way=way), round_costs(shape, s, gpus=gpus, way=way)
                cells = [m[k] for k in ("weights", "optimiser", "start and reference", "activations")]
                peaks = [show(m["training"], GB), show(m["sampling"], GB)]
                hours = [show(c[k], 3600) for k in ("sample", "score", "train", "network")]
                crossing = [show(c[k], GB) for k in ("gradient bytes", "gather bytes")]
                rows.append([way, gpus, *(show(x, GB) for x in cells), *peaks, *hours, *crossing])
        head = ("way", "GPUs", "weights", "AdamW", "start", "activations", "**training**", "**sampling**")
        head += ("sample h", "score h", "train h", "network h", "gradients", "gather")
        parts.append(f"{name}: {shape.weights / 1e9:.2f} B weights, {shape.lora(s.r) / 1e6:.0f} M in adapters\n")
        parts.append(table(head, rows) + "\n")
    return "\n".join(parts)


def compared(name: str, pair: tuple[float, float]) -> list[str]:
    """One check as a row."""
    formula, found = pair
    return [name, show(formula), show(found), f"{formula / found:.3f}"]


def main() -> None:
    """Check the formulas, and print what follows from them."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    s = Setting()
    torch.manual_seed(0)
    checks: dict[str, tuple[float, float]] = {}
    for name, shape in MODELS.items():
        checks |= {f"{name} {what}": pair for what, pair in check_weights(shape, s.r).items()}
    checks["AdamW's bytes, small model"] = check_optimiser(s.r)
    checks["bytes kept for the backward, small model, 512 tokens"] = check_activations(512, s.r)
    checks["bytes of one prompt's candidates"] = pickled(s)
    checks["keys and values of 4 x 32 tokens, small model"] = check_cache(s)
    checks |= {f"two processes, {what}": pair for what, pair in check_two_processes(200, s).items()}
    print(table(("checked", "formula", "measured", "ratio"), [compared(*item) for item in checks.items()]), "\n")
    print(projections(s))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"checks": checks}, indent=2) + "\n")


if __name__ == "__main__":
    main()
