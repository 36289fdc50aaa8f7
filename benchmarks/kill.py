"""Kill a run with -9 at random moments until it has finished, many times: python benchmarks/kill.py --kills 100

Every run is a process of its own, forked from one that has imported torch already and done nothing else, so that a
kill costs a second and not the ten of a start. Written to benchmarks/results/kill.json: how many kills there were,
in which phase they struck, labels lost and labels paid twice, and how many killed runs ended as the one never killed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from choosy.main import compose, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kill.json"
THINGS = ("tea", "rain", "bread", "snow", "music", "chess", "soup", "maps", "tides", "owls", "ink", "kites")
PAID = """
import os
def vowels(prompt, response):
    with open(os.environ["PAID"], "a") as bill:  # one short line, which the system appends whole
        bill.write(repr((prompt, response)) + "\\n")
    return float(sum(map(ord, response)) % 7)
"""


def tiny_policy(folder: Path) -> Path:
    """A random two-layer Llama with a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}{{ m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}assistant\n"
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=template,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def prepare(folder: Path) -> list[str]:
    """The lines of a run, and what they name."""
    rows = [{"id": f"p{n:02d}", "prompt": f"Tell me about {thing}."} for n, thing in enumerate(THINGS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "paid.py").write_text(PAID)
    sys.path.insert(0, str(folder))
    return [
        "trainer=cpu",
        f"model.name={tiny_policy(folder / 'policy')}",
        "model.dtype=float32",
        f"data.train={folder}/prompts.jsonl",
        f"data.heldout={folder}/prompts.jsonl",
        "data.heldout_limit=4",
        "data.responses=3",
        "selector=optune_certainty",
        "labeler=function",
        "labeler.labeler.path=paid.vowels",
        "rounds=3",
        "sampler.max_new_tokens=8",
        "batching.batch_size=2",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.report.console=false",
        "logger=default",
        "~logger.tensorboard",
    ]


def started(lines: list[str], run_dir: Path) -> int:
    """Start or go on with the run in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        os.environ["PAID"] = str(run_dir.with_suffix(".bill"))
        with (run_dir.with_suffix(".log")).open("a") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            train(compose([*lines, "ckpt_path=auto"]), run_dir)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def play(lines: list[str], run_dir: Path) -> float:
    """A run that nobody kills; its seconds on a processor, by which a busy machine counts time as an idle one."""
    _, status, used = os.wait4(started(lines, run_dir), 0)
    if status:
        sys.exit(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-4000:]}")
    return used.ru_utime + used.ru_stime


def used_seconds(pid: int) -> float:
    """Seconds on a processor of a process that runs."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def whereabouts(run_dir: Path) -> str:
    """How far a killed run had come."""
    rounds = sorted(path.name for path in (run_dir / "rounds").glob("[rs]*.parquet"))
    unfinished = [p for p in run_dir.rglob(".*") if p.is_file()]
    if unfinished:
        return "while a file was being written"
    if any(name.startswith("sampled") for name in rounds):
        return "while labeling"
    if not rounds or rounds == ["start.parquet"]:
        return "before the first round was sampled"
    told = json.loads(pq.read_schema(run_dir / "rounds" / max(n for n in rounds if n[0] == "r")).metadata[b"choosy"])
    return "while sampling a later round" if told["evaluation"] else "in training or evaluation"


def labels(run_dir: Path) -> dict[str, tuple[Any, ...]]:
    """The labels of a run's ledger by key."""
    if not (run_dir / "ledger.sqlite").exists():
        return {}
    with contextlib.closing(sqlite3.connect(run_dir / "ledger.sqlite")) as db:
        try:
            return {row[0]: row[1:] for row in db.execute("SELECT key, score, time FROM labels")}
        except sqlite3.OperationalError:  # killed before its tables were there
            return {}


def ending(run_dir: Path) -> dict[str, Any]:
    """All that two runs from one seed must agree on, to the bit."""
    summary = json.loads((run_dir / "summary.json").read_text())
    del summary["seconds"]
    with (run_dir / "metrics.csv").open(newline="") as file:
        metrics = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in csv.DictReader(file)]
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    return {
        "weights": {name: weight.tolist() for name, weight in adapter.items()},
        "pool": {path.name: pq.read_table(path).to_pylist() for path in sorted(run_dir.glob("rounds/*.parquet"))},
        "ledger": {key: score for key, (score, _) in sorted(labels(run_dir).items())},
        "metrics": metrics,
        "summary": summary,
    }


def killed_until_done(
    lines: list[str], run_dir: Path, draw: random.Random, seconds: float, most: int
) -> tuple[Counter[str], int]:
    """Kill the run at random moments, at most so often, until it ends; where the kills struck, and labels lost."""
    struck: Counter[str] = Counter()
    lost = 0
    while True:
        pid = started(lines, run_dir)
        end = draw.uniform(0.0, 0.75 * seconds) if struck.total() < most else math.inf
        done = (0, 0)
        while done[0] == 0 and used_seconds(pid) < end:
            time.sleep(0.002)
            done = os.waitpid(pid, os.WNOHANG)
        if done[0]:
            if done[1]:
                sys.exit(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-4000:]}")
            return struck, lost
        known = labels(run_dir)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        struck[whereabouts(run_dir)] += 1
        now = labels(run_dir)
        lost += sum(now.get(key) != row for key, row in known.items())


def main() -> None:
    """Play the run whole, then kill it until there were enough kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after so many minutes, with fewer kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    began, draw = time.monotonic(), random.Random(asked.seed)
    struck: Counter[str] = Counter()
    runs = equal = twice = unpaid = lost = 0
    differ: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        lines = prepare(Path(scratch))
        whole = Path(scratch) / "whole"
        seconds = play(lines, whole)
        wanted = ending(whole)
        print(f"a whole run takes {seconds:.1f} s of a processor and buys {len(wanted['ledger'])} labels", flush=True)
        while struck.total() < asked.kills and time.monotonic() - began < 60 * asked.minutes:
            run = Path(scratch) / f"run{runs:03d}"
            found, gone = killed_until_done(lines, run, draw, seconds, asked.kills - struck.total())
            lost += gone
            struck += found
            runs += 1
            ended = ending(run)
            parts = [part for part in wanted if ended[part] != wanted[part]]
            differ.update(parts)
            equal += not parts
            bill = Counter(run.with_suffix(".bill").read_text().splitlines())
            twice += sum(n - 1 for n in bill.values())
            unpaid += len(ended["ledger"]) - len(bill)
            print(f"run {runs}: {found.total()} kills, {parts or 'equal'}", flush=True)
    result = {
        "kills": struck.total(),
        "runs": runs,
        "equal endings": equal,
        "unequal in": dict(differ),
        "labels lost": lost,
        "labels asked for again because a kill struck between the answer and its commit": twice,
        "labels in the ledger that nobody was asked for": unpaid,
        "where": dict(sorted(struck.items())),
        "seconds": round(time.monotonic() - began, 1),
        "processor seconds of a whole run": round(seconds, 2),
        "seed": asked.seed,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if equal < runs or lost:
        sys.exit("some ending differs, or a label was lost")


if __name__ == "__main__":
    main()
