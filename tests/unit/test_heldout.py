"""Which prompts a run evaluates on where none are typed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from callbacks.evaluation import WinRate
from choosy.data.asked_score import AskedScore
from choosy.data.encode import Reader, refuse_unjudged
from choosy.data.reading import fingerprint, read_prompts, saying_once
from choosy.data.table_files import write_table
from choosy.labeling.function import Function
from choosy.reporting.report import next_lines
from choosy.reporting.sweeps import judged_by
from choosy.sampling.settings import SamplingSettings
from choosy.sealed import write_json
from choosy.types import Candidates, Prompt, Response
from data_modules.round_data import RoundData


class Data(RoundData):
    def read_train(self, module: Any) -> list[Prompt]:
        return self.prompts

    def play(self, number: int) -> None:
        pass


def data_of(count: int, judge: Any, **options: Any) -> Data:
    labels = SimpleNamespace(check_budget=lambda: None, check_heldout=lambda heldout: None, evaluator=judge)
    run: Any = SimpleNamespace(labels=labels, resuming=False)
    reader = Reader(columns=(), asked_score=options.pop("asked_score", None))
    data = Data(**{"train": "mine.jsonl", "run": run, "reader": reader, "heldout": "auto", **options})
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


def test_rows_that_ask_the_same_are_held_out_together(caplog):
    data = data_of(30, SimpleNamespace(check_prompts=list))
    data.prompts = [Prompt(str(n), f"{n % 10}?") for n in range(30)]
    data.hold_out()
    (held,) = data.heldout_prompts
    assert held.text not in {p.text for p in data.prompts}
    assert len(data.prompts) == 27
    assert "1 of its 10 prompts" in caplog.text


def test_a_held_out_prompt_asks_for_the_highest_score_under_its_own_id(caplog):
    asks = AskedScore("Score: {score}.")
    data = data_of(0, SimpleNamespace(check_prompts=list), asked_score=asks)
    pairs = [Candidates(Prompt(str(n), f"{n}?"), (Response("a", gold=9.0), Response("b", gold=2.0))) for n in range(10)]
    data.prompts = [c.prompt for pair in pairs for c in asks.augmented(pair)]
    data.hold_out()
    (held,) = data.heldout_prompts
    assert held.plain is not None
    assert held == asks.asking_highest(held.plain)
    assert "Score: 10." in held.text
    assert len(data.prompts) == 18, "neither of its two rows is trained on"


@pytest.mark.parametrize("began_judged", [True, False])
def test_a_resumed_run_holds_out_what_it_held_out_when_it_began_whoever_judges_now(began_judged, tmp_path, caplog):
    judge = SimpleNamespace(check_prompts=list)
    first, again = data_of(30, judge if began_judged else None), data_of(30, None if began_judged else judge)
    first.hold_out()
    write_json(tmp_path / "data.json", {"data.heldout": fingerprint(first.heldout_prompts)})
    again.run.resuming, again.run.folder = True, tmp_path
    again.hold_out()
    assert again.heldout_prompts == first.heldout_prompts
    assert again.prompts == first.prompts
    assert ("is held out, as when the run began" in caplog.text) == (not began_judged)


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


def test_answers_to_held_out_prompts_that_are_too_long_are_refused_before_a_label_is_bought():
    def refuse_long_answers(prompts: Any, new_tokens: int, *, option: str) -> None:
        raise ValueError(f"{len([*prompts])} prompts, {new_tokens} tokens: lower {option}")

    data: Any = data_of(2, None)
    data.heldout_prompts, data.run.labels.evaluator = data.prompts, None
    module: Any = SimpleNamespace(
        policy=SimpleNamespace(tokens=SimpleNamespace(refuse_long_answers=refuse_long_answers))
    )
    trainer = SimpleNamespace(datamodule=data, max_epochs=1)
    with pytest.raises(ValueError, match=r"2 prompts, 99 tokens: lower evaluation.sampler.max_new_tokens"):
        WinRate(SamplingSettings(max_new_tokens=99)).on_fit_start(trainer, module)


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
