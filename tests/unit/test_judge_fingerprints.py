"""The fingerprints of judges, by which the ledger knows the labels that are bought already."""

from __future__ import annotations

import pytest

from choosy.labeling.judge.editor import Editor
from choosy.labeling.judge.judge import Judge
from choosy.labeling.judge.thumbs import ThumbsJudge

ENDPOINT = {"model": "m", "base_url": "http://localhost:1/v1"}


@pytest.mark.parametrize(
    ("labeler", "fingerprint"),
    [
        (Judge(**ENDPOINT), "40bdfa73e6b6cfd6"),
        (Judge(**ENDPOINT, both_orders=False), "4d1424fba12eda72"),
        (ThumbsJudge(**ENDPOINT), "5036fb87ab9675f7"),
        (Editor(**ENDPOINT), "d5d7c5e00c49e9ce"),
    ],
)
def test_a_new_version_asks_what_it_asked_before(labeler: Judge | ThumbsJudge | Editor, fingerprint: str) -> None:
    """Another fingerprint would buy all labels of a ledger again: it may change only where a request does."""
    assert labeler.terms.fingerprint == fingerprint
