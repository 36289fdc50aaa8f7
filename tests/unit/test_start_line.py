"""The first line of a run says what it is played with."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch.optim import AdamW

from callbacks.predicted_gap import PredictedGap
from callbacks.progress import Progress
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.vader import Vader
from choosy.methods.losses import SigmoidLoss


class Compares:
    name = "clara"

    def compare(self, items: Any) -> list[str]:
        return ["first"] * len(items)


@pytest.mark.parametrize(
    ("labeler", "evaluation", "selector", "line"),
    [
        (Vader(), "auto", PredictedGap(), f"labeler {Vader().name} scores the responses; selector PredictedGap"),
        (Compares(), Vader(), None, f"labeler clara compares the responses; {Vader().name} judges held-out ones; sel"),
        (Compares(), "none", None, "labeler clara compares the responses; selector none; loss SigmoidLoss, beta 0.2"),
    ],
)
def test_a_run_begins_with_its_labeler_selector_loss_and_lr(tmp_path, labeler, evaluation, selector, line):
    said: list[str] = []
    labels = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"), evaluation=evaluation)
    phases = SimpleNamespace(say=said.append)
    run = SimpleNamespace(labels=labels, prompt_selector=None, pair_selector=selector, phases=phases)
    module = SimpleNamespace(loss=SigmoidLoss(beta=0.2), optimizer=partial(AdamW, lr=5e-5))
    for is_global_zero in (True, False):
        trainer = SimpleNamespace(is_global_zero=is_global_zero, datamodule=SimpleNamespace(run=run))
        Progress().on_fit_start(trainer, module)
    assert len(said) == 1
    assert said[0].startswith(line)
    assert said[0].endswith("; loss SigmoidLoss, beta 0.2, lr 5e-05")
