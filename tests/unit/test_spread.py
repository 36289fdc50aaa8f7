"""Questions spread over servers: each is answered once, whatever fails meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from choosy.sampling.spread import Failed, Spread


class Servers:
    """Servers that answer with the square of a number, as long as they are up."""

    def __init__(self, *, dies_at: dict[str, int] | None = None, comes_back: bool = False) -> None:
        self.down: set[str] = set()
        self.prepared: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self._dies_at, self._comes_back = dies_at or {}, comes_back
        self._lock = threading.Lock()

    def ask(self, server: str, number: int) -> int:
        with self._lock:
            self.asked[server] += 1
            if self.asked[server] == self._dies_at.get(server):
                self.down.add(server)
            if server in self.down:
                raise Failed("connection refused")
            return number * number

    def prepare(self, server: str) -> None:
        with self._lock:
            self.prepared[server] += 1
            if self._comes_back and self.prepared[server] > 2:
                self.down.discard(server)
            if server in self.down:
                raise Failed("connection refused")

    def spread(self, names: Sequence[str], patience: float = 0.2) -> Spread[int, int]:
        return Spread(names, ask=self.ask, prepare=self.prepare, at_once=4, patience=patience)


def squares(spread: Spread[int, int], numbers: int = 60) -> Counter[str]:
    """Check that each question is answered once, and count whose answers they are."""
    found = list(spread.answers(range(numbers)))
    assert sorted(number for _, number, _ in found) == list(range(numbers))
    assert all(square == number * number for _, number, square in found)
    return Counter(server for server, _, _ in found)


def test_every_server_that_is_up_answers_some() -> None:
    servers = Servers()
    assert squares(servers.spread("ab")).keys() == {"a", "b"}
    assert servers.prepared == {"a": 1, "b": 1}


def test_what_a_server_that_dies_was_asked_goes_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers(dies_at={"b": 5})
    by_server = squares(servers.spread("ab"))
    assert by_server["b"] <= 4
    assert (
        "b fails (connection refused): what it was asked goes to the other servers, and it is waited for" in caplog.text
    )


def test_a_server_that_comes_back_is_prepared_anew_and_asked_again() -> None:
    servers = Servers(dies_at={"a": 5}, comes_back=True)
    assert squares(servers.spread("a", patience=10)) == {"a": 60}
    assert servers.prepared["a"] == 3


def test_a_server_that_never_answers_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers()
    servers.down.add("b")
    spread = servers.spread("ab")
    answers = spread.answers(range(60))
    first = next(answers)
    assert first[0] == "a", "nobody waits for the other"
    assert {server for server, _, _ in answers} == {"a"}


def test_a_server_that_is_up_and_fails_each_time_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers()

    def ask(server: str, number: int) -> int:
        if server == "b":
            raise Failed("status 500")
        return servers.ask(server, number)

    spread = Spread("ab", ask=ask, prepare=servers.prepare, at_once=1, patience=0.2)
    assert squares(spread, 400) == {"a": 400}
    assert servers.prepared["b"] <= 3


def test_without_a_server_the_error_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers(dies_at={"a": 5, "b": 5})
    with pytest.raises(ValueError, match=r"None is left of the servers a, b, before they gave 5[2-9] responses"):
        squares(servers.spread("ab"))
    assert "b did not answer for 0.2 s (connection refused); it is done without" in caplog.text


def test_a_slow_server_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import time\n"
        "from choosy.sampling.spread import Spread\n"
        "def ask(server, number):\n"
        "    print('asked', flush=True)\n"
        "    time.sleep(60)\n"
        "spread = Spread(['a'], ask=ask, prepare=lambda server: None, at_once=1, patience=1)\n"
        "list(spread.answers([1]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asked\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=50)
    assert time.monotonic() - began < 20
