"""Selectors and losses of the user's that give other than one value for each thing are refused in a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_labelers import given

from callbacks.selector import PairChooser
from choosy.data.pool import Pool
from choosy.methods.loss_inputs import LossInputs, item_losses, refuse_no_loss
from choosy.parallel.ranks import OneRank
from choosy.reporting.display import Phases
from choosy.rounds.choose import can_be_labeled, choose_pairs, choose_prompts
from choosy.rounds.run import Run

CANDIDATES = [given("p", "a", "b", "c"), given("q", "a", "b")]


class Mine:
    fraction, count, direction, warmup_rounds, per_prompt, score_all = None, 1, "largest", 0, 1, False

    def __init__(self, utilities: Any) -> None:
        self.utilities = utilities

    def prompt_utilities(self, prompts: Any, at: Any) -> Any:
        return self.utilities

    def pair_utilities(self, candidates: Any, at: Any) -> Any:
        return self.utilities


def chosen(utilities: Any, *, pairs: bool, candidates: Any = CANDIDATES) -> Any:
    at: Any = SimpleNamespace(phases=Phases(), number=0, seed=0, given={}, ahead=None, ranks=OneRank(), pool=Pool())
    if pairs:
        return choose_pairs(at, candidates, Mine(utilities))  # type: ignore[arg-type]
    return [one.prompt.id for one in choose_prompts(at, [c.prompt for c in CANDIDATES], Mine(utilities))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "utilities", [[1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0]), [np.float32(1), 2]]
)
def test_numbers_of_every_library_are_utilities(utilities: Any) -> None:
    assert chosen(utilities, pairs=False) == ["q"]
    of_pairs = chosen([[0.0, 3.0, 1.0], [torch.tensor(9.0)]], pairs=True)
    assert of_pairs.ranked[0][:3] == (1, 0, 1)


@pytest.mark.parametrize(
    ("utilities", "pairs", "words"),
    [
        ([1.0], False, "Mine gave 1 utilities for 2 prompts; it must give one for each, in their order."),
        (None, False, "Mine gave None as utilities of 2 prompts; it must give a list."),
        (["high", "low"], False, "Mine gave 'high' as a utility; it must be a number."),
        ([[1.0, 2.0, 3.0]], True, "Mine gave 1 utilities for 2 prompts; it must give one for each"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0]], True, "Mine gave 2 utilities for 1 pairs of a prompt; it must give one for"),
        ([1.0, 2.0], True, "Mine gave 1.0 as utilities of 3 pairs of a prompt; it must give a list."),
    ],
)
def test_utilities_of_another_shape_are_refused(utilities: Any, pairs: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        chosen(utilities, pairs=pairs)


def test_a_selector_of_pairs_alone_leaves_single_responses_where_no_pair_is_left() -> None:
    """Rows with one and with two responses are trained on together, and a round may have those with one alone."""
    single = given("p", "a")
    assert chosen([[]], pairs=True, candidates=[single]).ranked == []
    assert not can_be_labeled(single, Mine([[]]), scores=True)  # type: ignore[arg-type]


def test_a_selector_without_its_method_is_refused_before_anything_is_sampled() -> None:
    run: Any = SimpleNamespace(prompt_selector=None, pair_selector=None)
    with pytest.raises(ValueError, match="PairChooser is a selector without pair_utilities, by which it chooses"):
        Run.use(run, pairs=PairChooser())


def test_a_loss_that_is_reduced_or_lacks_a_method_is_refused() -> None:
    s = LossInputs(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.zeros(4), sizes=[2, 2])
    for mistake, shape in ((lambda s: s.delta_B.mean(), r"\(\)"), (lambda s: s.delta_B[:, None], r"\(2, 1\)")):
        loss: Any = type("Mean", (), {"items": staticmethod(mistake)})()
        with pytest.raises(ValueError, match=rf"Mean.items returned a tensor of shape {shape} for 2 items; it must"):
            item_losses(loss, s, 2)
    with pytest.raises(ValueError, match="loss=Mean has no beta; a loss has beta, needs, items"):
        refuse_no_loss(loss)
