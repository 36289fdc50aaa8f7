"""Names the file of weights that cannot be read, or that would run code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open

ERRORS = (SafetensorError, RuntimeError, EOFError, OSError, pickle.UnpicklingError)  # of files of weights


@contextmanager
def refusing_damaged(source: str) -> Iterator[None]:
    """Raise a ValueError where the weights of a folder or hub id, which are loaded within the block, cannot be read.

    An error whose cause is not in the files passes.
    """
    try:
        yield
    except ERRORS as error:
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(f"{source}: its weights have other sizes than its config.json says.") from error
        for file in _files(source):
            if why := _fault(file):
                raise ValueError(
                    f"{file} is damaged, or holds no weights ({why}); copy or download it again."
                ) from error
        if isinstance(error, OSError) and Path(source).expanduser().is_dir():
            raise ValueError(f"{source} does not load: {_first_sentence(error)}.") from error
        raise


def _files(source: str) -> list[Path]:
    """Return the files of weights of a folder, or of a hub id in the cache."""
    from huggingface_hub import try_to_load_from_cache  # takes a moment to import

    folder = Path(source).expanduser()
    if not folder.is_dir():
        config = None
        with suppress(ValueError):  # a path, which is no hub id
            config = try_to_load_from_cache(source, "config.json")
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def refuse_checkpoint(checkpoint: str) -> None:
    """Refuse a checkpoint of Lightning, in one file or sharded, that cannot be read or would run code."""
    from choosy.parallel.sharding import unpickled  # imports torch

    folder = Path(checkpoint)
    try:
        parts: list[Path | IO[bytes]] = [folder / "meta.pt", *unpickled(folder)] if folder.is_dir() else [folder]
        why = next(filter(None, map(_fault, parts)), "")
    except (*ERRORS, AttributeError, KeyError, TypeError) as error:  # of a .metadata that torch did not write
        why = _first_sentence(error)
    if why:
        raise ValueError(f"The checkpoint {checkpoint} is damaged ({why}); give another one, or ckpt_path=last.")


def _fault(file: Path | IO[bytes]) -> str:
    """Return why a file of weights cannot be read; "" for one that can."""
    import torch

    try:
        if isinstance(file, Path) and file.suffix == ".safetensors":
            with safe_open(str(file), "pt"):
                return ""
        torch.load(file, map_location="meta", weights_only=True)
    except ERRORS as error:
        named = re.search(r"\bGLOBAL (\S+)", str(error))
        return f"it would run {named[1]}, which no weights need" if named else _first_sentence(error)
    return ""


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
