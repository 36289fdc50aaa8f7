"""Makes text of others, such as of a model, a server or a file, safe to show."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KEPT = "\n\t\u200c\u200d"  # the last two shape letters and emoji
STEERS = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories of what moves, hides or reorders, and of half characters
FORMULA = tuple("=+-@\t\r\n'")  # what a cell begins with that a spreadsheet does not show as it is


def visible(text: str) -> str:
    r"""Write the characters that could steer a terminal as their escapes; line ends and tabs stay.

    Example:
        >>> print(visible("a\x1b[2Jb\u202ec"))
        a\x1b[2Jb\u202ec
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in KEPT and unicodedata.category(letter) in STEERS
        else letter
        for letter in text
    )


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    r"""Write a table as CSV in which no text is a formula; `from_cell` gives each text back.

    Example:
        >>> csv_text(["name", "reward"], [{"name": "=1+1", "reward": -0.5}])
        "name,reward\n'=1+1,-0.5\n"
    """
    lines = [[row.get(name) for name in columns] for row in rows]
    return "".join(map(_line, [columns, *lines] if header else lines))


def _line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(map(_cell, values))  # so it quotes a lone \r
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run as a formula, and before one that begins with it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def from_cell(text: str) -> str:
    """Return a text as it was before `csv_text` wrote it."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text
