"""Spaces the requests to an endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

from choosy.labeling.judge.settings import RateLimit


class RateLimiter:
    """Spaces requests evenly below a rate limit: it says how long the next one must wait."""

    def __init__(self, limit: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._next_request = self._next_token = 0.0

    def wait(self) -> float:
        """Return the seconds until the next request may be sent."""
        return max(0.0, max(self._next_request, self._next_token) - self._clock())

    def take(self, tokens: int = 0) -> None:
        """Count a request that is sent now and needs about this many tokens."""
        if self.limit.requests_per_minute:
            self._next_request = max(self._next_request, self._clock()) + 60 / self.limit.requests_per_minute
        if self.limit.tokens_per_minute:
            self._next_token = max(self._next_token, self._clock()) + 60 * tokens / self.limit.tokens_per_minute

    def correct(self, estimated: int, used: int) -> None:
        """Replace a request's estimated tokens by those that it used."""
        if self.limit.tokens_per_minute:
            self._next_token += 60 * (used - estimated) / self.limit.tokens_per_minute

    def pause(self, seconds: float) -> None:
        """Send nothing for a while."""
        self._next_request = max(self._next_request, self._clock() + seconds)
