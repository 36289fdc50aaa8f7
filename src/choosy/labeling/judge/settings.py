"""Settings of the requests that a judge sends to its endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RESERVED = frozenset({"model", "messages", "temperature", "seed", "stream", "n", "max_tokens", "max_completion_tokens"})


@dataclass(frozen=True)
class RequestSettings:
    """What every request asks of the model.

    Attributes:
        max_tokens: Longest reply in tokens; a reply that is cut there is invalid.
        limit: What the endpoint calls the longest reply; OpenAI's reasoning models say max_completion_tokens.
        temperature: Of the judge's sampling; None leaves it to the endpoint.
        seed: Of the judge's sampling; None sends none.
        options: Further fields of each request, such as {"reasoning_effort": "low"}.

    Raises:
        ValueError: A value is out of range, or an option sets what the judge sets itself.
    """

    max_tokens: int = 512
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = 0.0
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_value(self.max_tokens >= 1, "request.max_tokens", self.max_tokens, "1 or more")
        if reserved := sorted(RESERVED & self.options.keys()):
            raise ValueError(
                f"labeler.request.options sets {', '.join(reserved)}, which the judge sets itself; options is for "
                "fields that have no line of their own, for instance +labeler.request.options.reasoning_effort=low"
            )
        if self.limit not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(f"labeler.request.limit={self.limit!r}: type max_tokens or max_completion_tokens")

    def fields(self, model: str) -> dict[str, Any]:
        """Return the fields of a request to this model, all but the messages.

        Example:
            >>> RequestSettings(seed=1).fields("toy")
            {'model': 'toy', 'max_tokens': 512, 'temperature': 0.0, 'seed': 1}
        """
        fields = {"model": model, self.limit: self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {**{name: value for name, value in fields.items() if value is not None}, **self.options}


@dataclass(frozen=True)
class Retries:
    """How often a failed request is sent again.

    Attributes:
        count: Most retries of one request.
        first_wait: Seconds before the first retry; each further wait is twice as long, with random jitter.
        longest_wait: Longest wait in seconds; an endpoint that asks for a longer one (Retry-After) stops the run.
    """

    count: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        require_value(self.count >= 0, "endpoint.retries.count", self.count, "0 or more")
        more_than_zero("endpoint.retries.first_wait", self.first_wait)
        more_than_zero("endpoint.retries.longest_wait", self.longest_wait)


@dataclass(frozen=True)
class RateLimit:
    """What the endpoint allows in a minute; None sets no limit.

    Attributes:
        requests_per_minute: Requests sent.
        tokens_per_minute: Tokens of prompts and completions.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        more_than_zero("endpoint.rate_limit.requests_per_minute", self.requests_per_minute)
        more_than_zero("endpoint.rate_limit.tokens_per_minute", self.tokens_per_minute)


@dataclass(frozen=True)
class Timeouts:
    """How long one try may take, in seconds.

    Attributes:
        connect: Until there is a connection.
        read: Between two parts of a reply.
        total: From the first byte sent to the last one received.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 120.0

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            more_than_zero(f"endpoint.timeouts.{name}", getattr(self, name))


@dataclass(frozen=True)
class Prices:
    """Money per million tokens.

    Attributes:
        prompt: Of a prompt.
        completion: Of a completion.
    """

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        require_value(self.prompt >= 0, "endpoint.prices.prompt", self.prompt, "0 or more")
        require_value(self.completion >= 0, "endpoint.prices.completion", self.completion, "0 or more")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the money for one request.

        Example:
            >>> Prices(prompt=2.0, completion=8.0).cost(100, 10)
            0.00028
        """
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class EndpointSettings:
    """How requests are sent.

    Attributes:
        concurrency: Most requests in flight, and most pairs whose answers are lost when the run is killed.
        retries: How often a failed request is sent again.
        rate_limit: What the endpoint allows in a minute.
        timeouts: How long one try may take.
        prices: Money per million tokens.
        proxy: Address of a proxy; those of the environment are not used.
    """

    concurrency: int = 8
    retries: Retries = field(default_factory=Retries)
    rate_limit: RateLimit = field(default_factory=RateLimit)
    timeouts: Timeouts = field(default_factory=Timeouts)
    prices: Prices = field(default_factory=Prices)
    proxy: str | None = None

    def __post_init__(self) -> None:
        require_value(self.concurrency >= 1, "endpoint.concurrency", self.concurrency, "1 or more")


def require_value(holds: bool, name: str, value: float | None, wanted: str) -> None:
    """Refuse a value of the labeler's config that is out of range."""
    if not holds:
        raise ValueError(f"labeler.{name}={value}: type {wanted}")


def more_than_zero(name: str, value: float | None) -> None:
    """Refuse a value that is not positive; None passes."""
    require_value(value is None or value > 0, name, value, "more than 0")
