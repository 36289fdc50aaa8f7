"""Who may import whom: the arrows of the design, read from the syntax trees."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import TOPS, circles, file_arrows, files, folder_arrows, imported, room

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(files(ROOT).values())
OURS = {"choosy", "callbacks", "data_modules"}
STANDARD = sys.stdlib_module_names


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
    assert all(any(path.is_relative_to(ROOT / folder) for path in FILES) for folder in TOPS)
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
        ("hydra", {"src/choosy/main.py", "src/choosy/sweeper.py"}),
        ("optuna", {"src/choosy/safe_search.py", "src/choosy/sweeper.py"}),
        ("jsonargparse", {"src/choosy/cli.py"}),
        ("lightning.pytorch.cli", {"src/choosy/cli.py"}),
    ],
)
def test_few_files_know_the_framework(package: str, only: set[str]) -> None:
    assert importers(package) <= only


TORCH_DISTRIBUTED = {f"src/choosy/parallel/{name}.py" for name in ("ranks", "sharding")}


def test_one_folder_knows_torch_distributed() -> None:
    assert importers("torch.distributed") == TORCH_DISTRIBUTED


def attributes(path: Path) -> Iterator[str]:
    """Dotted names that a file uses, such as torch.distributed.get_rank."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_no_file_reaches_torch_distributed_without_importing_it() -> None:
    reaching = {path for path in FILES if any(within(name, "torch.distributed") for name in attributes(path))}
    assert {path.relative_to(ROOT).as_posix() for path in reaching} <= TORCH_DISTRIBUTED


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("types.py", set()),
        ("foreign.py", set()),
        ("terminal.py", {"choosy.foreign", "choosy.redaction", "choosy.version"}),
        ("methods/selection.py", {"torch", "choosy.types"}),
        ("methods/aggregation.py", {"choosy.types"}),
        ("methods/composed_losses.py", {"torch", "choosy.methods"}),
        ("methods/losses.py", {"torch", "choosy.methods"}),
        ("methods/loss_inputs.py", {"torch"}),
        ("methods/pairing.py", {"choosy.types"}),
        ("methods/weighting.py", {"torch"}),
        ("parallel/ranks.py", {"torch", "choosy.terminal"}),
        ("parallel/sharding.py", {"torch", "choosy.parallel"}),
        ("data/pool.py", {"numpy", "pyarrow", "choosy.data", "choosy.types"}),
        ("data/pool_rows.py", {"pyarrow", "choosy.types"}),
        ("data/table_files.py", {"pyarrow", "choosy.files", "choosy.sealed"}),
        ("models/fast/tree_attention.py", {"torch", "transformers"}),
        ("models/fast/fused.py", {"torch", "peft", "choosy.terminal"}),
        ("models/logprobs.py", {"torch", "choosy.models", "choosy.terminal"}),
        ("models/rows.py", {"torch", "choosy.models"}),
    ],
)
def test_the_pure_centre_knows_little(file: str, allowed: set[str]) -> None:
    assert roots(file) <= allowed


# -- the order of the folders: each imports only those of lower floors and itself --------------------------------

FLOORS = [
    {
        "types",
        "version",
        "errors",
        "own_code",
        "syntax_trees",
        "current_folder",
        "foreign",
        "terminal",
        "files",
        "sealed",
        "appended_file",
        "console",
        "redaction",
        "parallel",
        "options",
    },
    {"methods"},
    {"models"},
    {"sampling", "data", "labeling"},
    {"resume", "reporting"},
    {"rounds"},
    {"module", "early", "start", "safe_search"},
    {"main", "cli", "sweeper"},
    {"api", "tuned_model", "capabilities", "evaluation", "chat", "push", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ARROWS = {name: others for name, others in file_arrows(ROOT).items() if name.startswith("choosy.")}


def arrows_upward() -> set[str]:
    return {
        f"{one} -> {other}"
        for one, others in ARROWS.items()
        for other in others & ARROWS.keys()
        if FLOOR[room(one)] < FLOOR[room(other)]
    }


def test_every_folder_has_a_floor() -> None:
    assert {room(module) for module in ARROWS} == set(FLOOR)


def test_no_arrow_goes_up() -> None:
    assert arrows_upward() == set()


def test_no_circle_of_files() -> None:
    assert circles(file_arrows(ROOT)) == []


def test_no_circle_of_folders() -> None:
    assert circles(folder_arrows(ROOT)) == []


def test_each_type_that_is_ignored_has_its_reason() -> None:
    bare = re.compile(r"# type: ignore(?!\[[\w, -]+\]  # \w)")
    assert [path.name for path in FILES if bare.search(path.read_text())] == []


@pytest.mark.parametrize("folder", ["callbacks", "data_modules"])
@pytest.mark.parametrize("package", ["hydra", "omegaconf", "jsonargparse"])
def test_the_edges_are_built_from_plain_arguments(folder: str, package: str) -> None:
    assert importers(package, folder) == set()
