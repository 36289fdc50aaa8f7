"""Callbacks do their work in any order, and a round's table is written without any of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from tiny import ending, typed

from choosy.main import compose, train


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file, monkeypatch) -> list[str]:
    monkeypatch.syspath_prepend(tmp_path)
    small = ["data.limit=4", "data.heldout_limit=2", "~logger.tensorboard", "callbacks.checkpoint.every_n_steps=1"]
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), *small, "selector=optune_certainty", "data.responses=3"]


def about(run_dir: Path, number: int) -> dict[str, Any]:
    """What is written about a round with its table."""
    return json.loads(pq.read_schema(run_dir / "rounds" / f"round_{number:03d}.parquet").metadata[b"choosy"])


@pytest.mark.slow
def test_the_order_of_the_callbacks_does_not_matter(lines, tmp_path):
    train(compose(lines), tmp_path / "one")
    cfg = compose(lines)
    names = list(cfg.callbacks)
    cfg.callbacks = OmegaConf.create({name: cfg.callbacks[name] for name in reversed(names)})
    assert list(cfg.callbacks) == names[::-1]
    train(cfg, tmp_path / "other")
    assert ending(tmp_path / "one") == ending(tmp_path / "other")
    assert about(tmp_path / "other", 1)["evaluation"]["win_rate"] is not None
    page = (tmp_path / "other" / "report.html").read_text()
    assert '<a href="adapter">' in page, "the report is written after the adapter"
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "other").iterdir()
    }


def test_a_round_is_written_and_counted_without_callbacks(lines, tmp_path):
    optional = ["progress", "win_rate", "checkpoint", "preemption", "export", "report"]
    without = [line for line in lines if not line.startswith("callbacks.")]
    trainer = train(compose([*without, *(f"~callbacks.{name}" for name in optional)]), tmp_path / "run")
    facts = [about(tmp_path / "run", number) for number in (0, 1)]
    pairs = [written["pairs_trained"] for written in facts]
    assert 0 < pairs[0] < pairs[1] == trainer.datamodule.run.counts["pairs_trained"]
    assert facts[1]["evaluation"] is None
    assert "seconds/sync" in (tmp_path / "run" / "metrics.csv").read_text()


def test_each_round_says_of_which_labels_its_pairs_are_made(lines, tmp_path, capsys):
    few = ["selector=none", "pairing=all", "epochs_per_round=2", "callbacks.win_rate=null"]
    trainer = train(compose([*lines, *few]), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "to train on" in line]
    counts = re.findall(
        r"(\d+) pairs to train on, 2 times each: (\d+) from 12 labels bought \(a score serves", "".join(said)
    )
    (first, new), (later, newer) = [[*map(int, each)] for each in counts]
    assert first == new
    assert said[1].endswith(f", {later - newer} from earlier rounds") == (later > newer)
    assert 2 * (first + later) == trainer.datamodule.run.counts["pairs_trained"]
