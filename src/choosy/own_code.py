"""Names functions, classes and objects by their source code, so that labels of other code are not reused."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from choosy.syntax_trees import parsed
from choosy.types import content_id

OURS = ("choosy", "callbacks", "data_modules")
PLAIN = (type(None), bool, int, float, complex, str, bytes, Path)
BY_DATACLASS = ("__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__replace__")
Names = dict[str, None]  # a set in the order of its first words


def is_own(module: str, file: str | None) -> bool:
    """Whether a module is code of the user's: neither Choosy's, nor Python's, nor that of an installed package.

    Example:
        >>> is_own("rewards", "/home/me/rewards.py"), is_own("json", None), is_own("choosy.types", None)
        (True, False, False)
    """
    top = module.partition(".")[0]
    if top in OURS or top in sys.stdlib_module_names:
        return False
    return not {"site-packages", "dist-packages"} & {*Path(file or "").parts}


def code_id(thing: Any) -> str:
    """Return a name of the code and the plain settings that a function, a class or an object works with.

    It follows the source of the function, or of the class's methods, and that of whatever these use of the user's own
    code: other functions, classes, modules, and the statements that give values to the names of the module. Comments
    and layout do not count. Settings are the default values of arguments, the variables that a function encloses, and
    the attributes of an object that have the names of its constructor's arguments; if one of these arguments is not
    kept under its name, all attributes. Of settings that are neither numbers, texts nor collections of these, the class
    counts. A function whose source cannot be read, as one that was typed into an interpreter, counts by its bytecode,
    and one of C by its name.

    Example:
        >>> code_id(len) == code_id(len) != code_id(max)
        True
    """
    return content_id(*_Reader(thing).parts(thing))


def is_edited(function: Any) -> bool:
    """Whether the file of a function has been edited since Python imported it, and the function with it.

    Example:
        >>> is_edited(is_own), is_edited(len)
        (False, False)
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType):
        return False
    try:
        return code not in _codes(_compiled("".join(inspect.findsource(code)[0]), code))
    except (OSError, IndexError):  # it has no file
        return False
    except (SyntaxError, ValueError):
        return True


class _Reader:
    """Reads the code of one thing, and of what it uses, once each."""

    def __init__(self, thing: Any) -> None:
        kind = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
        self.package = str(getattr(kind, "__module__", "")).partition(".")[0]  # which may be an installed one
        self.read: dict[int, Any] = {}  # by their ids, and kept, so that no other object gets one of these

    def follows(self, thing: Any) -> bool:
        """Whether the code of a function, a class or a module counts, and not its name alone."""
        name = str(thing.__name__ if isinstance(thing, ModuleType) else thing.__module__)
        file = getattr(sys.modules.get(name), "__file__", None)
        return is_own(name, file) or (name.partition(".")[0] == self.package and is_own(name, None))

    def parts(self, thing: Any) -> Iterator[str]:
        if isinstance(thing, PLAIN):
            yield repr(thing)
            return
        if id(thing) in self.read:
            return
        self.read[id(thing)] = thing
        if inspect.isroutine(thing) or inspect.isclass(thing):
            thing = inspect.unwrap(thing)
        match thing:
            case Mapping():
                yield f"{len(thing)} keys"
                for key in sorted(thing, key=repr):
                    yield from self.parts(key)
                    yield from self.parts(thing[key])
            case Set():
                yield from sorted(content_id(*_Reader(each).parts(each)) for each in thing)
            case list() | tuple():
                yield f"{len(thing)} items"
                for each in thing:
                    yield from self.parts(each)
            case partial():
                yield from self.parts([thing.func, thing.args, thing.keywords])
            case MethodType():
                yield from self.parts([thing.__func__, thing.__self__])
            case staticmethod() | classmethod():
                yield from self.parts(thing.__func__)
            case property():
                yield from self.parts([thing.fget])
            case FunctionType() if self.follows(thing):
                yield from self._of_function(thing)
            case type() if self.follows(thing):
                yield from self._of_class(thing)
            case ModuleType():
                file = getattr(thing, "__file__", None) if self.follows(thing) else None
                yield _unparsed(Path(file).read_text(encoding="utf-8")) if file else thing.__name__
            case _ if inspect.isroutine(thing) or inspect.isclass(thing):
                yield f"{thing.__module__}.{thing.__qualname__}"
            case _:
                yield from self.parts(type(thing))
                if self.follows(type(thing)):
                    yield from self.parts(_settings(thing))

    def _of_function(self, function: FunctionType) -> Iterator[str]:
        names: Names = {}
        tree, node = _source_of(function.__code__)
        if tree is None or node is None:
            yield from _bytecode(function.__code__, names)
        else:
            yield ast.unparse(node)
            names |= _names_in(node)
        yield from self.parts([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            yield from self.parts(_content(cell))
        yield from self._of_globals(names, function, tree)

    def _of_globals(self, names: Names, function: FunctionType, tree: ast.Module | None) -> Iterator[str]:
        """The names of a module that are used: statements where the source has them, code, or plain values."""
        used = {**names}
        while used:
            name, _ = used.popitem()
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, ModuleType):
                yield name
                yield from self.parts(value)
                continue
            assigned = [] if tree is None else [one for one in tree.body if _gives_value(one, name)]
            yield from map(ast.unparse, assigned)
            further = {each: None for one in assigned for each in _names_in(one) if each not in names}
            names |= further
            used |= further
            if not assigned:
                yield name
                yield from self.parts(value)

    def _of_class(self, cls: type) -> Iterator[str]:
        for name, value in sorted(vars(cls).items()):
            function = inspect.unwrap(value) if callable(value) else value
            made = getattr(function, "__code__", None)
            if made is not None and name in BY_DATACLASS and made.co_filename == "<string>":
                continue
            is_code = isinstance(value, FunctionType | staticmethod | classmethod | property)
            if is_code or (isinstance(value, (*PLAIN, list, tuple, Mapping, Set)) and not name.startswith("__")):
                yield name
                yield from self.parts(value)
        yield from self.parts([base for base in cls.__bases__ if base is not object])


def _source_of(code: CodeType) -> tuple[ast.Module | None, ast.AST | None]:
    """Return the file that a function was read from, and the function in it; None where these cannot be known.

    A file that has been edited since it was imported holds another function, and two on one line are not told apart.
    """
    try:
        text = "".join(inspect.findsource(code)[0])
        tree, compiled = parsed(text), _compiled(text, code)
    except (OSError, SyntaxError, ValueError, IndexError):
        return None, None
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    here = [node for node in ast.walk(tree) if isinstance(node, kinds) and _first_line(node) == code.co_firstlineno]
    if len(here) != 1 or code not in _codes(compiled):
        return None, None
    return tree, here[0]


def _compiled(text: str, code: CodeType) -> CodeType:
    """Return a text as Python compiles the file of a function."""
    return compile(text, code.co_filename, "exec", dont_inherit=True)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _bytecode(code: CodeType, names: Names) -> Iterator[str]:
    """Yield what a function does, as Python has compiled it, and collect the names that it uses."""
    yield code.co_code.hex()
    yield from (*code.co_names, *code.co_varnames)
    names |= dict.fromkeys(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _bytecode(const, names)
        else:
            yield repr(sorted(const, key=repr)) if isinstance(const, frozenset) else repr(const)


def _names_in(node: ast.AST) -> Names:
    return {each.id: None for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}


def _gives_value(statement: ast.stmt, name: str) -> bool:
    """Whether a statement of a module gives a name its value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    stored = (each for each in ast.walk(statement) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
    return any(each.id == name for each in stored)


def _unparsed(text: str) -> str:
    try:
        return ast.unparse(parsed(text))
    except SyntaxError:
        return text


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def _settings(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object that its constructor's arguments name; all, if one of these is not kept."""
    held: dict[str, Any] = getattr(thing, "__dict__", {})
    try:
        taken = [*inspect.signature(type(thing)).parameters]
    except (TypeError, ValueError):
        return held
    kept = {name: key for name in taken for key in (name, f"_{name}") if key in held}
    return held if len(kept) < len(taken) else {name: held[key] for name, key in kept.items()}
