"""Decides whether code that comes with a model's files may run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ARGUMENT = "trust_remote_code"  # of the functions of transformers and sentence-transformers, which name it in errors


def loaded(load: Callable[..., Any], source: Any, *, trusted: bool = False, option: str = "", **options: Any) -> Any:
    """Load a folder or hub id by a function of a library, without asking whether code that comes with it may run.

    Args:
        load: The function, such as `AutoTokenizer.from_pretrained`.
        source: The folder or hub id.
        trusted: Whether such code may run after all.
        option: The option that says so, if there is one.
        options: Further arguments of the function.

    Raises:
        ValueError: It does not load without its own code, or the library refuses it.
    """
    try:
        return load(source, **{ARGUMENT: trusted}, **options)
    except ValueError as error:
        if trusted or ARGUMENT not in str(error):
            raise
        how = f"read it, and type {option}=true if you trust it" if option else "name a model that needs none"
        raise ValueError(
            f"{source} loads only with code of its own, which would run on this machine; {how}."
        ) from error
