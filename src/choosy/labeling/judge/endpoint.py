"""Connect to an endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from choosy.labeling.judge.rate_limiter import RateLimiter
from choosy.labeling.judge.session import Session
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings


class Endpoint:
    """Where a chat model is asked; every request goes to this one address.

    The key is read from the environment when a session begins, and stored in no attribute.

    Args:
        base_url: Its address, up to and without /chat/completions.
        key_env: Name of the environment variable that holds the key; None if it asks for none.
        settings: How requests are sent.

    Raises:
        ValueError: The address or the key cannot be used.
    """

    def __init__(self, base_url: str, *, key_env: str | None, settings: EndpointSettings) -> None:
        self.address = checked_url(base_url, "base_url").rstrip("/") + "/chat/completions"
        self.key_env = key_env
        self.settings = settings
        self._limiter = RateLimiter(settings.rate_limit)
        if settings.proxy:
            checked_url(settings.proxy, "endpoint.proxy")
        key_from_environment(key_env)  # so that a missing key is reported before the first round

    @asynccontextmanager
    async def session(self, model: str, request: RequestSettings) -> AsyncIterator[Session]:
        """Open a session with a model; its connections are closed at the end of the block."""
        settings, key = self.settings, key_from_environment(self.key_env)
        async with httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.timeouts.read, connect=settings.timeouts.connect, pool=None),
            limits=httpx2.Limits(max_connections=settings.concurrency),
            trust_env=False,  # ignore proxies and .netrc that the config does not name
            proxy=settings.proxy,
            follow_redirects=False,
        ) as client:
            yield Session(
                client, self.address, model, request=request, settings=settings, limiter=self._limiter, key=key
            )


def key_from_environment(name: str | None) -> str | None:
    """Return the key in an environment variable; errors repeat neither the key nor the name that was typed.

    Raises:
        ValueError: There is none, or it cannot stand in a header.
    """
    if name is None:
        return None
    key = os.environ.get(name) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else None
    if not key:
        raise ValueError(
            "labeler.key_env must be the name of an environment variable that holds the key, and no such "
            "variable is set; export the key and type the variable's name (never the key itself), for instance "
            "labeler.key_env=OPENAI_API_KEY, or null for an endpoint that asks for none"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            "the environment variable that labeler.key_env names holds blanks, line breaks or letters "
            'beyond ASCII, which no key has; set it again, for instance export OPENAI_API_KEY="$(cat key.txt)"'
        )
    return key


def checked_url(url: str, name: str) -> str:
    """Return an address that may stand in a config: http or https, with nothing secret in it.

    Args:
        url: The address.
        name: The key of the labeler's config that holds it.

    Raises:
        ValueError: It may not; a secret in it is not repeated.

    Example:
        >>> checked_url("http://localhost:8000/v1", "base_url")
        'http://localhost:8000/v1'
    """
    try:
        parts = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        parts = httpx2.URL("")
    if parts.userinfo or parts.query or parts.fragment or "@" in url:
        raise ValueError(
            f"labeler.{name} holds a name, a password or a query, and would be written to config.yaml; "
            "type it without, put the key into an environment variable and its name into labeler.key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(
            f"labeler.{name}={url!r} is no http address; type for instance labeler.{name}=http://localhost:8000/v1"
        )
    return url
