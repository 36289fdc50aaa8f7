"""Errors that a user can mend."""

from __future__ import annotations

import json
import linecache
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from choosy.own_code import OURS, is_own
from choosy.redaction import scrub


def json_fault(error: ValueError | RecursionError) -> str:
    """Return what is wrong with a text of JSON and where; the text of one line needs no number of the line.

    Example:
        >>> for text in ('{"a": 1,}', '[1,\\n2'):
        ...     try:
        ...         json.loads(text)
        ...     except json.JSONDecodeError as error:
        ...         print(json_fault(error))
        Expecting property name enclosed in double quotes at column 9
        Expecting ',' delimiter at line 2, column 2
    """
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    line = f"line {error.lineno}, " if "\n" in error.doc else ""
    return f"{error.msg} at {line}column {error.colno}"


class Stopped(ValueError):
    """A run stops with everything bought so far kept; its message ends with what to do, such as to resume the run.

    The commands print the line that resumes it below the message.
    """


class Damaged(Stopped):
    """A run stops since a file that holds answers is not as it was written; no labeler is to blame."""


def name_typed_keys(error: ValueError, place: str) -> None:
    """Put the keys that were typed into the message of an error about a labeler's or an editor's settings.

    Settings such as those of an endpoint do not know whose they are, so that their errors say `labeler.` in each case.

    Args:
        error: What was raised.
        place: Where the object that raised it stands in the configuration.

    Example:
        >>> error = ValueError("labeler.request.max_tokens=0: type 1 or more")
        >>> name_typed_keys(error, "data.run.labels.editor.request")
        >>> error
        ValueError('editor.request.max_tokens=0: type 1 or more')
    """
    parts = r"(?:\.(?:request|endpoint)(?:\..+)?)?"
    found = re.fullmatch(rf"data\.run\.(labels\.(?:labeler|editor|evaluation).*?){parts}", place)
    if found and len(error.args) == 1:
        group = found[1] if found[1].startswith("labels.evaluation") else found[1].removeprefix("labels.")
        error.args = (re.sub(r"\blabeler\.", f"{group}.", str(error)),)


def refuse_none(name: str, value: int) -> None:
    """Refuse a number below 1."""
    if value < 1:
        raise ValueError(f"{name}={value} trains nothing; choose {name} >= 1.")


def refuse_unknown(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not one of those known."""
    if value not in known:
        raise ValueError(f"{name}={value} is none of {', '.join(known)}.")


def full_disk(error: BaseException | None, again: Callable[[], str]) -> str:
    """Return a sentence on a disk that has no room, also where a library has wrapped its error; "" for another error.

    Args:
        error: What was raised.
        again: Returns what to type once there is room; "" for the same again.

    Example:
        >>> print(full_disk(OSError(28, "No space left on device"), lambda: "python train.py ckpt_path=last"))
        The disk has no room (No space left on device). What was written before is kept: make room, and type
          python train.py ckpt_path=last
    """
    while error is not None:
        if found := re.search("No space left on device|Disk quota exceeded|File too large", str(error)):
            typed = again() or "the same again"
            return f"The disk has no room ({found[0]}). What was written before is kept: make room, and type\n  {typed}"
        error = error.__cause__ or error.__context__
    return ""


def is_ours(error: BaseException) -> bool:
    """Whether Choosy's own code has raised an error, and no library or code of the user's."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1].partition(".")[0] in OURS


def raised_at(error: BaseException) -> str:
    """Return the place in code of the user's at which an error was raised, or where what raised it was called.

    Returns:
        Two lines, each behind a line break: the file with the line's number and the function, and the line. "" if no
        code of the user's was called.
    """
    places = [
        (frame.f_code.co_filename, number, frame.f_code.co_name)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if is_own(str(frame.f_globals.get("__name__")), frame.f_code.co_filename)
    ]
    if isinstance(error, SyntaxError) and error.filename and is_own("", error.filename):
        places.append((error.filename, error.lineno or 0, ""))
    for file, number, function in reversed(places):
        if line := linecache.getline(file, number).strip():  # code that a dataclass has made has none
            shown = os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file
            within = f", in {function}" if function not in ("", "<module>") else ""
            return scrub(f"\n  {shown}, line {number}{within}\n    {line}")
    return ""


def in_a_line(error: BaseException) -> str:
    """Return an error of any kind in one line, with its kind.

    Example:
        >>> in_a_line(KeyError("tea")), in_a_line(RuntimeError("The board is broken."))
        ("KeyError: 'tea'", 'RuntimeError: The board is broken')
    """
    return scrub(f"{type(error).__name__}: {error}").rstrip(". ").removesuffix(":")
