"""Checks a value against the annotation of an argument."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from choosy.options.signatures import Module, find
from choosy.syntax_trees import parsed

PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str | int | float) and not isinstance(value, bool)),
    "Path": ("a path", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
}
LISTS = ("list", "tuple", "set", "Sequence", "Iterable", "Collection", "List", "Tuple")
TABLES = ("dict", "Mapping", "MutableMapping", "Dict")


def wanted(value: Any, annotation: ast.expr | None, module: Module) -> str | None:
    """Return what an annotation wants, if the value is not that; None if it is, or if it cannot be known.

    Example:
        >>> nowhere = Module("", "", {}, True)
        >>> wanted("hot", ast.parse("float | None", mode="eval").body, nowhere)
        'a number or null'
        >>> wanted(0.1, ast.parse("float | None", mode="eval").body, nowhere)
    """
    words: list[str] = []
    for kind, scope in _alternatives(annotation, module):
        if (text := _wants(value, kind, scope)) is None:
            return None
        words.append(text)
    plain = [word for word in words if word not in ("settings", "null")]
    return " or ".join(dict.fromkeys(word for word in words if word != "settings" or not plain))


def choices(annotation: ast.expr | None, module: Module) -> list[Any]:
    """Return the words that an annotation names, if it names all of them."""
    found: list[Any] = []
    for kind, _ in _alternatives(annotation, module):
        match kind:
            case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
                found += _literals(words)
            case ast.Constant(value=None):
                found.append("null")
            case _:
                return []
    return found if found != ["null"] else []


def _literals(words: ast.expr) -> list[Any]:
    return [ast.literal_eval(each) for each in (words.elts if isinstance(words, ast.Tuple) else [words])]


def _alternatives(annotation: ast.expr | None, module: Module) -> Iterator[tuple[ast.expr | None, Module]]:
    """Yield the parts of a union, with the modules that they are written in."""
    match annotation:
        case ast.Constant(value=str() as text):
            yield from _alternatives(parsed(text, mode="eval").body, module)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from _alternatives(left, module)
            yield from _alternatives(right, module)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            yield from _alternatives(inner, module)
            yield ast.Constant(None), module
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            for part in parts:
                yield from _alternatives(part, module)
        case ast.Name(id=name) if name not in PLAIN and (found := find(module, name)) and _alias(found[1]):
            yield from _alternatives(_alias(found[1]), found[0])
        case _:
            yield annotation, module


def _alias(statement: ast.stmt) -> ast.expr | None:
    return statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None


def _wants(value: Any, kind: ast.expr | None, module: Module) -> str | None:
    """Return what one alternative wants, None if the value is that or if it cannot be known."""
    match kind:
        case ast.Constant(value=None):
            return None if value is None else "null"
        case ast.Name(id=name) if name in PLAIN:
            words, fits = PLAIN[name]
            return None if fits(value) else words
        case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
            known = _literals(words)
            return None if value in known else " or ".join(map(str, known))
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in LISTS:
            if not isinstance(value, list):
                return "a list"
            parts = [inner] * len(value) if not isinstance(inner, ast.Tuple) else inner.elts
            bad = [text for each, part in zip(value, parts, strict=False) if (text := wanted(each, part, module))]
            return f"a list of which each is {bad[0]}" if bad else None
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name) if name in TABLES:
            return None if isinstance(value, dict) else "settings"
        case ast.Subscript(value=ast.Name(id="Callable")):  # which a file can only name by a class
            return None if isinstance(value, dict) else "settings"
        case ast.Name(id=name) if (found_class := find(module, name)) and isinstance(found_class[1], ast.ClassDef):
            bases = [ast.unparse(base) for base in found_class[1].bases]
            is_text = any("Enum" in base or base == "str" for base in bases)
            return None if is_text or isinstance(value, dict) else "settings"
    return None
