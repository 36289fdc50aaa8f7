"""Which prompts a run evaluates on where none are typed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from choosy.data.encode import refuse_unjudged
from choosy.data.reading import read_prompts, saying_once
from choosy.data.table_files import write_table
from choosy.labeling.function import Function
from choosy.reporting.report import next_lines
from choosy.reporting.sweeps import judged_by
from choosy.types import Prompt
from data_modules.round_data import RoundData


class Data(RoundData):
    def read_train(self, module: Any) -> list[Prompt]:
        return self.prompts

    def play(self, number: int) -> None:
        pass


def data_of(count: int, judge: Any, **options: Any) -> Data:
    labels = SimpleNamespace(check_budget=lambda: None, check_heldout=lambda heldout: None, evaluator=judge)
    run: Any = SimpleNamespace(labels=labels)
    data = Data(**{"train": "mine.jsonl", "run": run, "reader": None, "heldout": "auto", **options})
    data.prompts = [Prompt(str(n), f"{n}?", columns={"answer": n}) for n in range(count)]
    data.trainer: Any = SimpleNamespace(is_global_zero=True)
    return data


def test_a_tenth_of_the_users_own_prompts_is_held_out_and_a_line_says_so(caplog):
    asked: list[Prompt] = []
    data = data_of(30, SimpleNamespace(check_prompts=asked.extend))
    every = {*data.prompts}
    data.hold_out()
    assert len(data.heldout_prompts) == 3
    assert {*data.prompts} | {*data.heldout_prompts} == every
    assert len(data.prompts) == 27
    assert asked == data.heldout_prompts  # which have the columns of the user's file
    assert "mine.jsonl: held out to evaluate on, and not trained on: 3 of its 30 prompts. Type data.h" in caplog.text


@pytest.mark.parametrize(
    ("count", "judged", "why"), [(9, True, "they are too few"), (30, False, "nobody judges their answers")]
)
def test_what_is_not_evaluated_is_trained_on(count, judged, why, caplog):
    data = data_of(count, SimpleNamespace(check_prompts=list) if judged else None)
    data.hold_out()
    assert (len(data.prompts), data.heldout_prompts) == (count, [])
    assert f"mine.jsonl: none of its {count} prompts is held out, as {why}: nothing is evaluated." in caplog.text


def test_held_out_prompts_that_are_trained_on_are_counted(caplog):
    data = data_of(3, None)
    data.heldout_prompts = [Prompt("own name", "0?"), Prompt("9", "9?")]
    data.warn_of_trained_on()
    assert "Of the 2 prompts in data.heldout, 1 are in data.train too" in caplog.text
    caplog.clear()
    data.heldout_prompts = [Prompt("9", "9?")]
    data.warn_of_trained_on()
    assert not caplog.text


def test_the_packaged_prompts_evaluate_only_a_run_that_trains_on_packaged_ones():
    assert data_of(0, None, train="choosy:prompts/train.jsonl").heldout == "choosy:prompts/heldout.jsonl"
    assert data_of(0, None).heldout == "auto"


def test_a_column_that_packaged_prompts_lack_is_asked_of_a_file_of_the_users():
    def correct(completions, answer):
        return [0.0 for _ in completions]

    place = "choosy:prompts/train.jsonl, line 1"
    with pytest.raises(ValueError, match=r"wants answer, .*; it comes with Choosy: type a file of your own"):
        refuse_unjudged({place: Prompt("p", "Why?")}, Function(correct))


def test_runs_on_other_numbers_of_packaged_prompts_are_judged_by_the_same_ones(tmp_path):
    data = {"train": "choosy:prompts/train.jsonl", "heldout": "auto", "limit": 64}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    assert judged_by(tmp_path) == "data.heldout=auto"


def test_a_run_with_a_part_held_out_names_the_file_that_it_is_a_part_of(tmp_path):
    data = {"train": "mine.jsonl", "heldout": "auto"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data, "evaluation": {}}))
    assert judged_by(tmp_path) == "data.heldout=auto data.train=mine.jsonl"
    run: Any = SimpleNamespace(folder=tmp_path, finished=True, contents={"adapter": ""}, rounds=[1])
    _, line, *_ = next_lines(run)
    assert line == f"choosy eval {tmp_path} mine.jsonl  # type a file of other prompts: this one is trained on"


def test_a_prompt_that_is_held_out_and_too_long_to_be_answered_is_refused_like_any_other():
    def refuse_long_answers(prompts: Any, new_tokens: int) -> None:
        if [*prompts]:
            raise ValueError("A prompt and its response may take 9 tokens")

    data = data_of(0, SimpleNamespace(check_prompts=list))
    data.run.reference, data.run.sampler = "initial", SimpleNamespace(max_new_tokens=8, ahead=0)
    policy = SimpleNamespace(lora=None, tokens=SimpleNamespace(refuse_long_answers=refuse_long_answers))
    data.trainer.lightning_module = SimpleNamespace(policy=policy)
    data.read_train = lambda module: [Prompt(str(n), f"{n}?") for n in range(10)]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="may take 9 tokens"):
        data.setup("fit")


def test_what_is_left_of_a_file_that_is_read_twice_is_said_once(tmp_path, caplog):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Why?", "source": "web"}')
    with saying_once():
        assert read_prompts(str(file)) == read_prompts(str(file))
    assert caplog.text.count("not used: source") == 1
    read_prompts(str(file))  # of another run
    assert caplog.text.count("not used: source") == 2


def test_a_judge_whose_code_or_settings_differ_is_another_one(tmp_path):
    said = set()
    for name, judge in (("a", "good 1"), ("b", "good 2"), ("c", "good 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"data": {"heldout": "test.jsonl"}}))
        write_table(pa.table({"x": [1]}), tmp_path / name / "rounds" / "round_000.parquet", about={"judge": judge})
        said.add(judged_by(tmp_path / name))
    assert said == {"data.heldout=test.jsonl judge=good 1", "data.heldout=test.jsonl judge=good 2"}
