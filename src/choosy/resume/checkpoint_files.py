"""Finds the checkpoints of a run, and what is wrong with them."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from choosy.sealed import BLANK, is_whole, seal

NO_COMMENT = b"\0\0"  # the length of the comment with which an archive ends
METADATA = {  # the globals that torch.distributed.checkpoint names in a sharded checkpoint's .metadata, besides dtypes
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        )
    ),
}
DTYPES = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}


def checkpoints_folder(run_dir: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def last_checkpoint(run_dir: Path) -> Path:
    """Return the checkpoint that is written last, from which `ckpt_path=last` resumes."""
    return checkpoints_folder(run_dir) / "last.ckpt"


def checkpoint_damage(path: Path) -> str | None:
    """Read a checkpoint to its last byte and return what is wrong with it; None if nothing is."""
    if path.is_dir():  # a sharded checkpoint, which torch.distributed finishes with its .metadata
        return _metadata_fault(path / ".metadata")
    try:
        with path.open("rb") as file:
            if (whole := is_whole(file, tail=len(BLANK))) is not None:
                return None if whole else "its bytes are not those that were written"
            return _archive_fault(file)
    except OSError as error:
        return str(error)


def seal_checkpoint(file: BinaryIO) -> None:
    """Put a checksum of all bytes into the comment at the end of the archive that torch has written."""
    file.seek(-len(NO_COMMENT), os.SEEK_END)
    assert file.read() == NO_COMMENT
    file.seek(-len(NO_COMMENT), os.SEEK_END)
    file.write(struct.pack("<H", len(BLANK)) + BLANK.encode())
    seal(file, tail=len(BLANK))


def _archive_fault(file: BinaryIO) -> str | None:
    """What is wrong with a checkpoint without a checksum, as Lightning itself and earlier versions wrote them."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError, struct.error) as error:
        return str(error)  # zipfile believes the names, sizes and flags that it reads
    file.seek(-len(NO_COMMENT), os.SEEK_END)
    if file.read() != NO_COMMENT:
        return "its checksum is cut off"
    return None if bad is None else f"the part {bad} is not what was written"


class _Blank:
    """Takes the place of whatever a pickle builds."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    """Reads a pickle without importing or calling anything that it names."""

    def find_class(self, module: str, name: str) -> type[_Blank]:
        if (module, name) in METADATA or (module == "torch" and name in DTYPES):
            return _Blank
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which no checkpoint needs")


def _metadata_fault(file: Path) -> str | None:
    """Return why a sharded checkpoint's .metadata must not be unpickled, which torch does whatever it holds."""
    if not file.exists():
        return "its .metadata is missing"
    try:
        with file.open("rb") as opened:
            _Reader(opened).load()
    except Exception as error:  # unpickling damaged data may raise any error
        return f"its .metadata: {error}"
    return None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run; None if it has not written any.

    Raises:
        ValueError: It is damaged; the message names the last good one and what to type.
    """
    newest_first = sorted(checkpoints_folder(run_dir).glob("*.ckpt"), key=lambda path: -path.stat().st_mtime)
    last = last_checkpoint(run_dir)
    if last in newest_first:  # it is as new as the round's, of which it is the same file
        newest_first.remove(last)
        newest_first.insert(0, last)
    if not newest_first:
        return None
    why = checkpoint_damage(newest_first[0])
    if why is None:
        return newest_first[0]
    good = next((path for path in newest_first[1:] if checkpoint_damage(path) is None), None)
    how = f"; for the last good one type ckpt_path={good}."
    if good is None:
        how = ", and no other one is whole. Train again on the rounds and labels that are there: type ckpt_path=start."
    raise ValueError(f"The checkpoint {newest_first[0]} is damaged ({why}){how}")
