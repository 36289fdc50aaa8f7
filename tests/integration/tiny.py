"""Tiny runs: what is typed for them, how they are started, and what they left behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from programs import Program
from safetensors.torch import load_file

from choosy.sampling.vllm import is_installed
from choosy.sealed import read_json

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

WEIGHTED = [
    *("labeler=weighted", "+labeler@labeler.parts.toy=function", "labeler.parts.toy.path=toy.vowels"),
    *("+labeler@labeler.parts.cheerful=vader", "+labeler.weights.cheerful=0.5"),
]
MIXTURE = ["data.train=[choosy:prompts/train.jsonl,choosy:prompts/heldout.jsonl]", "data.shares=[0.6,0.4]"]
PLAIN = ["selector=optune", "weighting=wdpo", "data.responses=2", "pairing=best_worst"]  # whatever the defaults are
TOY = '''
def vowels(prompt, response):
    return float(sum(map(ord, response)) % 7)

def nan_for_chess(prompt, response):
    return float("nan") if "chess" in prompt else vowels(prompt, response)

def fails_for_chess(prompt, response):
    if "chess" in prompt:
        raise RuntimeError("the board is broken")
    return vowels(prompt, response)

class Longer:
    """A labeler that only compares; it takes the settings of any other."""

    name = "longer"

    def __init__(self, **given):
        pass

    def compare(self, items):
        return ["first" if len(one.text) > len(other.text) else "second" for _, one, other in items]
'''


def on_top(lines: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Lines with overrides behind them, less the settings of another labeler, and the number of given responses."""
    given, another = "data=offline" in overrides, any(line.startswith("labeler=") for line in overrides)
    left_out = (*["data.responses"] * given, *["labeler"] * another)
    return [*(line for line in lines if not line.startswith(left_out)), *overrides]


def typed(folder: Path, policy: Path, prompts: Path) -> list[str]:
    """What is typed for a tiny run; writes toy.py, with the labelers that the tests need, into the folder."""
    (folder / "toy.py").write_text(TOY)
    return [
        *PLAIN,
        "trainer=cpu",
        f"model.name={policy}",
        "model.dtype=float32",
        f"data.train={prompts}",
        f"data.heldout={prompts}",
        "data.limit=8",
        "data.heldout_limit=4",
        "labeler=function",
        "labeler.path=toy.vowels",
        "rounds=2",
        "sampler.max_new_tokens=6",
        "batching.batch_size=4",
        "callbacks.report.console=false",
    ]


def skip_without_vllm() -> None:
    """Skip the test where vLLM is not installed."""
    if not is_installed():
        pytest.skip("vLLM is not installed here; make test-vllm runs this in an environment that has it")


def write_prompts(path: Path) -> None:
    """Write eight prompts."""
    things = ("tea", "rain", "bread", "snow", "music", "chess", "soup", "maps")
    rows = [{"id": f"p{n}", "prompt": f"Tell me about {thing}."} for n, thing in enumerate(things)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def environ(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a tiny run in a process of its own, with the folder's toy.py to be found."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), **more}


def command(
    *words: object, folder: Path, timeout: float = 300, ranks: int = 1, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in a process of its own, in the folder.

    Args:
        words: The command line after `python`.
        folder: The working directory, with the run's toy.py.
        timeout: Seconds.
        ranks: So many processes, as Lightning's launcher starts them.
        fresh: Start a new interpreter, in seconds, and not a fork of one that has imported its libraries.
    """
    line = [str(word) for word in words]
    if not fresh:
        program = Program(line, folder=folder, environ=environ(folder), ranks=ranks)
        stdout, stderr = program.communicate(timeout)
        return subprocess.CompletedProcess(line, program.wait(), stdout, stderr)
    assert ranks == 1, "Lightning starts the ranks of a new interpreter itself"
    return subprocess.run(
        [sys.executable, *line], cwd=folder, env=environ(folder), capture_output=True, text=True, timeout=timeout
    )


def summary(run_dir: Path) -> dict[str, Any]:
    """summary.json without the seconds, which no two runs share, and its checksum."""
    numbers: dict[str, Any] = read_json(run_dir / "summary.json")
    del numbers["seconds"], numbers["sync_seconds"]
    return numbers


def labels(ledger: Path) -> pd.DataFrame:
    """The labels of a ledger; none where there is no ledger."""
    if not ledger.exists():
        return pd.DataFrame(columns=["key"])
    with closing(sqlite3.connect(ledger)) as db:
        return pd.read_sql_query("SELECT * FROM labels ORDER BY time, key", db)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ending(run_dir: Path) -> dict[str, Any]:
    """All that two runs from one seed must agree on: weights, rounds, ledger, metrics, summary; no clock, no folder."""
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    ledger = labels(run_dir / "ledger.sqlite").sort_values("key", ignore_index=True)
    metrics = pd.read_csv(run_dir / "metrics.csv", dtype=str)
    return {
        "weights": {name: weight.tolist() for name, weight in adapter.items()},
        "rounds": {p.name: pq.read_table(p).to_pylist() for p in sorted(run_dir.glob("rounds/*.parquet"))},
        "ledger": ledger[["key", "score", "purpose"]].to_dict("list"),
        "metrics": metrics[[name for name in metrics if not name.startswith("seconds/")]].fillna("").to_dict("list"),
        "summary": summary(run_dir),
    }
