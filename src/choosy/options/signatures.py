"""Reads the arguments of a class from its source.

Importing a class of Choosy imports torch, Lightning and transformers, which takes seconds; its source is read in
milliseconds. What the source does not say plainly, such as a class made by a function, is unknown and is not judged.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

from choosy.syntax_trees import parsed

PLAIN = ("ABC", "Protocol", "Generic", "object", "NamedTuple")  # base classes without arguments of their own


class Module(NamedTuple):
    """A Python file: the statement that defines or imports each of its names, and whether these are all its names."""

    name: str
    package: str  # which its relative imports start from
    names: dict[str, ast.stmt]
    is_whole: bool


class Argument(NamedTuple):
    """An argument of a class: its annotation, and the module that the annotation is written in."""

    annotation: ast.expr | None
    module: Module
    is_required: bool


class Signature(NamedTuple):
    """The arguments that a class takes by name, and whether it takes others too."""

    arguments: dict[str, Argument]
    takes_others: bool


class Missing(Exception):
    """A dotted name that is not there: there is no such module, or the module has none but the `known` names."""

    def __init__(self, name: str, *, known: Sequence[str] = ()) -> None:
        super().__init__(name)
        self.name, self.known = name, tuple(known)


@cache
def read_module(name: str) -> Module | None:
    """Read a module without importing it; None where it has no Python source."""
    top, *below = name.split(".")
    spec = find_spec(top)
    for depth, _ in enumerate(below, start=2):
        if spec is None or spec.submodule_search_locations is None:
            raise Missing(name)
        spec = PathFinder.find_spec(".".join(name.split(".")[:depth]), spec.submodule_search_locations)
    if spec is None:
        raise Missing(name)
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    return _parsed(name, package, Path(spec.origin))


def _parsed(name: str, package: str, file: Path) -> Module:
    names: dict[str, ast.stmt] = {}
    is_whole = True
    for statement in _statements(parsed(file.read_text(encoding="utf-8")).body):
        match statement:
            case ast.ImportFrom() | ast.Import():
                is_whole &= all(alias.name != "*" for alias in statement.names)
                names |= {alias.asname or alias.name.split(".")[0]: statement for alias in statement.names}
            case ast.ClassDef() | ast.FunctionDef():
                names[statement.name] = statement
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                names[target] = statement
    return Module(name, package, names, is_whole and "__getattr__" not in names)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those within `if` and `try` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def find(module: Module | None, name: str) -> tuple[Module, ast.stmt] | None:
    """Find where a name of a module is defined, through its imports; None if that cannot be known."""
    for _ in range(20):  # a circle of imports
        statement = module.names.get(name) if module else None
        if module is None or statement is None:
            return None
        if not isinstance(statement, ast.ImportFrom):
            return None if isinstance(statement, ast.Import) else (module, statement)
        name = next(a.name for a in statement.names if (a.asname or a.name) == name)
        from_package = module.package.rsplit(".", statement.level - 1)[0] if statement.level else ""
        try:
            module = read_module(".".join(filter(None, (from_package, statement.module))))
        except Missing:  # an optional dependency
            return None
    return None


@cache
def signature(path: str) -> Signature | None:
    """Return the arguments of the class or function at a dotted path; None if they cannot be known.

    Raises:
        Missing: There is no such class.

    Example:
        >>> list(signature("choosy.sampling.settings.SamplingSettings").arguments)
        ['temperature', 'top_p', 'top_k', 'max_new_tokens']
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise Missing(path)
    module = read_module(module_name)
    if module is not None and name not in module.names:
        if module.is_whole:
            raise Missing(path, known=[known for known, s in module.names.items() if isinstance(s, ast.ClassDef)])
        return None
    return _arguments(find(module, name))


def not_taken(path: str, names: Iterable[str]) -> list[str]:
    """Return the names that are no arguments of the class at a dotted path; none of them if it cannot be known.

    Example:
        >>> not_taken("choosy.sampling.settings.SamplingSettings", ["_target_", "top_p", "fused"])
        ['fused']
    """
    try:
        takes = signature(path)
    except Missing:  # of which `refuse_mistakes` speaks
        return []
    known = None if takes is None or takes.takes_others else takes.arguments
    return [] if known is None else [name for name in names if not name.startswith("_") and name not in known]


def has_method(path: str, names: Collection[str]) -> bool:
    """Whether the source of a class, or of one that it is derived from, defines one of these methods.

    Example:
        >>> has_method("callbacks.random.LengthMatched", ["pair_utilities"]), has_method("nowhere.Mine", ["f"])
        (True, False)
    """
    module, _, name = path.rpartition(".")
    try:
        return _defines(find(read_module(module), name), names)
    except (Missing, ValueError, SyntaxError):  # it is not there any more, or is of no file
        return False


def _defines(found: tuple[Module, ast.stmt] | None, names: Collection[str]) -> bool:
    match found:
        case (module, ast.ClassDef() as cls):
            own = (statement.name for statement in cls.body if isinstance(statement, ast.FunctionDef))
            bases = (find(module, base.id) for base in cls.bases if isinstance(base, ast.Name))
            return any(name in names for name in own) or any(_defines(base, names) for base in bases)
    return False


def bare_function(path: str) -> Callable[..., None] | None:
    """Return a function without a body that has the arguments of the one at a path; None if they cannot be known.

    Args:
        path: As `package.module.function` or `file.py:function`.
    """
    file, colon, name = path.rpartition(":")
    if colon and file.endswith(".py"):
        module: Module | None = _parsed(Path(file).stem, "", Path(file))
    else:
        module_name, _, name = path.rpartition(".")
        module = read_module(module_name) if module_name else None
    match find(module, name):
        case (_, ast.FunctionDef(decorator_list=[]) as function):
            given = deepcopy(function.args)
            for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if argument is not None:
                    argument.annotation = None
            given.defaults = [ast.Constant(None)] * len(given.defaults)
            given.kw_defaults = [default and ast.Constant(None) for default in given.kw_defaults]
            made: dict[str, Any] = {}
            exec(f"def {name}({ast.unparse(given)}): ...", made)
            return cast(Callable[..., Any], made[name])
    return None


def _arguments(found: tuple[Module, ast.stmt] | None) -> Signature | None:
    match found:
        case (module, ast.FunctionDef() as function):
            return _of_function(module, function, skip=0)
        case (module, ast.ClassDef() as cls):
            return _of_class(module, cls)
    return None


def _of_function(module: Module, function: ast.FunctionDef, *, skip: int) -> Signature:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    by_name = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    pairs = [*[*zip(positional, defaults, strict=True)][skip:], *by_name]
    arguments = {a.arg: Argument(a.annotation, module, default is None) for a, default in pairs}
    return Signature(arguments, given.kwarg is not None)


def _of_class(module: Module, cls: ast.ClassDef) -> Signature | None:
    methods = {statement.name: statement for statement in cls.body if isinstance(statement, ast.FunctionDef)}
    if maker := methods.get("__init__") or methods.get("__new__"):
        return _of_function(module, maker, skip=1)
    bases = [
        _arguments(find(module, base.id)) for base in cls.bases if isinstance(base, ast.Name) and base.id not in PLAIN
    ]
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return next((base for base in bases if base is not None), None if cls.bases else Signature({}, False))
    arguments = {name: argument for base in reversed(bases) if base for name, argument in base.arguments.items()}
    for statement in cls.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id != "_"
        ):
            value = ast.unparse(statement.value) if statement.value else ""
            if "ClassVar" not in ast.unparse(statement.annotation) and "init=False" not in value:
                arguments[statement.target.id] = Argument(statement.annotation, module, not value)
    return Signature(arguments, False)
