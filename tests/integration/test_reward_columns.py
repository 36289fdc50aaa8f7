"""Reward functions that read other columns of the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from choosy.evaluation import evaluate_model

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


def test_a_function_gets_the_columns_of_each_row(play, rows, capsys):
    run = play(rows, "labeler=function", "labeler.path=column_rewards.correct", "data.heldout=null", "rounds=1")
    first = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(("round", "model ")))
    assert "; labeler=function scores the responses; selector=none weighting=uniform loss=sigmoid lr=" in first
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


def test_columns_that_the_function_reads_are_not_said_to_be_unused_offline_and_in_eval(play, rows, tmp_path, caplog):
    pairs = [
        {"prompt": f"How many is {n}?", "chosen": "One.", "rejected": "Two.", "answer": "two", "source": "toy"}
        for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    function = ["labeler=function", "labeler.path=column_rewards.correct", "data.heldout=null", "rounds=1"]
    run = play("data=offline", f"data.train={tmp_path}/pairs.jsonl", *function)
    evaluate_model([str(run.run_dir), f"{tmp_path}/rows.jsonl"])
    assert "not used" not in caplog.text
    caplog.clear()
    function[1] = "labeler.path=column_rewards.plain"
    play("data=offline", f"data.train={tmp_path}/pairs.jsonl", *function, name="plain")
    assert "pairs.jsonl: not used: answer, source (of no known meaning)." in caplog.text


def test_given_pairs_without_the_column_are_refused_with_their_line(play, rows, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "How many?", "chosen": "One.", "rejected": "Two."}')
    function = ["labeler=function", "labeler.path=column_rewards.correct", "data.heldout=null", "rounds=1"]
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 1: .*wants answer"):
        play("data=offline", f"data.train={tmp_path}/pairs.jsonl", *function)
