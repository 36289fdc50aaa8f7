"""A judge on loopback that speaks chat completions, with faults on request; for tests and benchmarks.

with FaultyJudge(prefers_longer, fault=lambda n, asked: "500" if n == 0 else None) as server:
    Judge("toy", base_url=server.url)
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = re.compile(r"<<(\w+) (prompt|response|first response|second response)>>\n(.*?)\n<<\1 end of the \2>>", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One request as the judge reads it."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def user(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def texts(self) -> dict[str, str]:
        return {name: text for _, name, text in TEXT.findall(self.user)}

    @property
    def first(self) -> str:
        return self.texts["first response"]

    @property
    def second(self) -> str:
        return self.texts["second response"]

    @property
    def code(self) -> str:
        whole = "\n".join(message["content"] for message in self.body["messages"])
        found = re.search(r"Verdict (\w+):", whole)
        return found[1] if found else ""

    def verdict(self, which: str) -> str:
        return f"I have read both.\nVerdict {self.code}: {which}"


Mind = Callable[[Asked], str]
Fault = Callable[[Asked], str | None]


def prefers_longer(asked: Asked) -> str:
    if len(asked.first) == len(asked.second):
        return asked.verdict("tie")
    return asked.verdict("first" if len(asked.first) > len(asked.second) else "second")


@dataclass
class FaultyJudge:
    """The server. `fault` names what goes wrong with a request, one of the keys of FAULTS; None answers it.

    Attributes:
        asked: Every request, in order of arrival.
    """

    mind: Mind = prefers_longer
    fault: Fault = lambda asked: None
    usage: tuple[int, int] | None = (100, 10)
    retry_after: str = "0"
    patience: float = 3.0  # the longest that a slow reply lasts
    keep: bool = True
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    on_done: Callable[[Asked, str], None] = lambda asked, outcome: None

    def __enter__(self) -> FaultyJudge:
        self._lock = threading.Condition()
        self._number = self._at_once = 0
        self._done: Counter[str] = Counter()
        self._closing = threading.Event()
        judge = self

        class Bound(Handler):
            server_of = judge

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients leave when it takes too long; that is what is tested."""

        self._http = Server(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def done(self) -> Counter[str]:
        """How many requests were answered in full with what the mind says, or had which fault.

        A client has its reply a moment before the request is counted here, so that this waits for those under way.
        """
        with self._lock:
            self._lock.wait_for(lambda: not self._at_once, timeout=1.0)
            return self._done.copy()

    @property
    def under_way(self) -> int:
        """Requests that are being answered."""
        return self._at_once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def says(self, asked: Asked) -> str:
        return self.mind(asked) if asked.texts else "Yes."  # the probe of whether it speaks at all

    def arrive(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Asked:
        with self._lock:
            asked = Asked(self._number, path, headers, body)
            self._number += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if self.keep:
                self.asked.append(asked)
            return asked

    def leave(self, outcome: str, asked: Asked) -> None:
        with self._lock:
            self._at_once -= 1
            self._done[outcome] += 1
            self._lock.notify_all()
            self.on_done(asked, outcome)


def completion(text: Any, usage: tuple[int, int] | None, finish: str = "stop") -> dict[str, Any]:
    made: dict[str, Any] = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
    }
    if usage:
        made["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return made


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of: FaultyJudge

    def do_POST(self) -> None:
        judge = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = judge.arrive(self.path, dict(self.headers), body)
        outcome = "left"
        try:
            fault = judge.fault(asked)
            if fault is None:
                self.reply(200, completion(judge.says(asked), judge.usage))
                outcome = "answered"
            else:
                FAULTS[fault](self, asked)
                outcome = fault
        except OSError:
            self.close_connection = True
        finally:
            judge.leave(outcome, asked)

    def reply(self, status: int, content: Any, kind: str = "application/json", **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def cut(self, asked: Asked, *, after: bytes = b"") -> None:
        self.wfile.write(after)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        self.connection.close()
        self.close_connection = True

    def cut_in_the_middle(self, asked: Asked) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        self.cut(asked, after=head + json.dumps(completion(self.server_of.says(asked), (1, 1))).encode())

    def slow(self, asked: Asked) -> None:
        """A byte now and then, never late enough for a client that only looks at the time between two."""
        raw = json.dumps(completion(self.server_of.says(asked), (1, 1))).encode() + b" " * 5000
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.close_connection = True
        until = time.monotonic() + self.server_of.patience
        for byte in raw:
            if time.monotonic() > until or self.server_of._closing.wait(0.02):
                return
            self.wfile.write(bytes([byte]))

    def silent(self, asked: Asked) -> None:
        self.server_of._closing.wait(self.server_of.patience)
        self.close_connection = True

    def huge(self, asked: Asked) -> None:
        whole = json.dumps(completion(self.server_of.says(asked), (1, 1)))[:-1]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for part in (whole.encode() + b', "padding": "', *[b"x" * 65536] * 128, b'"}'):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def busy(self, asked: Asked) -> None:
        self.reply(429, {"error": {"message": "slow down"}}, Retry_After=self.server_of.retry_after)

    def busy_until(self, asked: Asked) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=float(self.server_of.retry_after)), usegmt=True)
        self.reply(503, {"error": {"message": "slow down"}}, Retry_After=date)

    def status(self, status: int, message: str = "no", **headers: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "made_up"}}, **headers)

    def said(self, text: Any, finish: str = "stop") -> None:
        self.reply(200, completion(text, self.server_of.usage, finish))

    def log_message(self, *_: Any) -> None:
        """Nothing."""


FAULTS: dict[str, Callable[[Handler, Asked], None]] = {
    # what a client tries again
    "500": lambda h, a: h.status(500),
    "503": lambda h, a: h.status(503),
    "408": lambda h, a: h.status(408),
    "429": Handler.busy,
    "503 until": Handler.busy_until,
    "cut": Handler.cut,
    "cut in the middle": Handler.cut_in_the_middle,
    "slow": Handler.slow,
    "silent": Handler.silent,
    "malformed": lambda h, a: h.reply(200, json.dumps(completion(h.server_of.says(a), (1, 1))).encode()[:-20]),
    "nested": lambda h, a: h.reply(200, b"[" * 200_000),
    "no choices": lambda h, a: h.reply(200, {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 0}}),
    "a list": lambda h, a: h.reply(200, [1, 2]),
    "a number": lambda h, a: h.said(7),
    "html": lambda h, a: h.reply(200, json.dumps(completion(h.server_of.says(a), (1, 1))).encode(), "text/html"),
    "huge": Handler.huge,
    "gone": lambda h, a: h.reply(204, b""),
    # what is an answer, but no verdict
    "no verdict": lambda h, a: h.said("Both are fine."),
    "no code": lambda h, a: h.said("Verdict: first"),
    "old code": lambda h, a: h.said("Verdict 00000000: first"),
    "not last": lambda h, a: h.said(a.verdict("first") + "\nOr perhaps not."),
    "nothing": lambda h, a: h.said(None),
    "at length": lambda h, a: h.said(a.verdict("first"), "length"),
    # what is refused
    "400": lambda h, a: h.status(400, "the prompt has 9000 tokens, and the model reads 4096"),
    "401": lambda h, a: h.status(401, f"wrong key {a.headers.get('Authorization')}"),
    "404": lambda h, a: h.status(404),
    "422": lambda h, a: h.status(422, f"you sent {a.headers.get('Authorization')}"),
    "307": lambda h, a: h.status(307, Location="http://127.0.0.1:9/v1/chat/completions"),
}
