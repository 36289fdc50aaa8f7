"""Who is buying right now: a file for each buyer, locked for as long as its process lives.

The operating system lets go of the lock when a process ends, however it ends, so that nobody waits for the dead and
nothing has to be guessed from clocks or process numbers.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

RESERVE = 1 << 20  # bytes that a buyer sets aside, so that a disk that runs full still holds what has been paid for


class Buyer:
    """A sign of life beside a ledger, which others can look at.

    Attributes:
        name: Of this buyer and no other.
    """

    def __init__(self, ledger: str) -> None:
        self.name = uuid4().hex
        self._file = _sign(ledger, self.name)

    @contextmanager
    def alive(self) -> Iterator[Buyer]:
        """Show the sign, and set some room on the disk aside."""
        with FileLock(self._file):
            try:
                with self._file.open("r+b") as file:
                    file.write(os.urandom(RESERVE))  # noise, as some file systems store zeros nowhere
                yield self
            finally:
                self._file.unlink(missing_ok=True)

    def make_room(self) -> bool:
        """Give up the room that was set aside; False if that has been done before."""
        with suppress(OSError):
            if self._file.stat().st_size:
                os.truncate(self._file, 0)
                return True
        return False


def lives(ledger: str, name: str) -> bool:
    """Whether the buyer of this name still lives; the sign of a dead one is removed."""
    file = _sign(ledger, name)
    if not file.exists():
        return False
    try:
        with FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def bury(ledger: str) -> None:
    """Remove what those left who were killed while they bought."""
    sign = _sign(ledger, "")
    for file in sign.parent.glob(f"{glob.escape(sign.name)}*"):
        lives(ledger, file.name.removeprefix(sign.name))


def _sign(ledger: str, name: str) -> Path:
    return Path(f"{os.path.abspath(ledger)}-buyer-{name}")
