"""Syntax trees are right also where something else parses in the middle."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from choosy import syntax_trees
from choosy.syntax_trees import parsed

SOURCE = Path(__file__).read_text() * 3


class ParsesWhenDeleted:
    """An object in a circle, so that the collector deletes it, whenever it comes by."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        ast.parse("def f(x):\n    return [x, (x, {x: x})]\n")


def with_a_deletion_within(parse: Callable[[str], ast.Module]) -> ast.Module:
    """Parse the source, in the middle of which the collector deletes an object that parses too."""
    usual = gc.get_threshold()
    gc.set_threshold(300)  # objects of the tree are made until the collector comes by
    gc.collect()
    ParsesWhenDeleted()
    try:
        return parse(SOURCE)
    finally:
        gc.set_threshold(*usual)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="counts the depth of each tree")
def test_source_is_parsed_again_if_an_object_that_is_deleted_parses_too() -> None:
    with pytest.raises(SystemError, match="depth mismatch"):
        with_a_deletion_within(ast.parse)
    tree = with_a_deletion_within(parsed)
    assert len(tree.body) == 3 * len(ast.parse(Path(__file__).read_text()).body)


def test_an_error_that_stays_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SystemError("no memory for a tree")

    monkeypatch.setattr(syntax_trees.ast, "parse", fail)
    with pytest.raises(SystemError, match="no memory"):
        parsed("x")


def test_what_is_no_python_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        parsed("x y")
