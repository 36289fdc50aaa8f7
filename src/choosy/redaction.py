"""Keeps secrets out of configurations, ledgers, logs, messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

VARIABLE = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
ENTRY = re.compile(r"(api_?key|access_?key|secret|password|passwd|(api|auth|access|hf)_?token)$", re.IGNORECASE)
IN_ADDRESS = re.compile(  # a password in an address, and a token behind it
    r"(?<=://)[^/\s@]*:[^/\s@]+(?=@)"
    r"|(?<=[?&])(?:[\w-]*[_-])?(?:(?:api|access|auth)?(?:token|key)|(?:client)?secret|password)=[^&\s]{8,}",
    re.IGNORECASE,
)
NAMED: set[str] = set()  # variables that hold a key, whatever they are called, as a configuration has said
SHORTEST = 8  # a shorter value, such as EMPTY, is a word that may stand in any text


def scrub(text: str) -> str:
    """The text without passwords in addresses, and without the values of variables that are named like a secret.

    Example:
        >>> os.environ["DOC_API_KEY"] = "sk-0123456789"
        >>> scrub("401: wrong key sk-0123456789")
        '401: wrong key [DOC_API_KEY]'
        >>> del os.environ["DOC_API_KEY"]
    """
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if len(value) >= SHORTEST and (name in NAMED or VARIABLE.search(name)):
            text = text.replace(value, f"[{name}]")
    return IN_ADDRESS.sub("[password]", text)


def refuse_secrets(config: Any) -> None:
    """Refuse a configuration that holds a secret's value or name: it is written into the run's folder."""
    NAMED.update(value for name, value in texts(config) if name.rpartition(".")[2] == "key_env")
    for name, value in texts(config):
        named = ENTRY.search(name.rpartition(".")[2])
        if scrub(value) != value or (named and len(value) >= SHORTEST):
            raise ValueError(
                f"{name} holds a secret, and the configuration is written into the run's folder; keep it in an "
                "environment variable instead, and give the name of that where the labeler asks for it, as in "
                "labeler.key_env=OPENAI_API_KEY; trackers read WANDB_API_KEY, MLFLOW_TRACKING_URI, "
                "MLFLOW_TRACKING_PASSWORD and TRACKIO_SERVER_URL themselves"
            )


def refuse_secret_words(words: Sequence[str]) -> None:
    """Refuse a secret that is typed, before Hydra writes the words of a sweep into its folder."""
    typed = [word.lstrip("+~").partition("=") for word in words]
    refuse_secrets([{name: value} if equals else {"a word that is typed": name} for name, equals, value in typed])


def texts(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a configuration with its dotted name."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from texts(value, name)
    elif isinstance(node, str):
        yield name, node
