"""The first line of a run says what it is played with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from callbacks.progress import Progress, parts_in_a_line
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.vader import Vader
from choosy.main import compose
from choosy.methods.losses import SigmoidLoss
from choosy.options.typed import own_menu
from choosy.reporting import sweeps
from choosy.reporting.report import shown_settings


class Compares:
    name = "clara"

    def compare(self, items: Any) -> list[str]:
        return ["first"] * len(items)


@pytest.mark.parametrize(
    ("labeler", "evaluation", "words", "line"),
    [
        (Vader(), "auto", [], "labeler=vader scores the responses; selector=few_prompts weighting="),
        (Compares(), Vader(), ["selector=predicted_gap"], f"the responses; {Vader().name} judges held-out ones; sel"),
        (Compares(), "none", ["selector=[optune,certainty]"], "compares the responses; selector=optune_certainty w"),
    ],
)
def test_a_run_begins_with_its_labeler_selector_loss_and_lr_as_they_are_typed(
    tmp_path, labeler, evaluation, words, line
):
    said: list[str] = []
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(compose([*words, "lr=5e-5"]), resolve=True))
    labels = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), evaluation=evaluation)
    run = SimpleNamespace(labels=labels, folder=tmp_path, phases=SimpleNamespace(say=said.append))
    for is_global_zero in (True, False):
        trainer = SimpleNamespace(is_global_zero=is_global_zero, datamodule=SimpleNamespace(run=run))
        policy = SimpleNamespace(source=SimpleNamespace(name="some/model"), lora=None)
        Progress().on_fit_start(trainer, SimpleNamespace(loss=SigmoidLoss(beta=0.2), policy=policy))
    assert len(said) == 1
    assert line in said[0]
    assert said[0].endswith(" weighting=uniform loss=sigmoid lr=5e-05, beta 0.2")
    (tmp_path / "config.yaml").unlink()  # as of a script that builds its own Trainer
    assert parts_in_a_line(run, "some/model", 0.2).startswith(f"model some/model; {labeler.name} ")


OWN = """from callbacks.certainty import Certainty
from callbacks.selector import PairChooser
from lightning.pytorch import Callback

class Longest(PairChooser):
    def pair_utilities(self, candidates, at):
        return []

class Surest(Certainty):
    pass

class Counts(Callback):
    pass
"""
MENU = {
    "selector/longest.yaml": "# @package callbacks\nlongest_pairs:\n  _target_: my_selectors.Longest\n",
    "loss/squared.yaml": "_target_: my_losses.Squared\nbeta: 0.2\n",
}
GIVEN = {"_target_": "choosy.api.given", "name": "selector", "shown": "Mine"}


@pytest.mark.parametrize(
    ("words", "typed", "selector"),
    [
        (["selector=longest"], ["selector=longest", "loss=squared"], "longest"),
        (["selector=longest"], None, "longest_pairs"),  # as the menu's file calls it: what was typed is not known
        (["selector=none", "+callbacks.sure._target_=my_selectors.Surest"], [], "sure"),
        (["selector=none", "+callbacks.counts._target_=my_selectors.Counts"], [], "none"),
        (["selector=certainty", "+callbacks.counts._target_=my_selectors.Counts"], [], "certainty"),
        (["selector=none", f"+callbacks.Mine={GIVEN}".replace("'", "")], [], "Mine"),
    ],
)
def test_parts_of_ones_own_go_by_what_is_typed_for_them(tmp_path, monkeypatch, words, typed, selector):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_selectors.py").write_text(OWN)
    for name, text in MENU.items():
        (tmp_path / "menu" / name).parent.mkdir(parents=True)
        (tmp_path / "menu" / name).write_text(text)
    config = compose([own_menu("menu"), "loss=squared", *words])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    if typed is not None:
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(typed))
    shown = shown_settings(tmp_path)
    assert shown["selector"] == selector
    assert shown["loss"] == ("squared" if typed and len(typed) > 1 else "my_losses.Squared")
    assert shown["weighting"] == "uniform"


def test_the_configuration_of_a_run_is_parsed_once_for_all_that_is_shown_of_it(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("lr: 0.1\nmodel: {name: m}\n")
    parsed: list[Path] = []
    read = sweeps.config_of
    monkeypatch.setattr(sweeps, "config_of", lambda folder: parsed.append(folder) or read(folder))
    assert shown_settings(tmp_path) == {"model": "m", "lr": "0.1"}
    assert parsed == [tmp_path]
