"""Prints how a checkout is built: python tests/house.py [PATH]

Lines of each folder, the longest files, the longest functions, the constructors and functions with the most arguments,
names that are defined twice, and the arrows between folders: from the syntax trees of src/, callbacks/ and
data_modules/.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOPS = ("src/choosy", "callbacks", "data_modules")


class Function(NamedTuple):
    """A function or method: its place, its lines, and its arguments besides self and cls."""

    place: str
    lines: int
    arguments: int


def files(root: Path) -> dict[str, Path]:
    """The files of a checkout by the names of their modules."""
    found = sorted(path for top in TOPS for path in (root / top).rglob("*.py"))
    return {".".join(_within(path, root).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


def imported(source: str) -> set[str]:
    """Every module that a source imports, wherever in it, with the names taken from it as possible modules.

    >>> sorted(imported("import a.b as c, d\\ndef f():\\n    from e.f import g"))
    ['a.b', 'd', 'e.f', 'e.f.g']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def file_arrows(root: Path) -> dict[str, set[str]]:
    """Which of our modules each module imports, in typing-only and lazy imports too."""
    ours = files(root)
    return {name: (imported(path.read_text()) & ours.keys()) - {name} for name, path in ours.items()}


def room(module: str) -> str:
    """The folder of a module of choosy, or the file where it has none; of the others the package.

    >>> room("choosy.models.fast.fused"), room("choosy.types"), room("callbacks.optune")
    ('models', 'types', 'callbacks')
    """
    top, *rest = module.split(".")
    return rest[0] if top == "choosy" and rest else top


def folder_arrows(root: Path) -> dict[str, set[str]]:
    """Which folders each folder imports."""
    arrows: dict[str, set[str]] = {}
    for module, others in file_arrows(root).items():
        arrows.setdefault(room(module), set()).update({room(other) for other in others} - {room(module)})
    return arrows


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The sets of names that reach each other.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    [['a', 'b', 'c']]
    """
    reach = {name: set(targets) for name, targets in arrows.items()}
    for middle in arrows:
        for name in arrows:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {tuple(sorted(other for other in reach[name] if name in reach.get(other, ()))) for name in arrows}
    return sorted(list(group) for group in groups if group)


def functions(root: Path) -> Iterator[Function]:
    """Every function and method of a checkout."""
    for module, path in files(root).items():
        for outer, node in _walk(ast.parse(path.read_text()), module):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{outer}.{node.name}", lines, len([n for n in names if n not in ("self", "cls")]))


def repeated_names(root: Path) -> dict[str, list[str]]:
    """Public names that are defined at the top of more than one module, with those modules."""
    places: dict[str, list[str]] = {}
    for module, path in files(root).items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                places.setdefault(node.name, []).append(module)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        places.setdefault(target.id, []).append(module)
    common = ("log", "T", "main")
    return {n: where for n, where in places.items() if len(where) > 1 and n not in common and not n.startswith("_")}


def _walk(node: ast.AST, outer: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield outer, child
        inner = f"{outer}.{child.name}" if isinstance(child, ast.ClassDef) else outer
        yield from _walk(child, inner)


def _within(path: Path, root: Path) -> Path:
    return path.relative_to(root / "src" if (root / "src") in path.parents else root)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def main(root: Path) -> None:
    ours = files(root)
    assert ours, f"{root} holds none of {', '.join(TOPS)}"
    of_file = {name: lines(path) for name, path in ours.items()}
    of_room: Counter[str] = Counter()
    for name, count in of_file.items():
        of_room[room(name)] += count
    print(f"{sum(of_file.values())} lines in {len(ours)} files of {len(of_room)} folders or files of choosy\n")
    for name, count in of_room.most_common():
        print(f"{count:6}  {name}")
    print("\nlongest files")
    for name, count in Counter(of_file).most_common(10):
        print(f"{count:6}  {name}")
    found = list(functions(root))
    print("\nlongest functions")
    for function in sorted(found, key=lambda f: -f.lines)[:10]:
        print(f"{function.lines:6}  {function.place}")
    for title, chosen in (
        ("constructors with the most arguments", [f for f in found if f.place.endswith(".__init__")]),
        ("other functions with the most arguments", [f for f in found if not f.place.endswith(".__init__")]),
    ):
        print(f"\n{title}")
        for function in sorted(chosen, key=lambda f: -f.arguments)[:10]:
            print(f"{function.arguments:6}  {function.place}")
    print("\nnames defined twice")
    for name, where in sorted(repeated_names(root).items()):
        print(f"        {name}: {', '.join(where)}")
    arrows = folder_arrows(root)
    print(f"\n{sum(map(len, arrows.values()))} arrows between folders")
    for name in sorted(arrows):
        print(f"        {name} -> {' '.join(sorted(arrows[name])) or 'nothing'}")
    print(f"\ncircles of files: {circles(file_arrows(root)) or 'none'}")
    print(f"circles of folders: {circles(arrows) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
