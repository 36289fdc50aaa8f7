"""What pip installs is whole: the menu, the prompts, the callbacks and the data modules come with it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("src", "conf", "callbacks", "data_modules", "pyproject.toml", "README.md", "LICENSE")
USE = """
import callbacks, choosy, data_modules
from choosy.data.reading import read_prompts
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
    """The wheel of the sdist of a copy of this checkout, so that no build product is left beside the sources."""
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
    call = f"from setuptools.build_meta import build_sdist; build_sdist({str(built)!r})"
    packed = subprocess.run([sys.executable, "-c", call], cwd=source, capture_output=True, text=True)
    assert packed.returncode == 0, packed.stderr
    (archive,) = built.glob("choosy_tuning-*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "-w", str(built), str(archive)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("choosy_tuning-*.whl")
    return path


def test_every_file_that_a_run_reads_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"choosy/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    for suffix in ("txt", "j2", "css", "js"):
        wanted |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob(f"*.{suffix}")}
    wanted |= {f"choosy/data/prompts/{path.name}" for path in (ROOT / "src/choosy/data/prompts").glob("*.jsonl")}
    for package in ("callbacks", "data_modules"):
        wanted |= {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py")}
    assert {f"choosy/{path}" for path in ("data/prompts/train.jsonl", "labeling/human/page.html.j2")} <= wanted
    assert "choosy/reporting/templates/report.html.j2" in wanted
    assert wanted - inside == set()
    assert "choosy/py.typed" in inside


def test_the_wheel_names_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "choosy = choosy.__main__:main" in archive.read(points).decode()


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip installs of the wheel, the command included."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder far from the checkout, with a reward of the user's own in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_rewards.py").write_text(
        "def vowels(prompt, response):\n    return float(sum(map(ord, response)) % 7)\n"
    )
    return folder


def run(*words: object, folder: Path, path: object = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def typed(tiny_policy_dir: Path, prompts_file: Path) -> list[str]:
    """What is typed for a tiny run."""
    return [
        *("trainer=cpu", f"model.name={tiny_policy_dir}", "model.dtype=float32", "labeler=function"),
        *(f"data.train={prompts_file}", "data.limit=4", f"data.heldout={prompts_file}", "data.heldout_limit=2"),
        *("labeler.path=my_rewards.vowels", "rounds=1", "sampler.max_new_tokens=6", "batching.batch_size=4"),
    ]


def numbers(run_dir: Path) -> dict[str, Any]:
    """summary.json without the seconds, which no two runs share, and its checksum."""
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "sync_seconds", "checksum")}


def test_choosy_train_does_in_any_folder_what_train_py_does_in_the_checkout(site, elsewhere, typed, tmp_path):
    choosy = site / "bin" / "choosy"
    many = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "name=many"]
    run(choosy, "train", *typed, "name=one", folder=elsewhere, path=site)
    run(choosy, "train", *typed, *many, folder=elsewhere, path=site)
    run(ROOT / "train.py", *typed, f"run_dir={tmp_path}/two", folder=ROOT, path=elsewhere)
    one, two = elsewhere / "runs" / "one", tmp_path / "two"
    assert numbers(one) == numbers(two) == numbers(elsewhere / "runs" / "many"), "it starts its other process itself"
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert sorted(path.name for path in elsewhere.iterdir() if path.name != "__pycache__") == ["my_rewards.py", "runs"]


def test_choosy_train_takes_the_flags_of_hydra(site, elsewhere, typed):
    choosy = site / "bin" / "choosy"
    composed = run(
        choosy, "train", *typed, "lr=0.5", "--cfg", "job", "--package", "optimizer", folder=elsewhere, path=site
    )
    assert "lr: ${lr}" in composed.stdout
    run(choosy, "train", "-m", *typed, "seed=0,1", "hydra.sweep.dir=sweep", folder=elsewhere, path=site)
    with (elsewhere / "sweep" / "index.csv").open() as file:
        assert [row["job"] for row in csv.DictReader(file)] == ["0", "1"]
    assert [numbers(elsewhere / "sweep" / job)["seed"] for job in ("0", "1")] == [0, 1]


def test_the_installed_package_composes_from_any_folder(site, elsewhere):
    done = run("-c", USE, folder=elsewhere, path=site)
    prompts, *places = done.stdout.splitlines()
    assert int(prompts) > 0
    assert len(places) == 3
    assert all(Path(place).is_relative_to(site) for place in places), places
