"""An OpenAI-compatible endpoint: chat completions that are paced, retried and priced, with the key never in sight."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

Message = dict[str, str]
Limit = Literal["max_tokens", "max_completion_tokens"]

WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})  # and whatever the server calls its own fault: 500 and above
MOST_BYTES = 1 << 22  # of a reply; a verdict with its reasons takes a few thousand
SHORTEST_SECRET = 8  # a key such as EMPTY, which local servers take, is a word and no secret
OURS = frozenset({"model", "messages", "temperature", "seed", "stream", "n", "max_tokens", "max_completion_tokens"})


class Unanswered(ValueError):
    """The endpoint gives no answer, now or ever, and the message says what to do about it.

    Attributes:
        at: Position of the item that it was asked about, if known.
    """

    def __init__(self, told: str, at: int | None = None) -> None:
        super().__init__(told)
        self.at = at


class Reply(NamedTuple):
    """What came of one question.

    Attributes:
        text: What the model said; None if no attempt brought a chat completion.
        whole: Whether the model ended it by itself.
        cost: Money for all attempts.
        why: What came instead of a completion.
    """

    text: str | None
    whole: bool
    cost: float
    why: str = ""


class Stopped(Exception):
    """The session is over, and what waits for its turn is not asked any more."""


class _Again(Exception):
    """An attempt that failed and may be repeated."""

    def __init__(self, why: str, *, after: float = 0.0, answered: bool = False) -> None:
        super().__init__(why)
        self.after = after
        self.answered = answered  # with something that is no chat completion


class Pace:
    """Keeps requests and tokens per minute below what an endpoint allows, by spacing the requests evenly.

    Example:
        >>> pace = Pace(requests_per_minute=60, tokens_per_minute=None, now=lambda: 100.0)
        >>> pace.wait(), pace.take(), round(pace.wait(), 3)
        (0.0, None, 1.0)
    """

    def __init__(self, *, requests_per_minute: float | None, tokens_per_minute: float | None, now: Any = None) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._now = now or time.monotonic
        self._next_request = self._next_token = self._paused_until = 0.0

    def wait(self) -> float:
        """Seconds until the next request may be sent."""
        return float(max(0.0, max(self._next_request, self._next_token, self._paused_until) - self._now()))

    def take(self, tokens: int = 0) -> None:
        """A request is sent that will take about so many tokens."""
        if self.requests_per_minute:
            self._next_request = max(self._next_request, self._now()) + 60 / self.requests_per_minute
        if self.tokens_per_minute:
            self._next_token = max(self._next_token, self._now()) + 60 * tokens / self.tokens_per_minute

    def correct(self, reckoned: int, used: int) -> None:
        """The request took other than the reckoned tokens."""
        if self.tokens_per_minute:
            self._next_token += 60 * (used - reckoned) / self.tokens_per_minute

    def pause(self, seconds: float) -> None:
        """The endpoint asks to be left alone for a while."""
        self._paused_until = max(self._paused_until, self._now() + seconds)


class Endpoint:
    """Where a chat model is asked. See `Judge` for the arguments; all requests go to this one address.

    The key is read from the environment when a session begins, and kept in no attribute.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key_env: str | None,
        concurrency: int,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        retries: int,
        first_wait: float,
        longest_wait: float,
        connect_timeout: float,
        read_timeout: float,
        total_timeout: float,
        limit: Limit,
        max_tokens: int,
        temperature: float | None,
        seed: int | None,
        options: Mapping[str, Any],
        prompt_price: float,
        completion_price: float,
        proxy: str | None,
    ) -> None:
        _refuse_below(1, concurrency=concurrency, max_tokens=max_tokens)
        _refuse_below(0, retries=retries, prompt_price=prompt_price, completion_price=completion_price)
        _refuse_zero(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            first_wait=first_wait,
            longest_wait=longest_wait,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            total_timeout=total_timeout,
        )
        if taken := sorted(OURS & options.keys()):
            raise ValueError(
                f"labeler.options sets {', '.join(taken)}, which the judge sets itself; "
                "options is for what has no line of its own, for instance +labeler.options.reasoning_effort=low"
            )
        if limit not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(f"labeler.limit={limit!r}: type max_tokens or max_completion_tokens")
        self.model = model
        self.address = checked_url(base_url, "base_url").rstrip("/") + "/chat/completions"
        self.proxy = checked_url(proxy, "proxy") if proxy else None
        self.key_env = key_env
        self.concurrency = concurrency
        self.retries = retries
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.timeout = httpx2.Timeout(read_timeout, connect=connect_timeout, pool=None)
        self.total_timeout = total_timeout
        self.max_tokens = max_tokens
        self.prompt_price = prompt_price
        self.completion_price = completion_price
        self.pace = Pace(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
        given = {"model": model, limit: max_tokens, "temperature": temperature, "seed": seed}
        self.settings = {**{name: value for name, value in given.items() if value is not None}, **options}
        self._key()  # a key that is missing is told now, and not in round 1

    def _key(self) -> str | None:
        """The key, fresh from the environment; an error about it says neither the key nor what was typed for its name.

        Raises:
            ValueError: There is none, or it could not stand in a header.
        """
        if self.key_env is None:
            return None
        known = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env) and os.environ.get(self.key_env)
        if not known:
            raise ValueError(
                "labeler.key_env must be the name of an environment variable that holds the key, and no such "
                "variable is set; export the key and type the variable's name (never the key itself), for instance "
                "labeler.key_env=OPENAI_API_KEY, or null for an endpoint that asks for none"
            )
        if not re.fullmatch(r"[!-~]+", known):
            raise ValueError(
                "the environment variable that labeler.key_env names holds blanks, line breaks or letters "
                'beyond ASCII, which no key has; set it again, for instance export OPENAI_API_KEY="$(cat key.txt)"'
            )
        return known

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A client for a batch of questions; its connections are closed when the block is left."""
        key = self._key()
        async with httpx2.AsyncClient(
            timeout=self.timeout,
            limits=httpx2.Limits(max_connections=self.concurrency),
            trust_env=False,  # or a proxy or a .netrc that the config does not name would have a say
            proxy=self.proxy,
            follow_redirects=False,
        ) as client:
            yield Session(self, client, key)

    def cost(self, usage: tuple[int, int]) -> float:
        """Money for so many tokens of prompt and of completion."""
        return (usage[0] * self.prompt_price + usage[1] * self.completion_price) / 1e6


class Session:
    """A few questions to an endpoint, asked at the same time.

    Attributes:
        understood: Whether the endpoint has given a chat completion.
    """

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, key: str | None) -> None:
        self.endpoint = endpoint
        self.understood = False
        self._client = client
        self._key = key
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._turn = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._tokens = 0  # of a request, as the last one had it

    @property
    def stopping(self) -> bool:
        """Whether nothing new shall be asked."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let what is under way end; what waits for a second try or for its turn gives up."""
        self._stopping.set()

    async def ask(self, messages: Sequence[Message]) -> Reply:
        """The model's reply, after as many tries as it takes and the endpoint's patience allows.

        Raises:
            Unanswered: It is down, or it refuses the request.
            Stopped: The session was stopped before the endpoint was reached.
        """
        body = json.dumps({**self.endpoint.settings, "messages": messages}).encode("ascii")
        bills: list[float] = []
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.endpoint.retries + 1),
            wait=self._pause,
            sleep=self._sleep,
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            said: tuple[str, bool] = await retrying(partial(self._attempt, body, bills))
        except _Again as last:
            if last.answered:
                return Reply(None, False, sum(bills), str(last))
            raise Unanswered(self._down(str(last))) from None
        self.understood = True
        return Reply(*said, sum(bills))

    async def speaks(self) -> bool:
        """Whether the endpoint gives chat completions at all; a small question finds out."""
        return self.understood or (await self.ask([{"role": "user", "content": "Say yes."}])).text is not None

    async def _attempt(self, body: bytes, bills: list[float]) -> tuple[str, bool]:
        reckoned = self._tokens or len(body) // 4 + self.endpoint.max_tokens
        async with self._turn:
            while (wait := self.endpoint.pace.wait()) > 0:
                await self._sleep(wait)
            self.endpoint.pace.take(reckoned)
        response, content = await self._exchange(body)
        found = _json(response, content)
        usage = _usage(found)
        if usage:
            self._tokens = sum(usage)
            self.endpoint.pace.correct(reckoned, self._tokens)
            bills.append(self.endpoint.cost(usage))
        self._refuse(response, content)
        text, whole = _completion(response, found)
        if not usage:  # nobody knows, so it is reckoned at the most that it can have been: a byte holds a token at most
            bills.append(self.endpoint.cost((len(body), self.endpoint.max_tokens)))
        return self._without_key(text), whole

    async def _exchange(self, body: bytes) -> tuple[httpx2.Response, bytes]:
        """Send and receive, within the time and the size that a reply may take."""
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self.endpoint.total_timeout),
                self._client.stream("POST", self.endpoint.address, content=body, headers=self._headers) as response,
            ):
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise _Again(f"more than {MOST_BYTES} bytes", answered=True)
        except TimeoutError:
            raise _Again(f"no whole reply within {self.endpoint.total_timeout:g} s") from None
        except httpx2.RequestError as error:  # no connection, one that was cut, garbled or too slow
            raise _Again(f"{type(error).__name__} {error}".strip()) from None
        return response, bytes(content)

    def _refuse(self, response: httpx2.Response, content: bytes) -> None:
        """Raise what a status other than success means: try again, or never mind."""
        status = response.status_code
        if 200 <= status < 300:
            return
        if status >= 500 or status in WORTH_ANOTHER_TRY:
            after = retry_after(response.headers.get("Retry-After"))
            if after > self.endpoint.longest_wait:
                raise Unanswered(
                    self._down(
                        f"status {status} and the wish to wait {after:.0f} s, more than "
                        f"labeler.longest_wait={self.endpoint.longest_wait:g}"
                    )
                )
            if after:
                self.endpoint.pace.pause(after)
            raise _Again(f"status {status}", after=after)
        if status < 400:
            check = "it points to another address, and is not followed there; type the final one in base_url"
        else:
            check = {
                401: "check the key in the variable that key_env names",
                403: "check the key in the variable that key_env names, and what it may use",
                404: "check base_url, which mostly ends with /v1, and the model's name",
                407: "check proxy",
            }.get(status, "check model, max_tokens, limit, temperature and options, and that prompts are not too long")
        said = "" if status in (401, 403, 407) else self._said(content)  # there, some repeat the key
        raise Unanswered(
            f"{self.endpoint.address} answered the request for model {self.endpoint.model!r} with "
            f"status {status}{said}: {check}"
        )

    def _said(self, content: bytes) -> str:
        """The first words of an error's message, without what could be the key."""
        text = content.decode("utf-8", "replace")
        try:
            told = json.loads(text)["error"]
            text = str(told["message"] if isinstance(told, dict) else told)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # not in OpenAI's form: as it stands
        text = " ".join(self._without_key(text).split())[:200]
        return f" ({text})" if text else ""

    def _without_key(self, text: str) -> str:
        """A text of the server's, for a server may repeat what it was sent."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= SHORTEST_SECRET else text

    def _down(self, why: str) -> str:
        return (
            f"{self.endpoint.address} gives no answer: {why}, at the last of up to {self.endpoint.retries + 1} tries; "
            "check that it is up, and labeler.concurrency, requests_per_minute and total_timeout"
        )

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: twice as long each time, never in step with others, and as long as asked."""
        assert state.outcome
        error = state.outcome.exception()
        asked = error.after if isinstance(error, _Again) else 0.0
        first, longest = self.endpoint.first_wait, self.endpoint.longest_wait
        backoff = min(longest, first * 2.0 ** min(state.attempt_number - 1, 60))
        return max(asked, backoff / 2) + random.uniform(0, backoff / 2)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Stopped


def checked_url(url: str, name: str) -> str:
    """An address that may stand in a config: plain http or https, and nothing secret in it.

    Raises:
        ValueError: It is another; what it holds is not repeated.

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
            f"labeler.{name} holds a name, a password or a query, and it is kept in config.yaml; "
            f"type it without, put the key into an environment variable and its name into labeler.key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(
            f"labeler.{name}={url!r} is no http address; type for instance labeler.{name}=http://localhost:8000/v1"
        )
    return url


def retry_after(header: str | None, now: datetime | None = None) -> float:
    """The seconds that a Retry-After header asks for, given as a number or as a date; 0 if it says nothing of sense.

    Example:
        >>> retry_after("7"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
        (7.0, 0.0, 0.0)
    """
    if header is None:
        return 0.0
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header.strip()):
        return float(header)
    try:
        date: datetime = parsedate_to_datetime(header)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _json(response: httpx2.Response, content: bytes) -> Any:
    """What a reply holds; None if it is not JSON, or does not say so."""
    if "json" not in response.headers.get("Content-Type", "").partition(";")[0]:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _usage(found: Any) -> tuple[int, int] | None:
    """The tokens of prompt and completion that a reply reports."""
    usage = found.get("usage") if isinstance(found, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int:
        return None
    return (prompt, completion) if 0 <= prompt < 1 << 40 and 0 <= completion < 1 << 40 else None


def _completion(response: httpx2.Response, found: Any) -> tuple[str, bool]:
    """What the model says, and whether it came to an end; a reply that is no chat completion is asked for again."""
    try:
        choice = found["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        text, reason = 0, None
    if text is None:  # a refusal, or a model that has only thought
        text, reason = "", "length"
    if not isinstance(text, str):
        kind = response.headers.get("Content-Type", "no content type")[:60]
        raise _Again(f"status {response.status_code} with {kind} that is no chat completion", answered=True)
    return text, reason not in ("length", "content_filter")


def _refuse_below(least: int, **given: float) -> None:
    for name, value in given.items():
        if not value >= least:
            raise ValueError(f"labeler.{name}={value}: type {least} or more")


def _refuse_zero(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ValueError(f"labeler.{name}={value}: type more than 0")
