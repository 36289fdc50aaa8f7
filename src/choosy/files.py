"""Replaces files at once: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".unfinished"


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Give a path to write a file or a folder to; when the block ends, it takes the place of `path`.

    The path is in the same folder, which is made if there is none, and the block must create it. What is written is on
    the disk before the old file goes. A block that raises leaves the old file as it was.
    A folder that is replaced by another is absent for a moment, since no system replaces one at once.

    Args:
        path: The file or folder.
        private: Whether a file that is new is for its owner alone; one that is there keeps its permissions.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/numbers.txt") as unfinished:
        ...         _ = unfinished.write_text("1 2 3")
        ...     Path(folder, "numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    make_folder(path.parent)
    unfinished, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}") for _ in range(2))
    try:
        if private:
            create_private(unfinished, like=path)
        yield unfinished
        for written in (*unfinished.rglob("*"), unfinished):
            if not private:
                open_as_others(written)
            flush(written)
        if path.is_dir():
            os.replace(path, old)
        os.replace(unfinished, path)
        flush(path.parent)
    finally:
        for left in (*path.parent.glob(f"{glob.escape(unfinished.name)}*"), old):  # SQLite's journals too
            _remove(left)


@contextmanager
def replacing_files(folder: str | Path) -> Iterator[Path]:
    """Give a folder to write files to; when the block ends, each takes the place of the one of its name in `folder`.

    Other files in `folder` stay. Nothing is written into a file that is there, which may have a second name elsewhere.
    """
    folder = Path(folder)
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=SUFFIX, dir=folder.parent) as new:
        yield Path(new)
        for file in sorted(path for path in Path(new).rglob("*") if path.is_file()):
            open_as_others(file)
            flush(file)
            place = folder / file.relative_to(new)
            make_folder(place.parent)
            os.replace(file, place)
        flush(folder)


@contextmanager
def new_database(path: str | Path) -> Iterator[Path]:
    """Give a path to write an SQLite file to, as `replacing` does; the file is for its owner alone.

    The journals of a deleted file of the same name, which SQLite would take for those of the new one, are deleted too.
    """
    for ending in ("-wal", "-shm", "-journal"):
        Path(f"{path}{ending}").unlink(missing_ok=True)
    with replacing(path, private=True) as unfinished:
        yield unfinished


def name_of_paths(*paths: str) -> str:
    """Return a file name that tells paths from others: their parts, from the current folder on if they lie in it.

    Example:
        >>> name_of_paths("./runs/a/adapter"), name_of_paths("/data/test.csv", "owner/pairs:train")
        ('runs-a-adapter', 'data-test.csv+owner-pairs-train')
    """
    here, names = Path.cwd(), []
    for path in map(os.path.abspath, map(os.path.expanduser, paths)):
        inside = Path(path).is_relative_to(here) and Path(path) != here
        whole = Path(path).relative_to(here) if inside else Path(path)
        names.append(re.sub(r"[^\w.+-]+", "-", "-".join(whole.parts)).strip("-"))
    name = "+".join(names)  # a file name has 255 bytes at most
    return name if len(name) <= 80 else f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{name[-71:]}"


def create_private(path: Path, *, like: Path | None = None) -> None:
    """Create an empty file for its owner alone, or with the permissions of another one, unless it is there."""
    with suppress(FileExistsError):
        os.close(for_owner(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        if like is not None and like.exists():
            path.chmod(like.stat().st_mode & 0o777)


def for_owner(path: str | Path, flags: int) -> int:
    """Open a file, as the `opener` of `open`; one that is new is for its owner alone."""
    return os.open(path, flags, 0o600)


def open_as_others(file: Path) -> None:
    """Give weights, which safetensors makes for their owner alone, the permissions of any new file."""
    if file.suffix == ".safetensors" and not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600:
        (other := file.with_name(f"{file.name}{SUFFIX}")).touch()
        file.chmod(other.stat().st_mode & 0o777)
        other.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder that is not there, with those above it, and have the system write their names to the disk."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        flush(path.parent)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes had begun to write anywhere below the folder."""
    for path in list(Path(folder).rglob(f".*{SUFFIX}*")):  # SQLite writes its journal beside its file
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems flush no folder
            raise
    finally:
        os.close(descriptor)
