"""A later round's pool on several ranks: what each rank holds, and for how long it computes.

`python benchmarks/pool_ranks.py` writes benchmarks/results/pool_ranks.json and docs/images/pool_ranks.png: 30% of the
prompts are sampled again, 2 responses of 256 tokens each. The ranks are processes that talk by gloo. Each of them
holds its share of the fresh responses as objects and maps the pool; rank 0 labels a tenth of the pairs, and writes the
round's file twice, as a run does: before and after the training. The sampling and the scoring are left out: the
responses are drawn at random.

Memory is what a process has for itself at its fullest (RssAnon), interpreter and libraries included; the mapped pool
is a file, which the machine keeps once for all ranks as long as it has room. Seconds are those of the processor on the
busiest rank, as if each had one for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import pyarrow as pa
import torch.distributed as dist
from common import RESULTS, ROOT, save, write_between
from torch.multiprocessing import start_processes

from callbacks.optune import OPTune
from callbacks.random import RandomPairs
from choosy.data.batches import PoolItems
from choosy.data.pool import Pool, round_file
from choosy.data.pool_rows import POOL_SCHEMA
from choosy.data.shared_pool import PIECE, mapped, put_together, read_round
from choosy.labeling.protocols import ResponsePair
from choosy.methods.losses import SigmoidLoss
from choosy.methods.weighting import Uniform
from choosy.parallel.neighbours import share_of
from choosy.parallel.ranks import Ranks, TorchRanks, fair_share
from choosy.reporting.display import Phases
from choosy.rounds.choose import choose_pairs, choose_prompts
from choosy.rounds.context import ChosenPrompt, Round
from choosy.rounds.label import label
from choosy.rounds.sample import expected_tokens
from choosy.rounds.score import score_trained
from choosy.rounds.weigh import weigh
from choosy.types import Candidates, Prompt, Response, Verdict, token_ids

PROMPT, RESPONSE = 128, 256  # tokens
MOST_RANKS, OVER_RANKS = 8, 31_250
WAYS = ((31_250, 1), (31_250, 4), (31_250, 8), (62_500, 8), (125_000, 8), (250_000, 8), (1_000_000, 8))
START, END = "<!-- measured: written by benchmarks/pool_ranks.py -->", "<!-- end of measured -->"
IMAGE = ROOT / "docs" / "images" / "pool_ranks.png"


class FirstWins:
    """Stands in the place of the buyer and its ledger: the first response wins."""

    labeler = SimpleNamespace(name="first wins")
    scores = False

    def compare(self, questions: Sequence[ResponsePair]) -> list[Verdict | None]:
        return ["first"] * len(questions)


class Watch:
    """Seconds of the processor by phase, and the most memory that this process had for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.most = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, own_memory())
            time.sleep(0.02)

    def __call__(self, name: str, act: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = act()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        return result


def own_memory() -> float:
    """Gigabytes that this process has for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


def lists(values: pa.Array, length: int) -> pa.Array:
    offsets = pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values)


def rows(first: int, n: int) -> pa.Table:
    """Rows of a pool as a run keeps them: texts and ids of so many tokens, rewards, log-probs, a pair a prompt."""
    draw = np.random.default_rng(first)

    def texts(count: int, tokens: int) -> pa.Array:  # 4 letters a token
        letters = draw.integers(97, 123, count * tokens * 4, dtype=np.uint8)
        offsets = np.arange(0, len(letters) + 1, tokens * 4, dtype=np.int32)
        return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))

    def ids(count: int, tokens: int) -> pa.Array:
        return lists(pa.array(draw.integers(0, 49152, count * tokens, dtype=np.int32)), tokens)

    prompts, answers, rewards = texts(n, PROMPT), texts(2 * n, RESPONSE), draw.normal(size=2 * n)
    chosen = np.where(rewards[::2] >= rewards[1::2], 0, 1).astype(np.int32)
    pair = {"chosen": chosen, "rejected": 1 - chosen, "weight": np.ones(n), "source": ["vader"] * n}
    pair["round"] = np.zeros(n, np.int32)
    columns: dict[str, Any] = {
        "split": pa.array(["train"] * n),
        "prompt_id": pa.array([name_of(i) for i in range(first, first + n)]),
        "prompt": prompts,
        "origin": pa.array(["sampled"] * n),
        "sampled_in": pa.array(np.zeros(n, np.int32)),
        "responses": lists(answers, 2),
        "rewards": lists(pa.array(rewards), 2),
        "logps": lists(pa.array(rewards - 60), 2),
        "ref_logps": lists(pa.array(rewards - 61), 2),
        "finished": lists(pa.array(np.ones(2 * n, bool)), 2),
        "response_ids": lists(ids(2 * n, RESPONSE), 2),
        "prompt_ids": ids(n, PROMPT),
        "gold": lists(pa.nulls(2 * n, pa.float64()), 2),
        "pairs": lists(struct("pairs", pair, n), 1),
        "undecided": pa.array([[]] * n, POOL_SCHEMA.field("undecided").type),
        "earlier_rewards": struct("earlier_rewards", {"count": np.zeros(n), "mean": np.zeros(n), "m2": np.zeros(n)}, n),
        "chosen": answers.take(pa.array(np.arange(n) * 2 + chosen)),
        "rejected": answers.take(pa.array(np.arange(n) * 2 + 1 - chosen)),
        "weight": pa.array(np.ones(n)),
    }
    return pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in POOL_SCHEMA], schema=POOL_SCHEMA)


def name_of(number: int) -> str:
    """The id of a prompt; ids are in the order of the numbers."""
    return f"{number:016x}"


def struct(name: str, known: dict[str, Any], n: int) -> pa.Array:
    """Structs of the pool with these facts, and nulls for the others."""
    kind = POOL_SCHEMA.field(name).type
    kind = kind.value_type if pa.types.is_list(kind) else kind
    facts = [pa.array(known[f.name], f.type) if f.name in known else pa.nulls(n, f.type) for f in kind]
    return pa.StructArray.from_arrays(facts, fields=list(kind))


def start_pool(n: int, ranks: Ranks) -> Iterator[pa.Table]:
    """This rank's part of the pool before the round."""
    starts = range(0, n, PIECE)
    for first in starts[share_of(len(starts), ranks.rank, ranks.size)]:
        yield rows(first, min(PIECE, n - first))


def sampled(chosen: ChosenPrompt, number: int, draw: np.random.Generator) -> Candidates:
    """Fresh responses to a prompt, of tokens drawn at random."""

    def ids(length: int) -> tuple[int, ...]:
        return token_ids(draw.integers(0, 49152, length).tolist())

    def response() -> Response:
        return Response(draw.bytes(2 * RESPONSE).hex(), ids(RESPONSE), True, -60.0, -61.0)

    return Candidates(chosen.prompt, (response(), response()), ids(PROMPT), number, chosen.utility)


def play(n: int, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A round of a pool of n prompts on this rank: what the rank holds, and its seconds."""
    start = mapped(start_pool(n, ranks), folder, ranks, 0)
    watch = Watch()
    pool = played(start, [Prompt(name_of(i), "") for i in range(n)], folder, ranks, watch)
    del start
    for _ in range(2):  # before and after the training
        if ranks.rank == 0:
            watch("write", lambda: pool.save(folder, {"round": 1}))
    ranks.gather([])
    items = watch("list items", lambda: PoolItems(pool, {"reference"}, round=1))
    few = random.Random(ranks.rank).sample(range(len(items)), 512)
    watch("512 items", lambda: [items[i] for i in few])
    again, _ = watch("read", lambda: read_round(folder, 1, ranks))
    assert len(again) == len(pool) >= n
    return {"own_gb": watch.most, "file_gb": round_file(folder, 1).stat().st_size / 1e9, "seconds": watch.seconds}


def played(start: Pool, prompts: Sequence[Prompt], folder: Path, ranks: Ranks, watch: Watch) -> Pool:
    """Choose, sample at random, label, weigh, and put together."""
    loss: Any = SigmoidLoss()
    parts: Any = (None, None, start, ranks, Phases(), loss, None)
    at = Round(1, 0, *parts, rounds=2, folder=folder)

    def mine_of_chosen() -> list[ChosenPrompt]:
        chosen = choose_prompts(at, prompts, OPTune(fraction=0.3))
        return fair_share(chosen, expected_tokens(at, [prompt for prompt, _ in chosen]), ranks)

    chosen, draw = watch("choose", mine_of_chosen), np.random.default_rng(ranks.rank)
    mine = [sampled(one, 1, draw) for one in chosen]
    choice = watch("choose", lambda: choose_pairs(at, mine, RandomPairs(fraction=0.1)))
    labels: Any = FirstWins()
    labeled = watch("gather", lambda: label(at, mine, choice, labels))
    weighed = watch("gather", lambda: score_trained(at, weigh(at, labeled, Uniform(), "bought")))
    pool: Pool = watch("gather", lambda: put_together(start, weighed, folder, ranks, round=1, keep="newest"))
    return pool


def one_rank(rank: int, size: int, n: int, folder: Path, port: int) -> None:
    """Play on one process of several, and write down what it took."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    (folder / f"{rank}.json").write_text(json.dumps(play(n, TorchRanks(), folder)))
    dist.barrier()


def measure(n: int, size: int) -> dict[str, Any]:
    """The figures of all ranks: the fullest and the busiest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # forked, so that the libraries are in memory once
        start_processes(one_rank, (size, n, folder, port), nprocs=size, start_method="fork")
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    phases = found[0]["seconds"]
    return {
        "prompts": n,
        "ranks": size,
        "rank_0_gb": round(found[0]["own_gb"], 3),
        "other_gb": round(max((one["own_gb"] for one in found[1:]), default=0.0), 3),
        "file_gb": round(found[0]["file_gb"], 3),
        "seconds": {name: round(max(one["seconds"].get(name, 0.0) for one in found), 2) for name in phases},
    }


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The figures for docs/scaling.md."""
    phases = list(runs[0]["seconds"])
    head = ["prompts", "ranks", "rank 0, GB", "another rank, GB", *(f"{name}, s" for name in phases), "together, s"]
    lines = [head, ["---"] * len(head)]
    for run in runs:
        other = f"{run['other_gb']:.2f}" if run["ranks"] > 1 else ""
        spent = [run["seconds"][name] for name in phases]
        seconds = [f"{x:.2g}" if x < 10 else f"{x:.0f}" for x in (*spent, sum(spent))]
        lines.append([f"{run['prompts']:,}", str(run["ranks"]), f"{run['rank_0_gb']:.2f}", other, *seconds])
    return [f"| {' | '.join(line)} |" for line in lines]


def draw(runs: Sequence[dict[str, Any]]) -> None:
    """Memory and seconds against prompts and against ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((own_n, seconds_n), (own_r, seconds_r)) = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for x, what, over, own, seconds in (
        ("prompts", "ranks", MOST_RANKS, own_n, seconds_n),
        ("ranks", "prompts", OVER_RANKS, own_r, seconds_r),
    ):
        some = sorted((run for run in runs if run[what] == over), key=lambda run: run[x])
        at = [run[x] for run in some]
        own.plot(at, [run["rank_0_gb"] for run in some], marker="o", label="rank 0")
        several = [run for run in some if run["ranks"] > 1]
        own.plot([r[x] for r in several], [r["other_gb"] for r in several], marker="o", label="another rank")
        for phase in some[0]["seconds"]:
            seconds.plot(at, [run["seconds"][phase] for run in some], marker="o", label=phase)
        for axes, unit in ((own, "own memory, GB"), (seconds, "seconds of the busiest rank")):
            axes.set(xlabel=f"{x} ({over:,} {what})", ylabel=unit, ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help="PROMPTS,RANKS: measure this alone, and write nothing")
    typed = parser.parse_args()
    if typed.one:
        print(json.dumps(measure(*map(int, typed.one.split(",")))))
        return
    file = RESULTS / "pool_ranks.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []  # one that is there is not repeated
    for n, size in WAYS:
        if not any((run["prompts"], run["ranks"]) == (n, size) for run in runs):
            command = [sys.executable, __file__, "--one", f"{n},{size}"]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(out.stdout.splitlines()[-1]))
            save("pool_ranks", {"runs": sorted(runs, key=lambda run: (run["prompts"], run["ranks"]))})
    write_between(
        ROOT / "docs" / "scaling.md", START, END, table(sorted(runs, key=lambda r: (r["prompts"], r["ranks"])))
    )
    draw(runs)


if __name__ == "__main__":
    main()
