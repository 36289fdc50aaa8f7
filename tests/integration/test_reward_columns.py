"""Reward functions that read other columns of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REWARDS = """
def correct(completions, answer, **kwargs):
    return [float(sum(map(ord, c)) % 7 + (a == "two")) for c, a in zip(completions, answer)]

def plain(response):
    return float(sum(map(ord, response)) % 7)
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "column_rewards.py").write_text(REWARDS)
    answers = ["one", "two", "two", "one"]
    lines = [json.dumps({"question": f"How many is {n}?", "answer": answer}) for n, answer in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return f"data.train={tmp_path}/rows.jsonl"


def test_a_function_gets_the_columns_of_each_row(play, rows):
    run = play(rows, "labeler=function", "labeler.path=column_rewards.correct", "data.heldout=null", "rounds=1")
    for row in run.pool.to_dict("records"):
        bonus = row["prompt"] in ("How many is 1?", "How many is 2?")
        assert row["rewards"].tolist() == [sum(map(ord, text)) % 7 + bonus for text in row["responses"]]


@pytest.mark.parametrize(("function", "silent"), [("correct", True), ("plain", False)])
def test_a_column_is_said_to_be_unused_only_if_the_function_does_not_take_it(play, rows, caplog, function, silent):
    play(rows, "labeler=function", f"labeler.path=column_rewards.{function}", "data.heldout=null", "rounds=1")
    assert ("not used: answer" not in caplog.text) == silent


def test_heldout_prompts_without_the_column_are_refused_before_anything_is_sampled(play, rows, tmp_path):
    with pytest.raises(ValueError, match=r"prompts.*line 1: .*wants answer, and the row of prompt 'p00' has no such"):
        play(rows, "labeler=function", "labeler.path=column_rewards.correct", "rounds=1")
    assert not (tmp_path / "run" / "rounds").exists()
