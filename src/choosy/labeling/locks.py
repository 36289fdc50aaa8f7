"""Locks of processes that buy labels: whether another buyer is alive, and which one buys for a run."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from choosy.terminal import logger
from choosy.types import content_id

RESERVE = 1 << 20  # bytes that each buyer reserves, so that a full disk still has room for labels just paid for
PATIENCE = 2.0  # seconds of waiting, after which it is reported

log = logger(__name__)


class PurchaseLock:
    """The lock of one buyer, in a file beside the ledger, which the system releases however the process ends."""

    def __init__(self, ledger: str) -> None:
        self.name = uuid4().hex
        self._ledger = ledger
        self._file = _lock_file(ledger, self.name)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock, and reserve some room on the disk."""
        with _lock(self._ledger, self._file):
            try:
                with self._file.open("r+b") as file:
                    file.write(os.urandom(RESERVE))  # random bytes, since some file systems do not store zeros
                yield
            finally:
                with suppress(OSError):  # whoever opens the ledger next deletes it
                    self._file.unlink(missing_ok=True)

    def make_room(self) -> bool:
        """Free the reserved room; return False if that was done before."""
        with suppress(OSError):
            if self._file.stat().st_size:
                os.truncate(self._file, 0)
                return True
        return False


@contextmanager
def turn_of(ledger: str, run: str) -> Iterator[None]:
    """Hold the lock of a run, and wait for it where another process or thread buys labels of the same run."""
    file = _lock_file(ledger, content_id(run))
    lock = _lock(ledger, file)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.warning("Waiting for another process that buys labels of the run %s into %s.", run, ledger)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)  # who waits for this file sees that it is gone, and makes another
        lock.release()


def is_alive(ledger: str, name: str) -> bool:
    """Return whether the buyer of this name is alive, and delete its lock file if it is not."""
    file = _lock_file(ledger, name)
    if not file.exists():
        return False
    try:
        with _lock(ledger, file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def remove_stale(ledger: str) -> None:
    """Delete the lock files of dead buyers, and no file of another name."""
    start = _lock_file(ledger, "")
    for file in start.parent.glob(f"{glob.escape(start.name)}*"):
        if re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", name := file.name.removeprefix(start.name)):
            is_alive(ledger, name)


def _lock_file(ledger: str, name: str) -> Path:
    return Path(f"{os.path.realpath(ledger)}-buyer-{name}")  # the same by whatever link


def _lock(ledger: str, file: Path) -> FileLock:
    """A lock that those may hold who may write to the ledger; its owner alone where it is not there yet."""
    mode = os.stat(ledger).st_mode if os.path.exists(ledger) else 0
    return FileLock(file, mode=mode & 0o666 | 0o600)
