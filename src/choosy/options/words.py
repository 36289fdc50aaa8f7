"""Reads the words after a command."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn


class Words(ArgumentParser):
    """Answers a mistake in a sentence that ends with the whole line, as a ValueError.

    Example:
        >>> words = Words("choosy merge")
        >>> _ = words.add_argument("run_dir", metavar="RUN", help="the folder of the run")
        >>> _ = words.add_argument("folder", metavar="DIR", help="a new folder for the model")
        >>> words.parse_args(["runs/demo"])
        Traceback (most recent call last):
        ValueError: choosy merge lacks DIR, a new folder for the model. Type choosy merge RUN DIR
    """

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError that says what is missing or wrong."""
        _, _, missing = message.partition("arguments are required: ")
        said = {action.metavar or action.dest: action.help for action in self._actions}
        lacks = " and ".join(f"{name}, {said[name]}" if said.get(name) else name for name in missing.split(", "))
        wrong = f"{self.prog} lacks {lacks}" if missing else f"{self.prog}: {message}"
        line = " ".join(self.format_usage().removeprefix("usage: ").replace("[-h] ", "").split())
        raise ValueError(f"{wrong}. Type {line}")
