"""Parse what an endpoint replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """The outcome of one request."""

    text: str | None  # None if there is no chat completion
    complete: bool = False  # whether the model ended it by itself
    cost: float = 0.0
    why: str = ""  # what came instead of a completion


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
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return Reply(None)
    if text is None:  # a refusal, or a model that spent all its tokens on reasoning
        return Reply("")
    return Reply(text, reason not in ("length", "content_filter")) if isinstance(text, str) else Reply(None)


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
