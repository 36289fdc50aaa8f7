"""Errors that a user can mend."""

from __future__ import annotations

import re
from collections.abc import Sequence


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
