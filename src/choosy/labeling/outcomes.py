"""What labels of the ledger say: rewards of candidates, verdicts on pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from choosy.labeling.ledger import Label
from choosy.labeling.protocols import Labeler, SumsParts
from choosy.methods.pairing import verdict_of_scores
from choosy.types import MIRRORED, Candidates, Response, Verdict


def rewarded(
    candidates: Candidates, labels: Sequence[Label], labeler: Labeler, penalty: float, neutral: float | None
) -> Candidates:
    """The candidates with their scores, less the penalty where a response was cut, and with the parts of the scores.

    A `neutral` score, which says nothing, stays what it is, and no other becomes equal to it.
    """
    scored = []
    for response, label in zip(candidates.responses, labels, strict=True):
        assert label.score is not None
        parts = tuple(labeler.parts_in(label.raw).items()) if isinstance(labeler, SumsParts) else ()
        whole = response.finished or label.score == neutral
        reward = label.score if whole else label.score - penalty
        if not whole and reward == neutral:
            reward = math.nextafter(reward, -math.inf)
        scored.append(replace(response, reward=reward, parts=parts))
    return replace(candidates, responses=tuple(scored))


def verdict_of(labels: Sequence[Label], first: Response, neutral: float | None) -> Verdict:
    """The verdict of a comparison, with `first` as the first response, or of two scores, which may be neutral."""
    if len(labels) == 1:
        verdict = labels[0].verdict
        assert verdict
        return verdict if labels[0].first == first.text else MIRRORED[verdict]
    one, two = (label.score for label in labels)
    assert one is not None
    assert two is not None
    return verdict_of_scores(one, two, neutral)
