"""The lock of a run's folder, which the first process of a run holds for all of them, from the start to the end."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from choosy.files import make_folder
from choosy.resume.failed_starts import LOCK, is_first_process
from choosy.terminal import logger

UNABLE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system that does not lock

HELD: dict[Path, FileLock] = {}  # the locks of this process, by folder

log = logger(__name__)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other processes from playing a run in this folder within the block; the ranks of this run may.

    Raises:
        ValueError: Another process plays one; the message says which.
    """
    is_new = not folder.exists()
    taken = is_first_process() and hold(folder)
    try:
        yield
    finally:
        if taken:
            release(folder)
        if taken and is_new:
            with suppress(OSError):  # it is not empty, or it is removed
                folder.rmdir()


def hold(folder: Path) -> bool:
    """Lock a folder, and return whether this process had not locked it before.

    Raises:
        ValueError: Another process holds the lock; the message says which.
    """
    refuse_unwritable(folder)
    file = folder.resolve() / LOCK
    if (held := HELD.get(file.parent)) and held.is_locked:
        return False
    lock = FileLock(file, thread_local=False, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another process plays a run in {folder}{_holder(file)}. Wait until it has ended, end it, or choose "
            "another name=... or run_dir=... for another run."
        ) from None
    except OSError as error:
        if error.errno not in UNABLE:
            raise ValueError(
                f"{file} cannot be locked ({error.strerror}). Delete it if no process plays a run in {folder}, or "
                "choose another run_dir=..."
            ) from error
        log.warning(
            "The disk of %s does not lock files (%s), so nothing keeps a second process from playing this run at the "
            "same time: start no other.",
            folder,
            error.strerror,
        )
        return False
    HELD[file.parent] = lock
    return True


def release(folder: Path) -> None:
    """Give a folder free that this process has locked."""
    lock = HELD.pop(folder.resolve())
    with suppress(OSError):  # the folder takes no change any more, which is what has ended the run
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def refuse_unwritable(folder: Path) -> None:
    """Make the folder of a run, and refuse one that nothing can be written into."""
    try:
        make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error}); choose another run_dir=..."
        ) from error


def _sign(descriptor: int) -> None:
    """Write into the lock's file who holds it."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(about).encode())


def _holder(file: Path) -> str:
    """Return who holds a lock, as a part of a sentence; "" where that is not known."""
    try:
        about = json.loads(file.read_text())
        return f": process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # its holder has not written it yet
        return ""
