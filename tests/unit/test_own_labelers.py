"""Labelers of the user's, as docs/labelers.md shows them, are accepted by `choosy fit`, which compares types."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from choosy.labeling.buyer import LabelBuyer

PAGE = (Path(__file__).parents[2] / "docs" / "labelers.md").read_text()
COMPARES = """
class Longer:
    name = "longer"

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def compare(self, asked):
        return ["tie"] * len(asked)

class Neither:
    name = "neither"

    def judge(self, items):
        return []
"""


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    (shorter,) = re.findall(r"```python\n(class Shorter:.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_labelers.py").write_text(shorter + COMPARES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_labelers", raising=False)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LabelBuyer, "labels")
    return parser


@pytest.mark.parametrize(("name", "scores"), [("Shorter", True), ("Longer", False)])
def test_a_class_without_types_is_a_labeler(parser: ArgumentParser, name: str, scores: bool) -> None:
    given = parser.parse_object(
        {"labels": {"labeler": {"class_path": f"my_labelers.{name}"}, "ledger": "labels.sqlite"}}
    )
    assert parser.instantiate(given).labels.scores is scores


def test_a_class_without_the_methods_is_none(parser: ArgumentParser) -> None:
    with pytest.raises(Exception, match="does not implement protocol"):
        parser.parse_object({"labels": {"labeler": {"class_path": "my_labelers.Neither"}, "ledger": "l.sqlite"}})
