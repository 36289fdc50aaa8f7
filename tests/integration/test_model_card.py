"""What a run says of itself: the model card, and the settings in every logger."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import yaml


@pytest.mark.parametrize(("lora", "folder"), [([], "adapter"), (["model.lora=null"], "model")])
def test_the_card_says_what_the_model_is_and_its_code_runs(lora, folder, play, tmp_path, monkeypatch):
    run = play(*lora, "rounds=1", "selector=certainty", "loss=ipo")
    card = (run.run_dir / folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-generation"
    assert "More Information Needed" not in body
    assert str(tmp_path) not in card, "no path of this machine"
    for words in (
        "| loss | ipo, beta 0.1 |",
        "| selector | certainty |",
        "function:toy_rewards.toy",
        "prompts.jsonl",
        "win rate",
    ):
        assert words in body
    assert f"{run.summary['labels']['spent']} labels bought" in body
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.run_dir)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue().startswith("user\nHello!")


def test_the_loggers_get_the_settings(play):
    run = play("rounds=1", "data.heldout=null", "lr=1e-3")
    settings = yaml.safe_load((run.run_dir / "tensorboard" / "hparams.yaml").read_text())
    assert settings["lr"] == 1e-3
    assert settings["labeler.path"] == "toy_rewards.toy"
    assert settings["rounds"] == 1
