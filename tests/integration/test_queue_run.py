"""Test runs that wait for imported labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import ROOT, command, labels, summary, typed

from choosy.labeling.exchange.command import labels_command

pytestmark = pytest.mark.slow


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path) -> list[str]:
    given = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if not line.startswith("labeler")]
    return [*given, "labeler=queue", "weighting=uniform", "selector=none", "data.limit=6", "name=asked"]


def test_a_run_that_wants_labels_stops_and_goes_on_with_them(lines, tmp_path):
    run, number = tmp_path / "runs" / "asked", 0
    done = command(ROOT / "train.py", *lines, folder=tmp_path)
    sampled = []
    while done.returncode == 75:
        assert "6 pairs want a label" in done.stderr
        assert "choosy labels import runs/asked/ledger.sqlite runs/asked/wanted.jsonl" in done.stderr
        assert done.stderr.rstrip().endswith("run_dir=runs/asked ckpt_path=last")
        assert "Traceback" not in done.stderr
        rows = [json.loads(line) for line in (run / "wanted.jsonl").read_text().splitlines()]
        sampled.append({row["key"] for row in rows})
        number += 1
        if number == 2:  # nothing was imported: the same is wanted, for the same responses were sampled
            assert sampled[1] == sampled[0]
        if number >= 2:
            filled = tmp_path / "filled.jsonl"
            filled.write_text("".join(json.dumps(row | {"verdict": "first"}) + "\n" for row in rows))
            labels_command(["import", str(run / "ledger.sqlite"), str(filled)])
        done = command(ROOT / "train.py", *lines, "ckpt_path=last", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert number == 3, "once unanswered, then once for each of two rounds"
    assert len(labels(run / "ledger.sqlite")) == 12
    assert summary(run)["rounds"] == 2
    assert summary(run)["win_rate"] is None
