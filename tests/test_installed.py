"""What pip installs is whole: the menu, the prompts, the callbacks and the data modules come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("src", "conf", "callbacks", "data_modules", "pyproject.toml", "README.md", "LICENSE")
USE = """
import callbacks, choosy, data_modules
from choosy.data.formats import read_prompts
from choosy.main import compose
from hydra.utils import get_class
cfg = compose(["selector=optune_certainty"])
for callback in cfg.callbacks.values():
    get_class(callback._target_)
get_class(cfg.data._target_)
print(len(read_prompts(cfg.data.train)), *(module.__file__ for module in (callbacks, choosy, data_modules)), sep="\\n")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, so that no build product is left beside the sources."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < 77:
        pytest.skip(f"needs setuptools>=77 to build the wheel; found {found}")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        part = ROOT / name
        if part.is_dir():
            shutil.copytree(part, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(part, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*pip, "-w", str(built), str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = built.glob("choosy-*.whl")
    return path


def test_every_file_that_a_run_reads_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"choosy/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.txt")}
    wanted |= {f"choosy/data/prompts/{path.name}" for path in (ROOT / "src/choosy/data/prompts").glob("*.jsonl")}
    for package in ("callbacks", "data_modules"):
        wanted |= {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py")}
    assert {"choosy/data/prompts/train.jsonl", "choosy/labeling/judge/template.txt"} <= wanted
    assert wanted - inside == set()
    assert "choosy/py.typed" in inside


def test_the_wheel_names_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "choosy = choosy.cli:main" in archive.read(points).decode()


def test_the_installed_package_composes_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(site)}
    run = subprocess.run([sys.executable, "-c", USE], cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    prompts, *places = run.stdout.splitlines()
    assert int(prompts) > 0
    assert len(places) == 3
    assert all(Path(place).is_relative_to(site) for place in places), places
