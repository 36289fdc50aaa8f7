"""Files with a checksum of their own bytes, by which one that has changed on the disk is noticed.

The checksum stands after `sha256:`, in the first bytes of a text or in the last ones of another file, and is of all
bytes but its own digits. Any reader of YAML or JSON reads a sealed text: in YAML the checksum is a comment, in JSON the
entry `checksum`. A text without one, as a user or an earlier version has written it, is read as it stands.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from choosy.files import replacing
from choosy.options.yaml_text import load_yaml

MARK = b"sha256:"
DIGITS = 64
BLANK = "sha256:" + "0" * DIGITS  # in the place of the checksum before it is known
ENTRY = "checksum"  # its name in JSON
HEAD = 400  # bytes at the start of a text in which it stands


def seal(file: BinaryIO, *, tail: int = 0) -> None:
    """Write the checksum of a file in the place of `BLANK`, which its last bytes hold, so many; if 0, its first."""
    at = _place(file, tail)
    assert at is not None
    digest = _digest(file, at)
    file.seek(at)
    file.write(digest)


def is_whole(file: BinaryIO, *, tail: int = 0) -> bool | None:
    """Whether a file is as it was when it was sealed; None for one without a checksum.

    Example:
        >>> file = BytesIO(f"# {BLANK} and more".encode())
        >>> seal(file)
        >>> is_whole(file), is_whole(BytesIO(file.getvalue()[:-1])), is_whole(BytesIO(b"more"))
        (True, False, None)
    """
    at = _place(file, tail)
    if at is None:
        digits = re.search(b"[0-9a-f]{%d}" % DIGITS, _region(file, tail)[1])
        return None if digits is None else False  # the mark before the digits is what was changed
    file.seek(at)
    return file.read(DIGITS) == _digest(file, at)


def _region(file: BinaryIO, tail: int) -> tuple[int, bytes]:
    """Where the part of a file begins in which its checksum stands, and the part."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - tail) if tail else 0)
    return start, file.read(tail or HEAD)


def _place(file: BinaryIO, tail: int) -> int | None:
    """Where the digits of a file's checksum begin; None if it has none."""
    start, region = _region(file, tail)
    at = region.rfind(MARK) if tail else region.find(MARK)
    return None if at < 0 else start + at + len(MARK)


def _digest(file: BinaryIO, at: int) -> bytes:
    """The checksum of all bytes but the digits that begin at a place."""
    size = file.seek(0, os.SEEK_END)
    sha = hashlib.sha256()
    for start, stop in ((0, at), (at + DIGITS, size)):
        file.seek(start)
        while part := file.read(max(0, min(2**20, stop - file.tell()))):
            sha.update(part)
    return sha.hexdigest().encode()


# -- texts -----------------------------------------------------------------------------------------------------


def write_yaml(path: Path, text: str) -> None:
    """Replace a file by YAML, or another text in which # begins a comment; the first line is one with its checksum."""
    _write(path, f"# {BLANK}\n{text}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by JSON, with its checksum as the first entry."""
    _write(path, json.dumps({ENTRY: BLANK, **content}, indent=2, allow_nan=False) + "\n")


def write_line(path: Path, line: str) -> None:
    """Replace a file by a line, with its checksum in the next one."""
    _write(path, f"{line}\n{BLANK}\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished, unfinished.open("w+b") as file:
        file.write(text.encode())
        seal(file)


def read_yaml(path: Path, kind: type = dict) -> Any:
    """Read a file of YAML that holds a mapping, or another kind of thing.

    Raises:
        ValueError: It is not there, damaged or edited, or holds something else; the message names it.
    """
    text = read_text(path)
    try:
        found = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no YAML ({str(error).splitlines()[0]}).") from error
    return _of_kind(found, kind, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of JSON that holds an object; it is returned without its checksum.

    Raises:
        ValueError: It is not there, damaged or edited, or holds something else; the message names it.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}).") from error
    return {name: value for name, value in _of_kind(found, dict, path).items() if name != ENTRY}


def read_line(path: Path, pattern: str) -> str:
    """Read the line of a file; one without a checksum is read if all of it matches the pattern.

    Raises:
        ValueError: It is not there, damaged or edited; the message names it.
    """
    text = read_text(path)
    if MARK.decode() not in text and not re.fullmatch(pattern, text.removesuffix("\n")):
        raise ValueError(f"{path} is damaged: {'a part of it is missing' if text else 'it is empty'}.")
    return text.partition("\n")[0]


def read_text(path: Path) -> str:
    """Read a text with its checksum.

    Raises:
        ValueError: It is not there, damaged or edited; the message names it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {str(error.strerror).lower()}.") from error
    if is_whole(BytesIO(raw)) is False:
        raise ValueError(
            f"{path} is not as it was written: it is damaged, or was edited. Put back a copy of it. If you have edited "
            "it, delete the line with its checksum (sha256:...), and it is read as it stands."
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text in UTF-8.") from error


def _of_kind(found: Any, kind: type, path: Path) -> Any:
    if not isinstance(found, kind):
        held = "nothing" if found is None else f"a {type(found).__name__}"
        raise ValueError(f"{path} is damaged: wanted a {kind.__name__}, and it holds {held}.")
    return found
