"""The parts of benchmarks/gpu.py, measured in a process of their own: one for each name that is read.

On a GPU clocks are read after torch.cuda.synchronize, memory is the peak of torch's allocator since the first measured
step, and the first pass, in which kernels are compiled, is measured apart.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from flops import flops, published_peak

from choosy.data.batches import Batch, Item, batch_of
from choosy.main import compose, train
from choosy.methods.losses import SigmoidLoss
from choosy.models.adapters import Lora
from choosy.models.compute import Compute, free_memory
from choosy.models.policy import Policy
from choosy.module import WeightedDPO
from choosy.reporting.display import quiet
from choosy.sampling.vllm import Vllm
from choosy.types import Candidates, Prompt, Response, seed_of

GB = 1e9
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
)
REWARDS = "def length(prompt, response):\n    return float(sum(map(ord, response)) % 101)\n"


@dataclass(frozen=True)
class Size:
    """How large the model and the work are."""

    shape: dict[str, int]  # of the Llama
    pairs: int  # of a step
    prompt: tuple[int, int]  # fewest and most tokens
    response: tuple[int, int]
    tokens_per_step: int
    batches: int  # different ones, which the first pass goes over
    passes: int  # measured ones
    prompts: int  # of a round
    new_tokens: int


SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
FULL = Size(
    shape={
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 16,
        "vocab_size": 128_256,
    },
    pairs=32,
    prompt=(64, 512),
    response=(64, 512),
    tokens_per_step=8192,
    batches=4,
    passes=3,
    prompts=64,
    new_tokens=128,
)
TOY = Size(
    shape=SMALL | {"num_hidden_layers": 2, "vocab_size": 320},
    pairs=4,
    prompt=(4, 12),
    response=(4, 16),
    tokens_per_step=64,
    batches=2,
    passes=1,
    prompts=4,
    new_tokens=6,
)
job = json.loads(sys.argv[1])
SIZE = TOY if job["toy"] else FULL
FOLDER = Path(job["folder"])
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
ON_GPU = DEVICE.type == "cuda"


# -- the card, its clock and its memory ------------------------------------------------------------------------


def now() -> float:
    """The time once the device has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def clean() -> None:
    """Free what the part before has left."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(DEVICE)


def peak_memory() -> dict[str, float]:
    """The most memory that tensors have taken since the peak was reset; nothing on a CPU."""
    return {"peak_gb": torch.cuda.max_memory_allocated(DEVICE) / GB} if ON_GPU else {}


def card() -> dict[str, Any]:
    """The device, and the best rate of bf16 products that it shows."""
    if not ON_GPU:
        return {"device": "cpu", "torch": torch.__version__}
    n, best = 8192, float("inf")
    one, other = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    for _ in range(8):
        began = now()
        one @ other
        best = min(best, now() - began)
    return {
        "device": torch.cuda.get_device_name(DEVICE),
        "torch": torch.__version__,
        "memory_gb": torch.cuda.get_device_properties(DEVICE).total_memory / GB,
        "product_tflops": 2 * n**3 / best / 1e12,
    }


# -- the model and its data ------------------------------------------------------------------------------------


def model(shape: dict[str, int], name: str) -> str:
    """The folder of a Llama with random weights in bf16, and a tokenizer of bytes; made once."""
    folder = FOLDER / name
    if (folder / "complete").exists():
        return str(folder)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = {"eos_token": "<|end|>", "bos_token": "<|begin|>", "pad_token": "<|pad|>"}
    more = [f"<{n}>" for n in range(shape["vocab_size"] - len(bytes_) - len(ends))]
    tokens = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate([*bytes_, *more])}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, chat_template=TEMPLATE, **ends)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**shape, **ids, max_position_embeddings=4096, tie_word_embeddings=True)
    torch.manual_seed(0)
    with DEVICE:
        llama = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete").touch()
    return str(folder)


def drawn(n: int) -> list[Candidates]:
    """Prompts with two responses each, of random lengths and tokens."""
    rng = torch.Generator().manual_seed(0)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most + 1, (), generator=rng))
        return tuple(torch.randint(256, (length,), generator=rng).tolist())

    return [
        Candidates(Prompt(str(i), ""), tuple(Response("", ids(*SIZE.response)) for _ in "ab"), ids(*SIZE.prompt))
        for i in range(n)
    ]


# -- a training step -------------------------------------------------------------------------------------------


class Steps(Dataset[Batch]):
    """Batches of one fit: each once to warm up, then the measured passes over them, then others of new lengths."""

    def __init__(self, candidates: Sequence[Candidates]) -> None:
        self.candidates = list(candidates)
        self.measured = range(SIZE.batches, SIZE.batches * (1 + SIZE.passes))

    def __len__(self) -> int:
        return self.measured.stop + SIZE.batches

    def __getitem__(self, step: int) -> Batch:
        batch = step % SIZE.batches + (SIZE.batches if step >= self.measured.stop else 0)
        chosen = self.candidates[batch * SIZE.pairs : (batch + 1) * SIZE.pairs]
        return batch_of(
            [
                Item(c.prompt.id, c.prompt_ids, [r.ids for r in c.responses], [r.logp_ref for r in c.responses])
                for c in chosen
            ]
        )


class Clock(Callback):
    """Scores the reference before the first step, and measures every step."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.flops = 0.0
        self.score_seconds = 0.0
        self.peak: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        for _ in range(2):  # the first pass compiles
            began = now()
            scored = pl_module.policy.score_reference(self.steps.candidates)
            self.score_seconds = now() - began
        self.steps.candidates = scored

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx == self.steps.measured.start and ON_GPU:
            torch.cuda.reset_peak_memory_stats(DEVICE)
        self.began = now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.seconds.append(now() - self.began)
        self.losses.append(float(trainer.callback_metrics["loss_step"]))
        if batch_idx in self.steps.measured:
            self.flops += flops(pl_module.policy, batch.groups)
            self.peak = peak_memory()


def step(*, attention: str, share_prompt: bool = True, fused: bool = True, sharded: bool = False) -> dict[str, Any]:
    """A DPO step with LoRA on all linear layers, in bf16, under Lightning's Trainer.

    Model FLOP utilisation is the step's useful operations over its seconds, as a share of the card's published dense
    bf16 rate (`published_peak`), without which it is not reported. Useful are (`flops`) no padding, no recomputation
    and each prompt once, whatever is computed: for N tokens in all, M of them predicted, P weights in the layers, E in
    the head, A in the adapters, S pairs of a query and a key that it sees, L layers of width D:

        2 N (2 P + 3 A) + 2 M (2 E) + 3 * 4 S D L

    since frozen weights take a product forward and one for the gradient of their input, and trained ones a third.
    Padded rows hold each prompt twice: their parts have half the budget, so that they take about as much memory.
    """
    budget = SIZE.tokens_per_step if share_prompt else SIZE.tokens_per_step // 2
    policy = Policy(
        model(SIZE.shape, "llama"),
        lora=Lora(r=16, alpha=32),
        dtype="bfloat16",
        compute=Compute(budget, attention=attention, share_prompt=share_prompt, fused=fused),
    )
    steps = Steps(drawn(2 * SIZE.batches * SIZE.pairs))
    clock = Clock(steps)
    trainer = Trainer(
        accelerator="gpu" if ON_GPU else "cpu",
        devices=1,
        strategy=ModelParallelStrategy(save_distributed_checkpoint=False) if sharded else "auto",
        max_epochs=1,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.0)
    module = WeightedDPO(policy, loss=SigmoidLoss(0.1), optimizer=optimizer)
    trainer.fit(module, train_dataloaders=DataLoader(steps, batch_size=None))
    if share_prompt and not policy.shares_prompts:
        raise RuntimeError(f"attention={attention} gives shared prompts other values or fails; the log says which")
    measured = clock.seconds[steps.measured.start : steps.measured.stop]
    rate = clock.flops / sum(measured)
    peak = published_peak(torch.cuda.get_device_name(DEVICE)) if ON_GPU else None
    tokens = sum(group.tokens for at in steps.measured for group in steps[at].groups)
    return {
        "step_s": median(measured),
        "tokens_per_s": tokens / sum(measured),
        "tflops": rate / 1e12,
        **({"mfu": rate / peak} if peak else {}),
        **clock.peak,
        "first_pass_s": sum(clock.seconds[: SIZE.batches]),
        "new_lengths_step_s": median(clock.seconds[steps.measured.stop :]),
        "score_s": clock.score_seconds,
        "attention": policy.causal_lm.config._attn_implementation,
        "one_row": policy.one_row,
        **({"graphs": graphs()} if attention == "flex_attention" else {}),
        "loss": clock.losses[-1],
        "steps_s": clock.seconds,
    }


def graphs() -> int:
    """How many graphs torch has compiled in this process: beyond a limit it computes without compiling, and slowly."""
    from torch._dynamo.utils import counters  # seconds, and only FlexAttention compiles

    return int(counters["stats"]["unique_graphs"])


# -- whole runs ------------------------------------------------------------------------------------------------


def lines(shape: dict[str, int], name: str, *, prompts: int) -> list[str]:
    """What is typed for a run on short prompts, rewarded by a function."""
    FOLDER.joinpath("gpu_rewards.py").write_text(REWARDS)
    rows = [
        {"id": str(n), "prompt": f"What is worth knowing about the number {n}, and why? " * 3} for n in range(prompts)
    ]
    FOLDER.joinpath("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "trainer=gpu" if ON_GPU else "trainer=cpu",
        f"model.name={model(shape, name)}",
        "model.dtype=bfloat16",
        f"data.train={FOLDER / 'prompts.jsonl'}",
        f"data.limit={prompts}",
        "data.heldout=null",
        "data.responses=2",
        "labeler=function",
        "labeler.path=gpu_rewards.length",
        "selector=none",
        "rounds=2",
        f"batching.tokens_per_step={SIZE.tokens_per_step}",
        f"sampler.max_new_tokens={SIZE.new_tokens}",
        "callbacks.report=null",
        "logger.tensorboard=null",
    ]


class Rounds(Callback):
    """Measures each round, from the end of the one before."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.before: dict[str, float] = {}
        self.tokens = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.began = now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run = trainer.datamodule.run
        phases, tokens = dict(run.phases.seconds), run.record.counts["tokens_generated"]
        spent = {name: seconds - self.before.get(name, 0.0) for name, seconds in phases.items()}
        self.found.append(
            {
                "seconds": now() - self.began,
                "phases": {name: seconds for name, seconds in spent.items() if seconds},
                "tokens": tokens - self.tokens,
                "sampled_tokens_per_s": (tokens - self.tokens) / spent["sample"],
                **peak_memory(),
            }
        )
        clean()
        self.tokens, self.before, self.began = tokens, dict(run.phases.seconds), now()


def play_round() -> dict[str, Any]:
    """Two rounds with sampler=generate; the second, which starts nothing, is the result."""
    rounds = Rounds()
    words = [*lines(SIZE.shape, "llama", prompts=SIZE.prompts), f"sampler.batch_size={2 * SIZE.prompts}"]
    train(compose([*words, "sampler=generate"]), fresh("round"), callbacks=[rounds])
    first, second = rounds.found
    return {**second, "first_round_s": first["seconds"]}


class Stopped(Exception):
    """The run ends here."""


class Stop(Callback):
    """Stops a run in the training of its second round."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            raise Stopped


def resume() -> dict[str, Any]:
    """Two runs of one seed and a third that is stopped and resumed, all in bf16, with attention that is deterministic.

    Beside `trainer.deterministic=warn`: the kernels that torch has in a deterministic form only are those.
    """
    shape = SMALL | {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 320} if ON_GPU else TOY.shape
    words = [*lines(shape, "small", prompts=8), "batching.batch_size=4", "+trainer.deterministic=warn", "lr=1e-3"]
    words += ["sampler.max_new_tokens=16", "model.compute.attention=eager"]
    ends = {}
    for name in ("once", "again", "resumed"):
        folder = fresh(name)
        if name == "resumed":
            with suppress(Stopped):
                train(compose(words), folder, callbacks=[Stop()])
            assert not (folder / "adapter").exists(), "the run was not stopped"
        train(compose([*words, *(["ckpt_path=last"] if name == "resumed" else [])]), folder)
        ends[name] = load_file(folder / "adapter" / "adapter_model.safetensors")
    moved = max(float(w.abs().max()) for n, w in ends["once"].items() if "lora_B" in n)
    return {
        "equal": difference(ends["once"], ends["resumed"]) == 0,
        "difference": difference(ends["once"], ends["resumed"]),
        "difference_of_two_runs": difference(ends["once"], ends["again"]),
        "largest_weight": moved,
    }


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def fresh(name: str) -> Path:
    """The folder of a run, which a part that is begun again does not find."""
    return FOLDER / f"{name}-{os.getpid()}-{time.monotonic_ns()}"


# -- vLLM ------------------------------------------------------------------------------------------------------


def vllm(*, sync: Any, compiled: bool) -> dict[str, Any]:
    """Two calls of one engine, which sleeps between them on a GPU: the same seeds must give the same texts."""
    policy = Policy(model(SIZE.shape, "llama"), lora=Lora(r=16, alpha=32), dtype="bfloat16")
    policy.load(device=DEVICE, seed=0)
    prompts = [c.prompt_ids for c in drawn(SIZE.prompts)]
    seeds = [[seed_of("gpu", i, n) for n in range(2)] for i in range(SIZE.prompts)]
    engine = Vllm(
        max_new_tokens=SIZE.new_tokens,
        batch_size=2 * SIZE.prompts,
        max_prompt_tokens=SIZE.prompt[1],
        sync=sync,
        sleep=ON_GPU,
        compiled=compiled,
    )
    free = {"before": free_memory(DEVICE)}
    calls = []
    for _ in range(2):
        began, synced = now(), engine.sync_seconds
        sampled = engine.sample(policy, prompts, seeds, done=lambda _: free.update(awake=free_memory(DEVICE)))
        seconds = now() - began
        free["asleep"] = free_memory(DEVICE)
        calls.append(([[r.ids for r in of] for of in sampled], seconds, engine.sync_seconds - synced))
    (first, _, _), (second, seconds, synced) = calls
    engine.close()
    tokens = sum(len(ids) for of in second for ids in of)
    same = [a == b for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return {
        "tokens_per_s": tokens / seconds,
        "start_s": engine.start_seconds,
        "sync_s": synced,
        "same_texts": sum(same) / len(same),
        **({f"{when}_gb": (free["before"] - free[when]) / GB for when in ("awake", "asleep")} if ON_GPU else {}),
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "card": card,
    "round": play_round,
    "step sdpa": functools.partial(step, attention="sdpa"),
    "step flex_attention": functools.partial(step, attention="flex_attention"),
    "step padded": functools.partial(step, attention="sdpa", share_prompt=False),
    "step grouped": functools.partial(step, attention="grouped"),
    "step sdpa, not fused": functools.partial(step, attention="sdpa", fused=False),
    "step flex_attention, not fused": functools.partial(step, attention="flex_attention", fused=False),
    "step sdpa, FSDP2": functools.partial(step, attention="sdpa", sharded=True),
    "resume": resume,
    "vllm": functools.partial(vllm, sync="merged", compiled=True),
    "vllm adapter": functools.partial(vllm, sync="adapter", compiled=False),
}


def measured(name: str) -> dict[str, Any]:
    """What a part has found, or why it found nothing."""
    if not ON_GPU and "flex_attention" in name:
        return {"skipped": "FlexAttention has no backward on a CPU"}
    try:
        clean()
        return PARTS[name]()
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        cause = error.__cause__ if isinstance(error.__cause__, torch.OutOfMemoryError) else error
        kind = "out_of_memory" if isinstance(cause, torch.OutOfMemoryError) else "failed"
        return {kind: f"{type(cause).__name__}: {cause}"[:500]}
    finally:
        torch.use_deterministic_algorithms(False)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes into the log
    quiet()
    sys.path.insert(0, str(FOLDER))
    for line in sys.stdin:
        print(f"\n---- {line.strip()}", file=sys.stderr, flush=True)
        print(json.dumps(measured(line.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()
