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

    What is written is on the disk before the old file goes. A block that raises leaves the old file as it was.

    Args:
        path: What is replaced; its folder is made if there is none.

    Yields:
        A path in the same folder that does not exist yet; the block must create it.

    Example:
        >>> with replacing("numbers.txt") as unfinished:
        ...     _ = unfinished.write_text("1 2 3")
        >>> Path("numbers.txt").read_text()
        '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}")
    try:
        yield unfinished
        if unfinished.is_file():
            _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    finally:
        _remove(unfinished)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes had begun to write anywhere below the folder."""
    for path in list(Path(folder).rglob(f".*{SUFFIX}")):
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
