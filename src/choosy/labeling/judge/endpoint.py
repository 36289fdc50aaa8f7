"""Ask an endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple

import httpx2
import tenacity

from choosy.labeling.judge.rate_limiter import RateLimiter
from choosy.labeling.judge.settings import EndpointSettings, RequestSettings
from choosy.redaction import NAMED

ChatMessage = dict[str, str]

RETRIED = frozenset({408, 409, 425, 429})  # and 500 or above
MOST_BYTES = 1 << 22  # of a reply; a verdict with its reasons takes a few thousand
SHORTEST_SECRET = 8  # characters; a key such as EMPTY, which local servers take, is no secret
WHAT_TO_CHECK = {
    401: "check the key in the variable that key_env names",
    403: "check the key in the variable that key_env names, and what it may use",
    404: "check base_url, which usually ends with /v1, and the model's name",
    407: "check endpoint.proxy",
}
OF_ONE_REQUEST = frozenset({400, 403, 413, 422, 451})  # a prompt too long, or words that a filter refuses
CHECK_REDIRECT = "it points to another address, and redirects are not followed; type the final one in base_url"
CHECK_REQUEST = "check model, the settings in request, and that prompts are not too long"
MAY_REPEAT_KEY = (401, 403, 407)  # statuses whose message is not shown


PROBE: Sequence[ChatMessage] = ({"role": "user", "content": "Say yes."},)


class Reply(NamedTuple):
    """The outcome of one request."""

    text: str | None  # None if there is no chat completion
    complete: bool = False  # whether the model ended it by itself
    cost: float = 0.0
    why: str = ""  # what came instead of a completion

    @property
    def said(self) -> str:
        """What the ledger keeps of it."""
        return self.text or self.why or "(an empty reply)"


class Unanswered(ValueError):
    """The endpoint does not answer, and the message says what to do about it."""


class Refused(Unanswered):
    """The endpoint refuses this request, and may take another."""


class SessionStopped(Exception):
    """The session was stopped before the request was sent."""


class FailedAttempt(Exception):
    """One attempt failed, and another may succeed."""

    def __init__(self, why: str, *, answered: bool = False) -> None:
        super().__init__(why)
        self.answered = answered  # with a reply that is no chat completion


class NoConnection(FailedAttempt):
    """No connection was made."""


class Endpoint:
    """A chat model at an address, to which alone every request goes.

    The key is read from the environment when a session begins, and stored in no attribute.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key_env: str | None,
        request: RequestSettings | None,
        settings: EndpointSettings | None,
    ) -> None:
        self.model = model
        self.address = checked_url(base_url, "base_url").rstrip("/") + "/chat/completions"
        self.key_env = key_env
        self.request = request or RequestSettings()
        self.settings = settings or EndpointSettings()
        self.limiter = RateLimiter(self.settings.rate_limit)
        self.was_reached = False  # since the run was started or resumed
        if self.settings.proxy:
            checked_url(self.settings.proxy, "endpoint.proxy")
        key_from_environment(key_env)  # so that a missing key is reported before the first round

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Open a session; its connections are closed at the end of the block."""
        timeouts, key = self.settings.timeouts, key_from_environment(self.key_env)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        async with httpx2.AsyncClient(
            headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(timeouts.read, connect=timeouts.connect, pool=None),
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
            trust_env=False,  # ignore proxies and .netrc that the config does not name
            proxy=self.settings.proxy,
            follow_redirects=False,
        ) as client:
            yield Session(self, client, key)


class Session:
    """Requests to an endpoint; the key is removed from all texts of the server."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, key: str | None) -> None:
        self.stopping = asyncio.Event()  # once it is set, requests that wait for a retry or for the rate limit give up
        self._endpoint = endpoint
        self._settings = endpoint.settings
        self._limiter = endpoint.limiter
        self._client = client
        self._key = key
        self._understood = False  # whether the endpoint has given a chat completion
        self._turn = asyncio.Lock()
        self._tokens = 0  # that the last request used

    async def ask(self, messages: Sequence[ChatMessage]) -> Reply:
        """Return the model's reply, after as many attempts as needed and allowed.

        Raises:
            Unanswered: The endpoint is down, or refuses the request (`Refused`, if it may take another one).
            SessionStopped: The session was stopped first.
        """
        fields = self._endpoint.request.fields(self._endpoint.model)
        body = json.dumps({**fields, "messages": messages}).encode("ascii")
        costs: list[float] = []
        retries = self._settings.retries
        half = {"multiplier": retries.first_wait / 2, "max": retries.longest_wait / 2}
        retrying = tenacity.AsyncRetrying(
            stop=lambda state: (
                state.attempt_number > self._retries(state.outcome.exception() if state.outcome else None)
            ),
            wait=tenacity.wait_exponential(**half) + tenacity.wait_random_exponential(**half),
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(FailedAttempt),
            reraise=True,
        )
        try:
            reply: Reply = await retrying(partial(self._attempt, body, costs))
        except FailedAttempt as last:
            if last.answered:
                return Reply(None, cost=sum(costs), why=str(last))
            raise self._down(str(last), tries=self._retries(last) + 1) from None
        self._understood = True
        return reply._replace(cost=sum(costs))

    async def speaks(self) -> bool:
        """Whether the endpoint gives chat completions at all; asks a small question to find out."""
        return self._understood or (await self.ask(PROBE)).text is not None

    async def takes_another(self) -> bool:
        """Whether the endpoint gives a chat completion to a small question now, after it has refused a request."""
        try:
            return (await self.ask(PROBE)).text is not None
        except Unanswered:
            return False

    async def _attempt(self, body: bytes, costs: list[float]) -> Reply:
        most = self._endpoint.request.max_tokens
        estimated = self._tokens or len(body) // 4 + most
        async with self._turn:
            while (wait := self._limiter.wait()) > 0:
                await self._sleep(wait)
            self._limiter.take(estimated)
        response, content = await self._send(body)
        content_json = reply_json(response.headers, content)
        usage = token_usage(content_json)
        if usage:
            self._tokens = sum(usage)
            self._limiter.correct(estimated, self._tokens)
            costs.append(self._settings.prices.cost(*usage))
        self._check_status(response, content)
        reply = completion_in(content_json)
        if reply.text is None:
            kind = self._without_key(response.headers.get("Content-Type", "no content type"))[:60]
            raise FailedAttempt(f"status {response.status_code} with {kind} that is no chat completion", answered=True)
        if not usage:  # charge the most that it can have been: a token takes at least one byte
            costs.append(self._settings.prices.cost(len(body), most))
        return reply._replace(text=self._without_key(reply.text), why=self._without_key(reply.why))

    async def _send(self, body: bytes) -> tuple[httpx2.Response, bytes]:
        """Send a request and read the reply, within the limits of time and size."""
        content = bytearray()
        total = self._settings.timeouts.total
        try:
            async with (
                asyncio.timeout(total),
                self._client.stream("POST", self._endpoint.address, content=body) as response,
            ):
                self._endpoint.was_reached = True
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise FailedAttempt(f"more than {MOST_BYTES} bytes", answered=True)
        except TimeoutError:
            raise FailedAttempt(f"no whole reply within {total:g} s") from None
        except httpx2.ConnectError as error:
            raise NoConnection(self._without_key(f"{type(error).__name__} {error}".strip())) from None
        except httpx2.RequestError as error:  # no connection, or one that was cut, garbled or too slow
            raise FailedAttempt(self._without_key(f"{type(error).__name__} {error}".strip())) from None
        return response, bytes(content)

    def _check_status(self, response: httpx2.Response, content: bytes) -> None:
        """Raise `FailedAttempt` for a status that may pass, and `Unanswered` for any other error."""
        status = response.status_code
        if 200 <= status < 300:
            return
        message = " ".join(self._without_key(error_message(content)).split())[:200]
        message = f" ({message})" if message and status not in MAY_REPEAT_KEY else ""
        if status >= 500 or status in RETRIED:
            after = retry_after(response.headers.get("Retry-After"))
            longest = self._settings.retries.longest_wait
            if after > longest:
                raise self._down(
                    f"status {status} and the request to wait {after:.0f} s, more than "
                    f"endpoint.retries.longest_wait={longest:g}",
                    tries=self._settings.retries.count + 1,
                )
            self._limiter.pause(after)
            raise FailedAttempt(f"status {status}{message}")
        check = WHAT_TO_CHECK.get(status, CHECK_REDIRECT if status < 400 else CHECK_REQUEST)
        refusal = Refused if status in OF_ONE_REQUEST else Unanswered
        raise refusal(
            f"{self._endpoint.address} answered the request for model {self._endpoint.model!r} "
            f"with status {status}{message}: {check}"
        )

    def _without_key(self, text: str) -> str:
        """Remove the key from a text of the server, which may repeat what it was sent."""
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= SHORTEST_SECRET else text

    def _retries(self, error: BaseException | None) -> int:
        """How often a request is sent again: less often to an address that was never reached, as it may be wrong."""
        count = self._settings.retries.count
        return min(count, 2) if isinstance(error, NoConnection) and not self._endpoint.was_reached else count

    def _down(self, why: str, *, tries: int) -> Unanswered:
        return Unanswered(
            f"{self._endpoint.address} gives no answer: {why}, at the last of up to {tries} tries; check "
            "that it is up, and concurrency, rate_limit and timeouts in endpoint"
        )

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise SessionStopped


def key_from_environment(name: str | None) -> str | None:
    """Return the key in an environment variable; errors repeat neither the key nor the name that was typed."""
    if name is None:
        return None
    key = os.environ.get(name) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else None
    if not key:
        raise ValueError(
            "labeler.key_env must be the name of an environment variable that holds the key, and no such "
            "variable is set; export the key and type the variable's name (never the key itself), for instance "
            "labeler.key_env=OPENAI_API_KEY, or null for an endpoint that asks for none"
        )
    NAMED.add(name)
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            "the environment variable that labeler.key_env names holds blanks, line breaks or letters "
            'beyond ASCII, which no key has; set it again, for instance export OPENAI_API_KEY="$(cat key.txt)"'
        )
    return key


def checked_url(url: str, name: str) -> str:
    """Return an http address with nothing secret in it; an error names its config key and repeats no secret."""
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


def reply_json(headers: Mapping[str, str], content: bytes) -> Any:
    """Return the JSON of a reply; None if it is none, or its headers do not say so."""
    if "json" not in headers.get("Content-Type", "").partition(";")[0]:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def completion_in(reply: Any) -> Reply:
    """Return the first choice of a chat completion; without a text if the reply is no chat completion.

    Example:
        >>> completion_in({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})
        Reply(text='Hi', complete=True, cost=0.0, why='')
    """
    try:
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text = content_text(message["content"])
    except (LookupError, TypeError, AttributeError):
        return Reply(None)
    if text is None:  # a refusal, or a model that spent all its tokens on reasoning
        return Reply("", why=str(message.get("refusal") or ""))
    return Reply(text, reason not in ("length", "content_filter"))


def content_text(content: Any) -> str | None:
    """Return the text of a message's content, which may be a list of parts; None if it has no text.

    Example:
        >>> content_text([{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}])
        'Hi'
    """
    if isinstance(content, list):
        texts = [part["text"] for part in content if part.get("type", "text") == "text"]
        return "".join(texts) if texts else None
    if not (content is None or isinstance(content, str)):
        raise TypeError
    return content


def token_usage(reply: Any) -> tuple[int, int] | None:
    """Return the tokens of prompt and completion that a reply reports; None if it reports none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int:
        return None
    return (prompt, completion) if 0 <= prompt < 1 << 40 and 0 <= completion < 1 << 40 else None


def error_message(content: bytes) -> str:
    """Return the message of an error in OpenAI's form, or else the whole text.

    Example:
        >>> error_message(b'{"error": {"message": "too long"}}'), error_message(b"Bad Gateway")
        ('too long', 'Bad Gateway')
    """
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def retry_after(header: str | None, now: datetime | None = None) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 if it cannot be read.

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
