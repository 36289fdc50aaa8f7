"""Rounds with nothing to train on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

REWARDS = """
calls = 0

def equal(prompt, response):
    return 1.0

def equal_at_first(prompt, response):
    global calls
    calls += 1
    return float(sum(map(ord, response)) % 7) if calls > 48 else 1.0  # twelve prompts, two responses, two rounds
"""


@pytest.fixture
def rewards(tmp_path: Path) -> None:
    (tmp_path / "late_rewards.py").write_text(REWARDS)


def test_rounds_without_a_pair_train_nothing_and_the_run_continues(play, rewards, capfd):
    run = play("labeler=function", "labeler.path=late_rewards.equal_at_first", "rounds=3", "data.heldout=null")
    said = capfd.readouterr().err
    assert "Round 2 of 3 made no pair out of 12 prompts" in said
    assert "It trains nothing, and the run continues." in said
    assert run.summary["rounds"] == 3
    assert run.summary["pairs_trained"] > 0
    assert [len(pairs) > 0 for pairs in run.witness.pairs] == [False, False, True]


def test_a_run_stops_after_three_empty_rounds_and_a_resumed_one_gets_past_them(play, rewards, tmp_path):
    late = ["labeler=function", "labeler.name=late", "rounds=5"]
    with pytest.raises(ValueError, match=r"Round 3 of 5 made no pair.*3 such rounds in a row.*ckpt_path=last"):
        play(*late, "labeler.path=late_rewards.equal")
    assert not (tmp_path / "run" / "rounds" / "round_003.parquet").exists()
    run = play(*late, "labeler.path=toy_rewards.toy", "ckpt_path=last")
    assert run.summary["rounds"] == 5
    assert run.summary["pairs_trained"] > 0
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    assert sorted(set(metrics["epoch"])) == [0, 1, 2, 3, 4], "rounds without a step keep their rows"


def test_a_run_that_its_budget_left_without_a_pair_blames_the_budget(play, rewards):
    late = ["labeler=function", "labeler.path=late_rewards.equal", "rounds=1", "data.heldout=null"]
    with pytest.raises(ValueError, match=r"has trained nothing. labels.budget=2 pays no further label: type a larger"):
        play(*late, "labels.budget=2")
