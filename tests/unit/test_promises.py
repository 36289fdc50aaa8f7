"""Every promise of docs/promises.md names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/promises.md"
ROWS = [line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_promises() -> None:
    assert len(ROWS) > 20
    assert ROWS[0][0].strip() == "promise"


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0].strip()[:40])
def test_a_promise_has_a_test_that_is_there(row: list[str]) -> None:
    promise, held_by = (cell.strip() for cell in row)
    assert promise.endswith(".")
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", held_by)
    assert named
    assert [f"{file}::{test}" for file, test in named if test not in functions(file)] == []
    assert re.sub(r"`[\w/]+\.py::test_\w+`,? ?", "", held_by) == ""


def test_the_documents_name_the_page() -> None:
    assert "docs/promises.md" in (ROOT / "README.md").read_text(encoding="utf-8")
