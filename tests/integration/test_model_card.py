"""What a run says of itself: the model card, and the settings in every logger."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import yaml

from choosy.reporting.model_card import repeated
from choosy.sealed import write_yaml

FORMS = {"adapter": "export=adapter", "merged": "export=merged", "model": "model.lora=null"}


@pytest.mark.parametrize("folder", FORMS)
def test_the_card_says_what_the_model_is_and_its_code_runs(folder, play, tmp_path, monkeypatch):
    run = play(FORMS[folder], "rounds=1", "selector=certainty", "loss=ipo")
    card = (run.run_dir / folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["pipeline_tag"] == "text-generation"
    assert head["library_name"] == ("peft" if folder == "adapter" else "transformers")
    (found,) = head["model-index"]
    measured = {one["metrics"][0]["type"]: one["metrics"][0]["value"] for one in found["results"]}
    assert measured["win_rate"] == pytest.approx(run.summary["win_rate"], abs=1e-4)
    assert "More Information Needed" not in body
    assert str(tmp_path.parent) not in card, "no path of this machine"
    for words in (
        "| loss | ipo, beta 0.1 |",
        "| selector | certainty |",
        "function:toy_rewards.toy",
        "| data | prompts.jsonl |",
        "| win rate against the start |  | ",
        "| win rate at equal lengths |",
        " to ",
        "![what was measured against labels, tokens and seconds](curves.png)",
    ):
        assert words in body
    assert (run.run_dir / folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{run.summary['labels']['spent']} labels bought" in body
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.run_dir)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue().startswith("user\nHello!")


def test_the_card_says_what_to_type_to_repeat_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "rewards.py", "menu/loss/mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    typed = [
        f"hydra.searchpath=['file://{tmp_path}/menu']",
        f"data.train=[{tmp_path}/prompts.jsonl,owner/questions:train]",
        "data.heldout=choosy:prompts/heldout.jsonl",
        "labeler=function",
        "labeler.path=rewards.length",
        "model.name=Qwen/Qwen2.5-0.5B",
        "logger.wandb.project=mine",
        f"labels.ledger=sqlite:///{tmp_path}/x.db",
        f"data.test=file://{tmp_path}/a.jsonl",
        "name=mine",
    ]
    write_yaml(tmp_path / ".hydra" / "overrides.yaml", yaml.safe_dump(typed))
    said = repeated(tmp_path)
    assert (
        "choosy train --config-dir menu 'data.train=[prompts.jsonl,owner/questions:train]' "
        "data.heldout=choosy:prompts/heldout.jsonl labeler=function labeler.path=rewards.length "
        "model.name=Qwen/Qwen2.5-0.5B labels.ledger=x.db data.test=a.jsonl\n"
    ) in said
    assert "not published here: `menu`, `prompts.jsonl`, `rewards.py`, `x.db`, `a.jsonl`." in said
    assert str(tmp_path) not in said


def test_the_card_names_no_folder_of_a_labeler(play, tmp_path):
    (file := tmp_path / "mine.py").write_text("def good(prompt, response):\n    return -len(response)\n")
    run = play(f"labeler.path={file}:good", "rounds=1", "data.heldout=null")
    card = (run.run_dir / "adapter" / "README.md").read_text()
    assert "function:mine.py:good" in card
    assert str(tmp_path) not in card


def test_a_whole_model_that_cannot_be_written_loses_no_report(play, monkeypatch, caplog):
    monkeypatch.setattr("choosy.models.gguf_file._add_tokenizer", lambda *_: [].pop())
    run = play("export=gguf", "rounds=1", "data.heldout=null")
    assert {"summary.json", "report.html", "adapter"} <= {file.name for file in run.run_dir.iterdir()}
    assert f"type choosy merge {run.run_dir} DIR --gguf" in caplog.text
    assert not (run.run_dir / "gguf").exists()


def test_the_loggers_get_the_settings(play):
    run = play("rounds=1", "data.heldout=null", "lr=1e-3")
    settings = yaml.safe_load((run.run_dir / "tensorboard" / "hparams.yaml").read_text())
    assert settings["lr"] == 1e-3
    assert settings["labeler.path"] == "toy_rewards.toy"
    assert settings["rounds"] == 1
