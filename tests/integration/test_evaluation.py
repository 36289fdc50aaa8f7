"""`choosy evaluate`: a tuned model is measured on other data, without training."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from choosy.evaluation import evaluate_model
from choosy.files import name_of_paths
from choosy.tuned_model import merge

TUNE = ("rounds=1", "lr=1e-2", "evaluation.sampler.max_new_tokens=8")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tuned(play):
    return play(*TUNE)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Count to {n}."}) + "\n" for n in range(6)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Day {n}?", "chosen": "Good.", "rejected": "Bad!"} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_eval_compares_the_tuned_model_with_the_start_on_other_prompts(tuned, others, capsys):
    before = tuned.summary["labels"]
    capsys.readouterr()
    evaluate_model([str(tuned.run_dir), "--limit", "4", str(others)])
    said = capsys.readouterr().out
    assert said.startswith("4 prompts answered, win rate ")
    assert " against the start, at equal lengths " in said
    rows = written(tuned.run_dir / "eval" / "others.jsonl")
    assert [row["prompt"] for row in rows] == [f"Count to {n}." for n in range(4)]
    assert any(row["tuned"] != row["start"] for row in rows)
    for row in rows:
        now, start = row["rewards"]
        assert row["outcome"] == ("won" if now > start else "lost" if now < start else "tied")
        assert now == sum(map(ord, row["tuned"])) % 7
    found = json.loads((tuned.run_dir / "eval" / "others.json").read_text())
    outcomes = [{"won": 1, "lost": 0, "tied": 0.5}[row["outcome"]] for row in rows]
    assert found["win_rate"] == sum(outcomes) / 4
    assert found["reward"] == sum(row["rewards"][0] for row in rows) / 4
    assert found["win_rate_lc_low"] < found["win_rate_lc"] < found["win_rate_lc_high"]
    assert found["kl"] != 0
    assert (found["prompts"], found["judge"], found["against"]) == (4, "function:toy_rewards.toy", "start")
    assert tuned.summary["labels"] == before, "the run's own labels are not counted again"


def test_another_labeler_judges_by_the_words_of_training(tuned, others, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text("def short(prompt, response):\n    return -len(response)\n")
    words = ["labeler=function", f"labeler.path={tmp_path}/rewards.py:short", "sampler.max_new_tokens=3"]
    evaluate_model([str(tuned.run_dir), f"data={others}", *words])
    for row in written(tuned.run_dir / "eval" / "others.jsonl"):
        assert row["rewards"] == [-len(row["tuned"]), -len(row["start"])]
        assert len(row["tuned"]) <= 3, "the sampler takes what is typed"
    comparing = ["labeler=function", "labeler._target_=toy_rewards.Longer", "labeler.path=null"]
    evaluate_model([str(tuned.run_dir), f"data={others}", *comparing])
    rows = written(tuned.run_dir / "eval" / "others.jsonl")
    assert {row["rewards"] == [None, None] for row in rows} == {True}
    unequal = [row for row in rows if len(row["tuned"]) != len(row["start"])]
    assert unequal
    assert all((row["outcome"] == "won") == (len(row["tuned"]) > len(row["start"])) for row in unequal)


@pytest.mark.parametrize(
    "words",
    [
        ["labeler=weighted", "+labeler@labeler.parts.cheer=vader"],
        ["labeler=noisy", "labeler@labeler.wrapped=function", "labeler.wrapped.path=toy_rewards.toy"],
        ["labeler@labels.evaluation=noisy", "labeler@labels.evaluation.wrapped=vader"],
    ],
)
def test_a_labeler_that_holds_others_judges_by_the_words_of_training(words, tuned, others):
    evaluate_model([str(tuned.run_dir), "--limit", "2", str(others), *words])
    rows = written(tuned.run_dir / "eval" / "others.jsonl")
    assert all(math.isfinite(reward) for row in rows for reward in row["rewards"])


def test_nothing_of_training_may_be_typed(tuned, others):
    with pytest.raises(ValueError, match=r"rounds=3: nothing is trained here; what may be typed begins with labeler, "):
        evaluate_model([str(tuned.run_dir), f"data={others}", "rounds=3"])
    with pytest.raises(ValueError, match=r"There is no labeler=judgee"):
        evaluate_model([str(tuned.run_dir), f"data={others}", "labeler=judgee"])
    with pytest.raises(ValueError, match=r"No file .*other\.jsonl .*did you mean .*others\.jsonl\?"):
        evaluate_model([str(tuned.run_dir), f"data={others.parent}/other.jsonl"])


def test_an_adapter_alone_and_a_merged_model_are_evaluated_too(tuned, others, capsys):
    labeler = ["labeler=function", "labeler.path=toy_rewards.toy", "model.dtype=float32", "sampler.max_new_tokens=8"]
    labeler += ["sampler.top_p=1", "model.compute.packed=false"]
    evaluate_model([str(tuned.run_dir), f"data={others}", *labeler[2:]])
    evaluate_model([str(tuned.run_dir / "adapter"), f"data={others}", *labeler])
    of_run, of_adapter = (written(Path(at, "others.jsonl")) for at in (tuned.run_dir / "eval", "eval/run-adapter"))
    assert of_run == of_adapter, "the base of an adapter is its start"
    merge([str(tuned.run_dir), "merged"])
    capsys.readouterr()
    evaluate_model(["merged", f"data={others}", *labeler])
    said = capsys.readouterr().out
    assert said.startswith("6 prompts answered, mean reward ")
    assert "win rate" not in said
    of_merged = written(Path("eval/merged/others.jsonl"))
    assert [row["tuned"] for row in of_merged] == [row["tuned"] for row in of_run]
    evaluate_model(["merged", f"data={others}", *labeler, "--against", str(tuned.run_dir / "adapter")])
    rows = written(Path("eval/merged/others-against-run-adapter.jsonl"))
    assert all(row["tuned"] == row["other"] and row["outcome"] == "tied" for row in rows), "one seed for both"
    evaluate_model(["merged", f"data={others}"])
    assert "not judged, as no labeler of sampled answers is known" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"labeler longer compares, and merged does not say .* type --against MODEL"):
        evaluate_model(
            ["merged", f"data={others}", *labeler[:1], "labeler._target_=toy_rewards.Longer", "labeler.path=null"]
        )
    with pytest.raises(ValueError, match=r"What merged is evaluated on is to be typed: data=FILE of prompts"):
        evaluate_model(["merged"])


def test_two_runs_answer_the_same_prompts(play, others, capsys):
    one, other = play(*TUNE, name="one"), play("rounds=1", "lr=1e-3", name="other")
    capsys.readouterr()
    evaluate_model([str(one.run_dir), str(others), "--against", str(other.run_dir)])
    assert f" against {other.run_dir}, at equal lengths " in capsys.readouterr().out
    rows = written(one.run_dir / "eval" / "others-against-other.jsonl")
    assert any(row["tuned"] != row["other"] for row in rows)
    assert {row["outcome"] for row in rows} <= {"won", "lost", "tied"}


def test_models_and_files_of_the_same_name_keep_their_own_results(tuned, others):
    for folder in ("a", "b"):
        shutil.copytree(tuned.run_dir / "adapter", Path("runs", folder, "adapter"))
        Path(folder).mkdir()
        shutil.copy(others, Path(folder, "test.jsonl"))
    words = ["labeler=function", "labeler.path=toy_rewards.toy", "sampler.max_new_tokens=3", "--limit", "1"]
    for folder in ("a", "b"):
        evaluate_model([f"runs/{folder}/adapter", "data=a/test.jsonl", *words])
        evaluate_model([str(tuned.run_dir), f"data={folder}/test.jsonl", *words])
        evaluate_model([str(tuned.run_dir), "data=others.jsonl", *words, "--against", f"runs/{folder}/adapter"])
    assert {path.name for path in Path("eval").iterdir()} == {"runs-a-adapter", "runs-b-adapter"}
    for folder in ("a", "b"):
        found = json.loads(Path("eval", f"runs-{folder}-adapter", "a-test.json").read_text())
        assert found["model"] == f"runs/{folder}/adapter"
        with sqlite3.connect(Path("eval", f"runs-{folder}-adapter", "ledger.sqlite")) as ledger:
            assert {*ledger.execute("SELECT DISTINCT run FROM labels")} == {(f"runs-{folder}-adapter#eval",)}
    against = {f"others-against-runs-{folder}-adapter" for folder in ("a", "b")}
    assert {path.stem for path in (tuned.run_dir / "eval").glob("*.json")} == {"a-test", "b-test", *against}


def test_given_pairs_are_measured_as_in_training(play, pairs, capsys):
    run = play(
        "data=offline",
        "labeler=dataset",
        f"data.train={pairs}",
        f"data.heldout_pairs={pairs}",
        *TUNE[:2],
        "data.heldout=null",
        "data.heldout_limit=null",
    )
    last = run.summary["heldout_pairs"]
    capsys.readouterr()
    evaluate_model([str(run.run_dir)])
    found = json.loads((run.run_dir / "eval" / "pairs.json").read_text())
    assert capsys.readouterr().out.startswith("4 pairs: loss ")
    for name in ("loss", "accuracy", "margin"):
        assert found["pairs"][name] == pytest.approx(last[name]["final"], rel=1e-4)
    assert found["pairs"]["accuracy"] == 1
    evaluate_model([str(run.run_dir), f"data.heldout_pairs={pairs}", "loss=simpo"])
    assert json.loads((run.run_dir / "eval" / "pairs.json").read_text())["pairs"]["loss"] != found["pairs"]["loss"]
    evaluate_model([str(run.run_dir), f"data.heldout_pairs={pairs}", "--against", str(run.run_dir / "adapter")])
    beside = json.loads((run.run_dir / "eval" / "pairs-against-run-adapter.json").read_text())
    assert beside["pairs"] == pytest.approx(beside["pairs_of_other"])
    capsys.readouterr()
    evaluate_model([str(run.run_dir), str(pairs)])
    assert capsys.readouterr().out.startswith("4 prompts answered, not judged, as no labeler of sampled")


def test_pairs_of_a_model_without_a_start_need_a_loss_without_a_reference(tiny_policy_dir, pairs):
    words = [str(tiny_policy_dir), f"data.heldout_pairs={pairs}", "model.dtype=float32"]
    with pytest.raises(ValueError, match=r"needs the model that .* was tuned from, .* loss=simpo"):
        evaluate_model(words)
    evaluate_model([*words, "loss=simpo"])
    found = json.loads(Path("eval", name_of_paths(str(tiny_policy_dir)), "pairs.json").read_text())["pairs"]
    assert found["pairs"] == 4
    assert all(math.isfinite(found[name]) for name in ("loss", "accuracy", "margin"))


TASK = """task: quiz
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


def test_tasks_of_the_harness_show_what_else_has_changed(tuned, tmp_path, capsys, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'choosy-tuning[eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Is {n} even?", "answer": n % 2} for n in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "quiz.yaml").write_text(TASK.format(questions=tmp_path / "questions.jsonl"))
    capsys.readouterr()
    evaluate_model([str(tuned.run_dir), "--tasks", "quiz", "--task-folder", str(tmp_path / "tasks")])
    assert "quiz, acc: start " in capsys.readouterr().out
    found = json.loads((tuned.run_dir / "eval" / "quiz.json").read_text())["capabilities"]
    assert [*found] == ["start", "tuned"]
    assert all(results["quiz"].keys() == {"acc", "acc_stderr"} for results in found.values())
    assert all(results["quiz"]["acc"] in [n / 8 for n in range(9)] for results in found.values())
    with pytest.raises(ValueError, match=r"There is no task quizz in "):
        evaluate_model([str(tuned.run_dir), "--tasks", "quizz", "--task-folder", str(tmp_path / "tasks")])


def test_tasks_without_the_harness_are_refused_in_a_sentence(tuned, monkeypatch):
    monkeypatch.setattr("choosy.capabilities.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--tasks needs lm-evaluation-harness; type pip install 'choosy-tuning\[eval\]'"
    ):
        evaluate_model([str(tuned.run_dir), "--tasks", "arc_easy"])
