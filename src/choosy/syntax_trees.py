"""Parses Python source into syntax trees."""

from __future__ import annotations

import ast
from typing import Literal, cast, overload

TRIES = 100


@overload
def parsed(source: str | bytes, mode: Literal["exec"] = "exec") -> ast.Module: ...
@overload
def parsed(source: str | bytes, mode: Literal["eval"]) -> ast.Expression: ...
def parsed(source: str | bytes, mode: Literal["exec", "eval"] = "exec") -> ast.Module | ast.Expression:
    """Return the syntax tree of Python source.

    Python 3.11 counts the depth of all trees in one number. If another thread, or an object that is deleted meanwhile,
    parses something too, such as to print a stack, the count is wrong and `ast.parse` raises a `SystemError`, though
    nothing is wrong with the source: it is parsed again.

    Raises:
        SyntaxError: The source is not Python.
        ValueError: It holds a null byte.

    Example:
        >>> ast.unparse(parsed("f( x )"))
        'f(x)'
    """
    for _ in range(TRIES):
        try:
            return cast("ast.Module | ast.Expression", ast.parse(source, mode=mode))
        except SystemError as error:
            lost_count = error
    raise lost_count
