"""A pool of a million prompts with two responses each: choose by OPTune, write, reload; memory, and growth.

`python benchmarks/pool_size.py` writes benchmarks/results/pool_size.json. Each size runs in a process of its own, so
that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from common import save

from callbacks.optune import OPTune
from choosy.data.pool import Pool
from choosy.data.pool_rows import POOL_SCHEMA
from choosy.methods import selection
from choosy.types import Prompt

WORDS = 40  # tokens of a response, and of a prompt
SIZES = (250_000, 500_000, 1_000_000)


def lists(values: pa.Array, length: int) -> pa.Array:
    offsets = pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values)


def rows(first: int, n: int, *, prompt: int = WORDS, response: int = WORDS) -> pa.Table:
    """Rows of a pool as a run keeps them: texts and ids of so many tokens, rewards, log-probs, a pair a prompt."""
    draw = np.random.default_rng(first)

    def texts(count: int, tokens: int) -> pa.Array:  # 4 letters a token
        letters = draw.integers(97, 123, count * tokens * 4, dtype=np.uint8)
        offsets = np.arange(0, len(letters) + 1, tokens * 4, dtype=np.int32)
        return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))

    def ids(count: int, tokens: int) -> pa.Array:
        return lists(pa.array(draw.integers(0, 49152, count * tokens, dtype=np.int32)), tokens)

    prompts, answers, rewards = texts(n, prompt), texts(2 * n, response), draw.normal(size=2 * n)
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
        "response_ids": lists(ids(2 * n, response), 2),
        "prompt_ids": ids(n, prompt),
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


def measure(n: int) -> dict[str, float]:
    """Seconds and gigabytes of one size."""
    pool = Pool(rows(0, n), round=0)
    prompts = [Prompt(name_of(i), "") for i in range(n)]
    names = [p.id for p in prompts]

    class At:  # all that the selector reads of a round
        pass

    At.pool = pool  # type: ignore[attr-defined]
    selector, seconds = OPTune(fraction=0.3), {}
    started = time.perf_counter()
    utilities = selector.prompt_utilities(prompts, At)  # type: ignore[arg-type]
    chosen = selection.top_k(utilities, selection.quota(n, fraction=0.3), names=names, seed=0)
    seconds["choose_s"] = time.perf_counter() - started
    assert len(chosen) == -(-n * 3 // 10)
    started = time.perf_counter()
    assert len(pool.pair_rows()) == n
    seconds["list_pairs_s"] = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = pool.save(folder, {"round": 0})
        seconds["write_s"] = time.perf_counter() - started
        size = path.stat().st_size / 2**30
        del pool, utilities, At.pool  # type: ignore[attr-defined]
        started = time.perf_counter()
        again, _ = Pool.load(folder, 0)
        seconds["reload_s"] = time.perf_counter() - started
        assert len(again) == n
    return seconds | {"file_gb": size, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int)
    typed = parser.parse_args()
    if typed.one:
        print(json.dumps(measure(typed.one)))
        return
    result: dict[str, Any] = {}
    for n in SIZES:
        runs = []
        for _ in range(3):
            out = subprocess.run(
                [sys.executable, __file__, "--one", str(n)], check=True, capture_output=True, text=True
            )
            runs.append(json.loads(out.stdout.splitlines()[-1]))
        result[str(n)] = {key: float(f"{sorted(run[key] for run in runs)[1]:.4g}") for key in runs[0]}
        print(n, result[str(n)], flush=True)
    half, whole = result[str(SIZES[1])], result[str(SIZES[2])]
    result["growth"] = {key: float(f"{whole[key] / half[key]:.3g}") for key in whole if half[key] > 0.05}
    save("pool_size", result)


if __name__ == "__main__":
    main()
