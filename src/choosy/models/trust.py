"""Decides whether code that comes with a model's files may run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from choosy.errors import in_a_line
from choosy.models.damaged import ERRORS

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
        ValueError: It does not load without its own code, or a file of it is none that the library can read.
    """
    try:
        return load(source, **{ARGUMENT: trusted}, **options)
    except Exception as error:  # a configuration of others may make a library raise anything
        if trusted or (isinstance(error, ERRORS) and not isinstance(error, RecursionError)):
            raise
        if ARGUMENT in str(error):
            how = f"read it, and type {option}=true if you trust it" if option else "name a model that needs none"
            raise ValueError(
                f"{source} loads only with code of its own, which would run on this machine; {how}."
            ) from error
        if type(error) is ValueError:  # a sentence of the library
            raise
        raise ValueError(f"{source} does not load: {in_a_line(error)}.") from error
