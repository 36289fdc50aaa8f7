"""Errors that a user can mend."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence


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
