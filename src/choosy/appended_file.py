"""A text that grows by lines, with a checksum beside it by which a change on the disk is noticed."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from choosy.files import replacing


class AppendedFile:
    """A text and, in a file beside it, the SHA-256 and the number of its bytes.

    The checksum is written after the text, so that a killed process may leave lines that it does not cover; these are
    read as they stand. A text without a checksum, as an earlier version wrote it, is read as it stands too.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = AppendedFile(Path(folder, "numbers.csv"))
        ...     file.replace("one\\n")
        ...     file.append("two\\n")
        ...     AppendedFile(Path(folder, "numbers.csv")).read()
        'one\\ntwo\\n'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(f"{path.name}.sha256")
        self._sha = hashlib.sha256()
        self._bytes = 0

    def replace(self, text: str) -> None:
        """Write this text in the place of what was there."""
        self._beside.unlink(missing_ok=True)  # until the new one is there, the text has none
        with replacing(self.path) as unfinished:
            unfinished.write_bytes(text.encode())
        self._sha, self._bytes = hashlib.sha256(), 0
        self._count(text.encode())

    def append(self, text: str) -> None:
        """Write more at the end of what `replace` has written."""
        with self.path.open("ab") as file:
            file.write(text.encode())
        self._count(text.encode())

    def _count(self, raw: bytes) -> None:
        self._sha.update(raw)
        self._bytes += len(raw)
        checksum = f"{self._sha.hexdigest()} {self._bytes:019}\n".encode()
        if not self._beside.exists():  # at once, so that a full disk leaves none that is empty
            with replacing(self._beside) as unfinished:
                unfinished.write_bytes(checksum)
            return
        descriptor = os.open(self._beside, os.O_WRONLY)
        try:
            os.write(descriptor, checksum)  # as long as the old one
        finally:
            os.close(descriptor)

    def read(self) -> str:
        """Return the text; "" if there is none.

        Raises:
            ValueError: It is not as it was written; the message names it.
        """
        if not self.path.exists():
            return ""
        raw = self.path.read_bytes()
        if self._beside.exists():
            found = re.fullmatch(rb"([0-9a-f]{64}) (\d{19})\n", self._beside.read_bytes())
            size = int(found[2]) if found else 0
            if not found or len(raw) < size or hashlib.sha256(raw[:size]).hexdigest().encode() != found[1]:
                raise ValueError(f"{self.path}, or the checksum beside it, is damaged")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is damaged: it is no text in UTF-8") from error
