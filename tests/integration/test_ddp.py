"""Two processes choose, buy and learn what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from tiny import ROOT, command, labels, summary, typed
from torch.testing import assert_close

from choosy.main import compose, train

pytestmark = pytest.mark.slow

SAME = ("origin", "responses", "response_ids", "rewards")
PAIR = ("chosen", "rejected", "source", "round")  # and not the utility, whose last digit may differ
CLOSE = ("logps", "ref_logps")
SHOW_RANK = """
import os, pathlib
pathlib.Path(__file__).with_name("rank" + os.environ.get("LOCAL_RANK", "0")).touch()
"""


def rows(run_dir: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of all rounds by what names them."""
    return {
        (path.name, row["split"], row["prompt_id"], row["sampled_in"]): row
        for path in sorted(run_dir.glob("rounds/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


@pytest.mark.parametrize(
    "selector",
    [
        ["selector=optune"],
        ["selector=certainty", "data.responses=3"],
        # ranks with 2 and 1 pairs of a batch cut it into 2 and 1 parts
        ["selector=optune", "batching.batch_size=3", "batching.tokens_per_step=1"],
    ],
    ids=["optune", "certainty", "uneven parts"],
)
def test_two_processes_equal_one(selector, tmp_path, tiny_policy_dir, prompts_file, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "data.limit=7", "data.heldout_limit=3", *selector]
    one, two = tmp_path / "one", tmp_path / "two"
    train(compose(lines), one)
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(SHOW_RANK)
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run = command(ROOT / "train.py", *lines, *ddp, f"run_dir={two}", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "rank1").exists(), "there was no second process"

    alone, together = rows(one), rows(two)
    assert alone.keys() == together.keys()
    for name, mine in alone.items():
        theirs = together[name]
        assert [mine[column] for column in SAME] == [theirs[column] for column in SAME], name
        for column in CLOSE:
            assert theirs[column] == pytest.approx(mine[column], rel=1e-5, nan_ok=True), name
        bought = [[[pair[word] for word in PAIR] for pair in row["pairs"]] for row in (mine, theirs)]
        assert bought[0] == bought[1], name
    keys = [set(labels(folder / "ledger.sqlite")["key"]) for folder in (one, two)]
    assert keys[0] == keys[1] != set()
    assert summary(one) == summary(two)
    losses = [pd.read_csv(folder / "metrics.csv")["loss_step"].dropna().tolist() for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    trained = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)]
    assert_close(*trained, rtol=0, atol=1e-6)
