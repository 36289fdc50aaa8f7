"""Writes lines to the terminal, in which text of others steers nothing."""

from __future__ import annotations

import io
import logging
import sys
from typing import NoReturn, TextIO

from choosy.foreign import visible


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print a text at once, to standard output unless a file is given."""
    print(visible(str(text)), file=file, end=end, flush=True)


def exit_with(text: str) -> NoReturn:
    """End the process with code 1 and a text on standard error."""
    sys.exit(visible(text))


def logger(name: str) -> logging.Logger:
    """Return the logger of a module."""
    log = logging.getLogger(name)
    log.addFilter(_make_visible)
    return log


def _make_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), None
    return True


def show_any_letter() -> None:
    """Let a terminal that has few letters show the others as escapes, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
