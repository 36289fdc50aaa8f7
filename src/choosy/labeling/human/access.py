"""Handle the secret that opens the labeling page."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping

TOKEN = "CHOOSY_LABELING_TOKEN"
SHORTEST_TOKEN = 16


def token_from(environ: Mapping[str, str]) -> str:
    """Return the token named in the environment, or else a new random one.

    Raises:
        ValueError: The environment's token is too short, or cannot stand in an address.
    """
    token = environ.get(TOKEN)
    if token is None:
        return secrets.token_urlsafe(24)
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"{TOKEN} has {len(token)} characters, which can be guessed; "
            f"wanted {SHORTEST_TOKEN} or more, or no such variable"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", token):
        raise ValueError(f"{TOKEN} has characters that an address cannot hold; use letters, digits, - and _")
    return token


def same(given: str, token: str) -> bool:
    """Compare in constant time, so that the time taken says nothing about the token."""
    return hmac.compare_digest(given.encode(), token.encode())
