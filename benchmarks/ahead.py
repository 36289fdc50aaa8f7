"""What it saves to sample the next round in a second process while this round trains (`sampler.ahead=1`).

    python benchmarks/ahead.py

The same runs with and without it take turns, one thread a process, on a small Llama with random weights and the demo's
tokenizer. Two figures of each round but the first: its seconds by the clock, which mean something on a machine that
does nothing else; and its seconds where each process has a core to itself, made of processor seconds: those of this
process, and of the other one what its sampling took longer than the training beside it. Written to
benchmarks/results/ahead.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from common import save
from lightning.pytorch import Callback
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

import choosy.main
from choosy.models.locate import ModelSource
from choosy.sampling.elsewhere import Elsewhere

TICK = os.sysconf("SC_CLK_TCK")


class Rounds(Callback):
    """Notes the seconds of each round, by the clock and of the processor, and those of its training."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.trained: list[float] = []

    def on_round_start(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.trained.append(-time.process_time())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.trained[-1] += time.process_time()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.on_round_start()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--prompts", type=int, default=24)
    asked.add_argument("--tokens", type=int, default=48)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--runs", type=int, default=1)
    typed = asked.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, list[float]]]] = {"without": [], "ahead": []}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        for number in range(typed.runs):
            for way, runs in found.items():
                runs.append(played(way == "ahead", Path(folder), f"{way}{number}", typed))
                print(way, {name: [round(x, 2) for x in each] for name, each in runs[-1].items()}, flush=True)
    middle = {
        of: {way: median(x for run in runs for x in run[of]) for way, runs in found.items()}
        for of in ("clock", "own_core")
    }
    what = (
        f"{typed.prompts} prompts, 2 responses of {typed.tokens} tokens, half of the pairs labeled and trained on; "
        f"runs of {typed.rounds} rounds, {typed.runs} each way"
    )
    ratio = {of: ways["without"] / ways["ahead"] for of, ways in middle.items()}
    save("ahead", {"what": what, "load": os.getloadavg()[0], "median_round": middle, "ratio": ratio, "runs": found})


def write_model(folder: Path) -> None:
    """Write a Llama of 18 million parameters with random weights, and the demo's tokenizer."""
    demo = ModelSource("demo:smollm2").resolved
    config = AutoConfig.from_pretrained(demo)
    config.update(
        {
            **{"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
        }
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo).save_pretrained(folder)


def processor_seconds(pid: int) -> float:
    """What a process has used of processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def played(ahead: bool, folder: Path, name: str, typed: argparse.Namespace) -> dict[str, list[float]]:
    """Play a run; of each round but the first its seconds by the clock, with a core of its own, and of its parts."""
    sampled: list[float] = []  # processor seconds of each call that went on beside the training
    answer_from = Elsewhere.answer_from

    def timed(self: Elsewhere, *given: Any, threads: int = 0) -> Any:
        assert self._process is not None
        before, process = processor_seconds(self._process.pid), self._process
        responses = answer_from(self, *given, threads=threads)
        if not threads:
            sampled.append(processor_seconds(process.pid) - before)
        return responses

    rounds = Rounds()
    Elsewhere.answer_from = timed  # type: ignore[method-assign]
    try:
        lines = [*given_lines(folder, typed), f"sampler.ahead={int(ahead)}"]
        choosy.main.train(choosy.main.compose(lines), folder / name, callbacks=[rounds])
    finally:
        Elsewhere.answer_from = answer_from  # type: ignore[method-assign]
    pairs = list(zip(rounds.marks[1:], rounds.marks[2:], strict=False))
    clock = [end[0] - start[0] for start, end in pairs]
    here = [end[1] - start[1] for start, end in pairs]
    beside = [max(0.0, s - t) for s, t in zip(sampled, rounds.trained, strict=False)] or [0.0] * len(here)
    own_core = [of_round + longer for of_round, longer in zip(here, beside, strict=True)]
    return {"clock": clock, "own_core": own_core, "sampled_beside": sampled, "trained": rounds.trained}


def given_lines(folder: Path, typed: argparse.Namespace) -> list[str]:
    """What is typed."""
    return [
        f"model.name={folder / 'model'}",
        "model.dtype=float32",
        "trainer=cpu",
        f"data.limit={typed.prompts}",
        "data.heldout=null",
        "data.responses=2",
        f"sampler.max_new_tokens={typed.tokens}",
        f"rounds={typed.rounds}",
        "selector=random_pairs",
        "callbacks.random_pairs.fraction=0.5",
        "train_on=round",
        "batching.batch_size=4",
        "labeler=vader",
        "weighting=uniform",
        "callbacks.report.console=false",
    ]


if __name__ == "__main__":
    main()
