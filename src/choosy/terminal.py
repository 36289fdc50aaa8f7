"""Writes lines to the terminal, in which text of others steers nothing."""

from __future__ import annotations

import codecs
import io
import logging
import sys
from typing import NoReturn, TextIO

from choosy.foreign import visible
from choosy.redaction import scrub
from choosy.version import __version__


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n", with_token: bool = False) -> None:
    """Print a text at once, to standard output unless a file is given; without secrets, unless it has to hold one."""
    print(visible(str(text)) if with_token else shown(str(text)), file=file, end=end, flush=True)


def exit_with(text: str) -> NoReturn:
    """End the process with code 1 and a text on standard error."""
    sys.exit(shown(text))


def shown(text: str) -> str:
    """Return a text without secrets, in which nothing steers the terminal."""
    return visible(scrub(text))


def counted(count: int, things: str) -> str:
    """Return a number of things, which are named in the plural.

    Example:
        >>> counted(1, "start answers"), counted(1200, "labels")
        ('1 start answer', '1,200 labels')
    """
    return f"{count:,} {things[:-1] if count == 1 else things}"


def logger(name: str) -> logging.Logger:
    """Return the logger of a module."""
    log = logging.getLogger(name)
    log.addFilter(_make_visible)
    return log


def _make_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = shown(record.getMessage()), None
    return True


def show_any_letter() -> None:
    """Let a terminal that has few letters show the others as escapes, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="backslashreplace")


def program_version() -> str:
    """Return what --version prints."""
    return f"choosy {__version__}"
