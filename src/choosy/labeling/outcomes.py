"""What labels of the ledger say: rewards of candidates, verdicts on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from choosy.labeling.ledger import Label
from choosy.labeling.protocols import Labeler, SumsParts
from choosy.types import MIRRORED, Candidates, Response, Verdict


def rewarded(
    candidates: Candidates, labels: Sequence[Label], labeler: Labeler, penalty: float, neutral: float | None
) -> Candidates:
    """The candidates with their scores, less the penalty where a response was cut, and with the parts of the scores.

    A `neutral` score, which says nothing, stays what it is.
    """
    scored = []
    for response, label in zip(candidates.responses, labels, strict=True):
        assert label.score is not None
        parts = tuple(labeler.parts_in(label.raw).items()) if isinstance(labeler, SumsParts) else ()
        whole = response.finished or label.score == neutral
        scored.append(replace(response, reward=label.score - (0.0 if whole else penalty), parts=parts))
    return replace(candidates, responses=tuple(scored))


def verdict_of(labels: Sequence[Label], first: Response) -> Verdict:
    """The verdict of a comparison, with `first` as the first response, or of two scores."""
    if len(labels) == 1:
        verdict = labels[0].verdict
        assert verdict
        return verdict if labels[0].first == first.text else MIRRORED[verdict]
    one, two = (label.score for label in labels)
    assert one is not None
    assert two is not None
    return "tie" if one == two else "first" if one > two else "second"
