"""Checksums of a tuned model's files, by which one that has changed on the disk is noticed.

They are in a file as `sha256sum -c SHA256SUMS` reads it, with its own checksum in a comment.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from choosy.sealed import read_text, write_yaml

NAME = "SHA256SUMS"
OPEN = (NAME, "README.md", "curves.png")  # what is not checked: the card may be edited, and has the newest curves


def write_checksums(folder: str | Path) -> None:
    """Write the checksums of a folder's files, once all of them are there."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name not in OPEN)
    lines = [f"{_sha(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_yaml(Path(folder) / NAME, "".join(lines))


def forget_checksums(folder: str | Path) -> None:
    """Delete the checksums of a folder's files, which are to be written anew."""
    (Path(folder) / NAME).unlink(missing_ok=True)


def refuse_changed(folder: str | Path) -> None:
    """Refuse a folder in which a file is not as it was written; one without checksums is another program's.

    Raises:
        ValueError: The message names the file.
    """
    if not (sums := Path(folder).expanduser() / NAME).is_file():
        return
    for line in read_text(sums).splitlines()[1:]:  # the first one is of the checksums themselves
        digits, _, name = line.partition("  ")
        file = sums.parent / name
        if not file.is_file():
            raise ValueError(f"{file} is missing, and was written with the model; put back a copy of it.")
        if _sha(file) != digits:
            raise ValueError(
                f"{file} is not as it was written: it is damaged, or was edited. Put back a copy of it. If you have "
                f"edited it, delete {sums}, and the folder is read as it stands."
            )


def _sha(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
