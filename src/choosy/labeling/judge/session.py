"""Ask an endpoint for chat completions, with retries."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from choosy.labeling.judge.rate_limiter import RateLimiter
from choosy.labeling.judge.replies import (
    Completion,
    completion_in,
    error_message,
    reply_json,
    retry_after,
    token_usage,
)
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings

ChatMessage = dict[str, str]

RETRIED = frozenset({408, 409, 425, 429})  # and 500 or above
MOST_BYTES = 1 << 22  # of a reply; a verdict with its reasons takes a few thousand
SHORTEST_SECRET = 8  # characters; a key such as EMPTY, which local servers take, is no secret
WHAT_TO_CHECK = {
    401: "check the key in the variable that key_env names",
    403: "check the key in the variable that key_env names, and what it may use",
    404: "check base_url, which usually ends with /v1, and the model's name",
    407: "check labeler.endpoint.proxy",
}


class Unanswered(ValueError):
    """The endpoint does not answer, and the message says what to do about it."""


class SessionStopped(Exception):
    """The session was stopped before the request was sent."""


class FailedAttempt(Exception):
    """One attempt failed, and another may succeed.

    Attributes:
        after: Seconds that the endpoint asks to wait.
        answered: Whether the endpoint replied, though not with a chat completion.
    """

    def __init__(self, why: str, *, after: float = 0.0, answered: bool = False) -> None:
        super().__init__(why)
        self.after = after
        self.answered = answered


class Reply(NamedTuple):
    """The outcome of one request.

    Attributes:
        text: What the model said; None if no attempt gave a chat completion.
        complete: Whether the model ended it by itself.
        cost: Money for all attempts.
        why: What came instead of a completion.
    """

    text: str | None
    complete: bool
    cost: float
    why: str = ""


class Session:
    """Requests to one endpoint over one client.

    Args:
        client: Sends them.
        address: Where chat completions are asked for.
        model: The model's name at the endpoint.
        request: What each request asks of the model.
        settings: How requests are sent.
        limiter: Shared by all sessions of the endpoint.
        key: Sent with each request and removed from all texts of the server; None sends none.

    Attributes:
        understood: Whether the endpoint has given a chat completion.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        address: str,
        model: str,
        *,
        request: RequestSettings,
        settings: EndpointSettings,
        limiter: RateLimiter,
        key: str | None,
    ) -> None:
        self.understood = False
        self._client = client
        self._address = address
        self._model = model
        self._request = request
        self._settings = settings
        self._limiter = limiter
        self._key = key
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._turn = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._tokens = 0  # that the last request used

    @property
    def stopping(self) -> bool:
        """Whether nothing new should be asked."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let requests in flight end; those that wait for a retry or for the rate limit give up."""
        self._stopping.set()

    async def ask(self, messages: Sequence[ChatMessage]) -> Reply:
        """Return the model's reply, after as many attempts as needed and allowed.

        Raises:
            Unanswered: The endpoint is down, or refuses the request.
            SessionStopped: The session was stopped first.
        """
        body = json.dumps({**self._request.fields(self._model), "messages": messages}).encode("ascii")
        costs: list[float] = []
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._settings.retries.count + 1),
            wait=self._backoff,
            sleep=self._sleep,
            retry=retry_if_exception_type(FailedAttempt),
            reraise=True,
        )
        try:
            completion: Completion = await retrying(partial(self._attempt, body, costs))
        except FailedAttempt as last:
            if last.answered:
                return Reply(None, False, sum(costs), str(last))
            raise self._down(str(last)) from None
        self.understood = True
        return Reply(*completion, sum(costs))

    async def speaks(self) -> bool:
        """Whether the endpoint gives chat completions at all; asks a small question to find out."""
        return self.understood or (await self.ask([{"role": "user", "content": "Say yes."}])).text is not None

    async def _attempt(self, body: bytes, costs: list[float]) -> Completion:
        estimated = self._tokens or len(body) // 4 + self._request.max_tokens
        async with self._turn:
            while (wait := self._limiter.wait()) > 0:
                await self._sleep(wait)
            self._limiter.take(estimated)
        response, content = await self._send(body)
        reply = reply_json(response.headers, content)
        usage = token_usage(reply)
        if usage:
            self._tokens = sum(usage)
            self._limiter.correct(estimated, self._tokens)
            costs.append(self._settings.prices.cost(*usage))
        self._check_status(response, content)
        completion = completion_in(reply)
        if completion is None:
            kind = response.headers.get("Content-Type", "no content type")[:60]
            raise FailedAttempt(f"status {response.status_code} with {kind} that is no chat completion", answered=True)
        if not usage:  # charge the most that it can have been: a token takes at least one byte
            costs.append(self._settings.prices.cost(len(body), self._request.max_tokens))
        return completion._replace(text=self._without_key(completion.text))

    async def _send(self, body: bytes) -> tuple[httpx2.Response, bytes]:
        """Send a request and read the reply, within the limits of time and size."""
        content = bytearray()
        total = self._settings.timeouts.total
        try:
            async with (
                asyncio.timeout(total),
                self._client.stream("POST", self._address, content=body, headers=self._headers) as response,
            ):
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise FailedAttempt(f"more than {MOST_BYTES} bytes", answered=True)
        except TimeoutError:
            raise FailedAttempt(f"no whole reply within {total:g} s") from None
        except httpx2.RequestError as error:  # no connection, or one that was cut, garbled or too slow
            raise FailedAttempt(f"{type(error).__name__} {error}".strip()) from None
        return response, bytes(content)

    def _check_status(self, response: httpx2.Response, content: bytes) -> None:
        """Raise `FailedAttempt` for a status that may pass, and `Unanswered` for any other error."""
        status = response.status_code
        if 200 <= status < 300:
            return
        if status >= 500 or status in RETRIED:
            after = retry_after(response.headers.get("Retry-After"))
            longest = self._settings.retries.longest_wait
            if after > longest:
                raise self._down(
                    f"status {status} and the request to wait {after:.0f} s, more than "
                    f"labeler.endpoint.retries.longest_wait={longest:g}"
                )
            if after:
                self._limiter.pause(after)
            raise FailedAttempt(f"status {status}", after=after)
        if status < 400:
            check = "it points to another address, and redirects are not followed; type the final one in base_url"
        else:
            others = "check model, the settings in labeler.request, and that prompts are not too long"
            check = WHAT_TO_CHECK.get(status, others)
        message = ""
        if status not in (401, 403, 407):  # some servers repeat the key there
            message = " ".join(self._without_key(error_message(content)).split())[:200]
        message = f" ({message})" if message else ""
        raise Unanswered(
            f"{self._address} answered the request for model {self._model!r} with status {status}{message}: {check}"
        )

    def _without_key(self, text: str) -> str:
        """Remove the key from a text of the server, which may repeat what it was sent."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= SHORTEST_SECRET else text

    def _down(self, why: str) -> Unanswered:
        return Unanswered(
            f"{self._address} gives no answer: {why}, at the last of up to {self._settings.retries.count + 1} tries; "
            "check that it is up, and concurrency, rate_limit and timeouts in labeler.endpoint"
        )

    def _backoff(self, state: RetryCallState) -> float:
        """Return the seconds before the next attempt: exponential with jitter, and at least what the endpoint asks."""
        assert state.outcome
        error = state.outcome.exception()
        after = error.after if isinstance(error, FailedAttempt) else 0.0
        retries = self._settings.retries
        backoff = min(retries.longest_wait, retries.first_wait * 2.0 ** min(state.attempt_number - 1, 60))
        return max(after, backoff / 2) + random.uniform(0, backoff / 2)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise SessionStopped
