"""Replaces files at once: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".unfinished"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write a file or a folder to; when the block ends, it takes the place of `path`.

    The path is in the same folder, which is made if there is none, and the block must create it. What is written is on
    the disk before the old file goes. A block that raises leaves the old file as it was.
    A folder that is replaced by another is absent for a moment, since no system replaces one at once.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/numbers.txt") as unfinished:
        ...         _ = unfinished.write_text("1 2 3")
        ...     Path(folder, "numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}") for _ in range(2))
    try:
        yield unfinished
        for written in (*unfinished.rglob("*"), unfinished):
            _flush(written)
        if path.is_dir():
            os.replace(path, old)
        os.replace(unfinished, path)
        _flush(path.parent)
    finally:
        _remove(unfinished)
        _remove(old)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes had begun to write anywhere below the folder."""
    for path in list(Path(folder).rglob(f".*{SUFFIX}*")):  # SQLite writes its journal beside its file
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
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
