"""Who may import whom: the arrows of the design, read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src/choosy", "callbacks", "data_modules")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OURS = {"choosy", "callbacks", "data_modules"}
STANDARD = sys.stdlib_module_names


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


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def importers(package: str, folder: str = "") -> set[str]:
    """Our files, or those of a folder, that import a package or a part of it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if path.is_relative_to(ROOT / folder) and any(within(module, package) for module in imported(path.read_text()))
    }


def roots(file: str) -> set[str]:
    """The packages a file imports; of ours also the module."""
    modules = imported((ROOT / "src/choosy" / file).read_text())
    tops = {module.split(".")[0] for module in modules} - {"choosy"}
    return (tops - STANDARD) | {".".join(m.split(".")[:2]) for m in modules if m.startswith("choosy.")}


def test_the_folders_hold_what_is_judged() -> None:
    assert all(any(path.is_relative_to(ROOT / folder) for path in FILES) for folder in FOLDERS)
    assert len(FILES) > 20


@pytest.mark.parametrize("folder", ["callbacks", "data_modules"])
def test_edges_import_the_centre(folder: str) -> None:
    assert importers("choosy", folder)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("src/choosy", "callbacks"),
        ("src/choosy", "data_modules"),
        ("callbacks", "data_modules"),
        ("data_modules", "callbacks"),
    ],
)
def test_arrows_that_must_not_be(folder: str, forbidden: str) -> None:
    assert importers(forbidden, folder) == set()


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("torch.distributed", "src/choosy/ranks.py"),
        ("hydra", "src/choosy/main.py"),
        ("jsonargparse", "src/choosy/cli.py"),
        ("lightning.pytorch.cli", "src/choosy/cli.py"),
    ],
)
def test_one_file_knows_the_framework(package: str, only: str) -> None:
    assert importers(package) <= {only}


def attributes(path: Path) -> Iterator[str]:
    """Dotted names that a file uses, such as torch.distributed.get_rank."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_nobody_reaches_torch_distributed_without_importing_it() -> None:
    reaching = {path.name for path in FILES if any(within(name, "torch.distributed") for name in attributes(path))}
    assert reaching <= {"ranks.py"}


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("types.py", set()),
        ("selection.py", {"torch", "choosy.types"}),
        ("aggregation.py", {"choosy.types"}),
        ("calibration.py", set()),
        ("losses.py", {"torch"}),
        ("weighting.py", {"torch"}),
        ("ranks.py", {"torch"}),
        ("pool.py", {"numpy", "pyarrow", "choosy.types"}),
        ("attention.py", {"torch", "transformers"}),
        ("fused.py", {"torch", "peft"}),
        ("logprobs.py", {"torch", "choosy.attention"}),
    ],
)
def test_the_pure_centre_knows_little(file: str, allowed: set[str]) -> None:
    assert roots(file) <= allowed


@pytest.mark.parametrize("folder", ["callbacks", "data_modules"])
@pytest.mark.parametrize("package", ["hydra", "omegaconf", "jsonargparse"])
def test_the_edges_are_built_from_plain_arguments(folder: str, package: str) -> None:
    assert importers(package, folder) == set()
