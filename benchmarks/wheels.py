"""The packages that a machine without a network needs for Choosy, as wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ("torch", "transformers")  # are there, with what they need
HUB = "huggingface-hub"  # is there, too; what it needs differs from version to version
ALSO = ("pytest", "pytest-timeout")  # what the tests need
UNUSED = {  # what Choosy needs elsewhere: nothing that benchmarks/gpu.py runs imports it
    *("datasets", "matplotlib", "scipy", "sentence-transformers", "tensorboard"),
    "vadersentiment",
}
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34)  # pip takes a wheel for exactly those that it is told
Versions = dict[str, str]


def needed(requirements: Iterable[str], without: Collection[str] = (), there: Mapping[str, str] = {}) -> Versions:
    """Return the packages that these need, and what those need, in the versions installed here.

    Args:
        requirements: As in a list of dependencies.
        without: Packages that are left out, with what only they need.
        there: Packages that are left out where their version is one that is wanted, or not known.
    """
    found: Versions = {}
    left = [Requirement(line) for line in requirements]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        extras = [{"extra": extra} for extra in ("", *wanted.extras)]
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        known = there.get(name)
        if name in found or name in without or known == "" or (known and wanted.specifier.contains(known)):
            continue
        about = distribution(name)
        found[name] = about.version
        parts = map(Requirement, about.requires or ())
        left += [Requirement(plain(r)) for r in parts if r.marker is None or any(map(r.marker.evaluate, extras))]
    return found


def plain(requirement: Requirement) -> str:
    """Return a requirement without its marker, which has been looked at.

    Example:
        >>> plain(Requirement("torch[opt]>=2; extra == 'fast'"))
        'torch[opt]>=2'
    """
    requirement.marker = None
    return str(requirement)


def carry(folder: Path, *, python: str, packages: Path | None) -> None:
    """Download what a machine lacks, in the versions installed here.

    Args:
        folder: Of the wheels.
        python: The version of Python there, such as 3.12.
        packages: A file with what is installed there, a package a line, as pip freeze prints it or without versions;
            without it that is torch, transformers and what these need.
    """
    lines = packages.read_text().splitlines() if packages else []
    frozen = (re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([^;\s]+))?", line) for line in lines)
    there = {canonicalize_name(line[1]): line[2] or "" for line in frozen if line}
    ours = distribution("choosy-tuning").requires or ()
    wanted = needed([*ours, *ALSO], {*needed(GIVEN, {HUB}), HUB, *UNUSED}, there)
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in sorted(wanted.items()):
        print(f"{name} {version}", flush=True)
        if not download(f"{name}=={version}", folder, python):
            sys.exit(f"{name} {version} has no wheel for Python {python}; install it on the machine itself.")
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{folder}: {size / 1e6:.0f} MB; on the machine itself: python benchmarks/gpu.py --wheels {folder.name}")


def download(package: str, folder: Path, python: str) -> bool:
    """Bring a package's wheel into a folder, or make it where it is Python code alone; False if neither goes."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC]
    older = ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    of = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms, *older]
    found = subprocess.run([*pip, "download", "-q", "--no-deps", *of, "-d", folder, package], capture_output=True)
    if found.returncode == 0:
        return True
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", made, package], check=True)
        (wheel,) = Path(made).glob("*.whl")
        if wheel.name.endswith("-none-any.whl"):
            shutil.copy(wheel, folder)
        return (folder / wheel.name).exists()


def use(folder: Path, words: Sequence[str]) -> None:
    """Restart a Python command with a folder's wheels and this checkout, which is not installed, on its path."""
    site = Path(tempfile.mkdtemp(prefix="choosy-site-"))
    found = sorted(map(str, folder.glob("*.whl")))
    if not found:
        sys.exit(
            f"{folder} holds no wheel; python benchmarks/gpu.py --carry {folder} fills it, where there is a network."
        )
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        site,
    ]
    subprocess.run([*install, *found], check=True)
    (site / "choosy").mkdir()
    for path in (ROOT / "src" / "choosy").iterdir():
        (site / "choosy" / path.name).symlink_to(path)
    (site / "choosy" / "conf").symlink_to(ROOT / "conf")
    paths = [str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execv(sys.executable, [sys.executable, *words])
