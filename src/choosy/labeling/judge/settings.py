"""Settings of the requests that a judge sends to its endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RESERVED = frozenset({"model", "messages", "temperature", "seed", "stream", "n", "max_tokens", "max_completion_tokens"})


@dataclass(frozen=True)
class RequestSettings:
    """What every request asks of the model; None sends no such field."""

    max_tokens: int = 512  # a reply that is cut there is invalid
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # the name of this field at the endpoint
    temperature: float | None = 0.0
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields

    def __post_init__(self) -> None:
        require("request", least=1, max_tokens=self.max_tokens)
        if reserved := sorted(RESERVED & self.options.keys()):
            raise ValueError(
                f"labeler.request.options sets {', '.join(reserved)}, which the judge sets itself; options is for "
                "fields that have no line of their own, for instance +labeler.request.options.reasoning_effort=low"
            )
        if self.limit not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(f"labeler.request.limit={self.limit!r}: type max_tokens or max_completion_tokens")

    def fields(self, model: str) -> dict[str, Any]:
        """Return the fields of a request to this model, all but the messages."""
        fields = {"model": model, self.limit: self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {**{name: value for name, value in fields.items() if value is not None}, **self.options}


@dataclass(frozen=True)
class Retries:
    """How often a failed request is sent again; waits double, with random jitter."""

    count: int = 6
    first_wait: float = 1.0  # seconds
    longest_wait: float = 60.0  # seconds; an endpoint that asks for a longer one (Retry-After) stops the run

    def __post_init__(self) -> None:
        require("endpoint.retries", least=0, count=self.count)
        require("endpoint.retries", first_wait=self.first_wait, longest_wait=self.longest_wait)


@dataclass(frozen=True)
class RateLimit:
    """What the endpoint allows in a minute; None sets no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None  # of prompts and completions

    def __post_init__(self) -> None:
        require("endpoint.rate_limit", **vars(self))


@dataclass(frozen=True)
class Timeouts:
    """How many seconds one try may take."""

    connect: float = 10.0
    read: float = 60.0  # between two parts of a reply
    total: float = 120.0  # from the first byte sent to the last one received

    def __post_init__(self) -> None:
        require("endpoint.timeouts", **vars(self))


@dataclass(frozen=True)
class Prices:
    """Money per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        require("endpoint.prices", least=0, **vars(self))

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the money for one request."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class EndpointSettings:
    """How requests are sent."""

    concurrency: int = 8  # most requests in flight, and most pairs whose answers are lost when the run is killed
    retries: Retries = field(default_factory=Retries)
    rate_limit: RateLimit = field(default_factory=RateLimit)
    timeouts: Timeouts = field(default_factory=Timeouts)
    prices: Prices = field(default_factory=Prices)
    proxy: str | None = None  # those of the environment are not used

    def __post_init__(self) -> None:
        require("endpoint", least=1, concurrency=self.concurrency)


def require(group: str, *, least: int | None = None, **values: float | None) -> None:
    """Refuse values of the labeler's config below `least`, or not above 0 without one; None passes."""
    for name, value in values.items():
        if value is not None and not (value > 0 if least is None else value >= least):
            wanted = "more than 0" if least is None else f"{least} or more"
            raise ValueError(f"labeler.{group}.{name}={value}: type {wanted}")
