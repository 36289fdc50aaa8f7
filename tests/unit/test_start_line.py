"""The first line of a run says what it is played with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from callbacks.progress import Progress, parts_in_a_line
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.vader import Vader
from choosy.main import compose
from choosy.methods.losses import SigmoidLoss


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
        policy = SimpleNamespace(source=SimpleNamespace(name="some/model"))
        Progress().on_fit_start(trainer, SimpleNamespace(loss=SigmoidLoss(beta=0.2), policy=policy))
    assert len(said) == 1
    assert line in said[0]
    assert said[0].endswith(" weighting=uniform loss=sigmoid lr=5e-05, beta 0.2")
    (tmp_path / "config.yaml").unlink()  # as of a script that builds its own Trainer
    assert parts_in_a_line(run, "some/model", 0.2).startswith(f"model some/model; {labeler.name} ")
