"""Checks before the first round that a run gives its loss and its weighting what they need."""

from __future__ import annotations

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.menu import labelers_able_to
from choosy.methods.loss_inputs import Loss, form_of
from choosy.methods.weighting import Weighting


def check_needs(loss: Loss, weighting: Weighting, labels: LabelBuyer) -> None:
    """Refuse a loss or a weighting that would miss something.

    Raises:
        ValueError: What is missing, and what to type.
    """
    form_of(loss.needs)
    name = labels.labeler.name
    if weighting.needs == "gap" and not labels.scores:
        raise ValueError(
            f"{type(weighting).__name__} weighs a pair by its rewards, and labeler {name} gives none: it only "
            f"compares. Choose weighting=uniform, or a labeler that scores: {labelers_able_to('score')}."
        )
    if "reward" in loss.needs and not labels.scores:
        raise ValueError(
            f"{type(loss).__name__} needs the rewards of an item's responses, and labeler {name} gives none: it only "
            f"compares. Choose loss=sigmoid, or a labeler that scores: {labelers_able_to('score')}."
        )
