"""Questions spread over several servers, some of which may fail meanwhile."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Event, Thread
from typing import Any, Generic, ParamSpec, TypeVar

import tenacity

from choosy.terminal import counted, logger

log = logger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")
P = ParamSpec("P")

FAILURES = 3  # without an answer between them, after which a server is done without


class Failed(Exception):
    """A server did not answer, and may answer later, or another one may."""


class Spread(Generic[Q, A]):
    """Asks several servers; what one that fails has not answered goes to the others.

    A server is asked once it is prepared. One that fails is waited for and prepared anew, or done without.

    Args:
        servers: Their addresses.
        ask: Asks a server; raises `Failed` if it gives no answer.
        prepare: Prepares a server; raises `Failed` if it does not answer.
        at_once: Questions that a server has at once.
        patience: Seconds that a server which does not answer is waited for.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        ask: Callable[[str, Q], A],
        prepare: Callable[[str], None],
        at_once: int,
        patience: float,
    ) -> None:
        self._ask, self._prepare = ask, prepare
        self._at_once, self._patience = at_once, patience
        self._over = Event()
        self._ready: list[str] = []
        self._failures: Counter[str] = Counter()
        self._flying: dict[Future[A], tuple[str, Q]] = {}
        self._coming = {self._prepared(server): server for server in servers}
        self._servers = servers

    def answers(self, questions: Iterable[Q]) -> Generator[tuple[str, Q, A]]:
        """Yield each question with the server that answered it and its answer, as they come.

        Raises:
            ValueError: No server is left.
        """
        waiting = deque(questions)
        try:
            while waiting or self._flying:
                while waiting and (server := self._free()):
                    question = waiting.popleft()
                    self._flying[in_thread(self._ask, server, question)] = server, question
                if not (self._ready or self._coming or self._flying):
                    missing = counted(len(waiting), "responses")
                    raise ValueError(
                        f"None is left of the servers {', '.join(self._servers)}, before they gave {missing}. Start "
                        "one and continue with ckpt_path=last: what was answered is kept."
                    )
                both: list[Future[Any]] = [*self._flying, *self._coming]
                wait(both, return_when=FIRST_COMPLETED)
                for coming in [future for future in self._coming if future.done()]:
                    self._arrived(coming)
                for flying in [future for future in self._flying if future.done()]:
                    server, question = self._flying.pop(flying)
                    try:
                        answer = flying.result()
                    except Failed as why:
                        waiting.appendleft(question)
                        self._failed(server, why)
                        continue
                    self._failures[server] = 0
                    yield server, question, answer
        finally:
            self._over.set()

    def _free(self) -> str | None:
        """Return the server with the fewest questions, unless it has as many as it takes."""
        busy = Counter(server for server, _ in self._flying.values())
        server = min(self._ready, key=lambda server: busy[server], default=None)
        return server if server is not None and busy[server] < self._at_once else None

    def _prepared(self, server: str) -> Future[None]:
        patiently = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self._patience) | tenacity.stop_when_event_set(self._over),
            wait=tenacity.wait_fixed(1),
            sleep=tenacity.sleep_using_event(self._over),
            retry=tenacity.retry_if_exception_type(Failed),
            reraise=True,
        )
        return in_thread(patiently, self._prepare, server)

    def _arrived(self, coming: Future[None]) -> None:
        server = self._coming.pop(coming)
        try:
            coming.result()
        except Failed as why:
            log.warning("%s did not answer for %g s (%s); it is done without.", server, self._patience, why)
        else:
            self._ready.append(server)

    def _failed(self, server: str, why: Failed) -> None:
        if server not in self._ready:
            return  # another of its questions has said so
        self._ready.remove(server)
        self._failures[server] += 1
        again = self._failures[server] < FAILURES
        then = f"it is waited for, for {self._patience:g} s" if again else "it is done without"
        log.warning("%s fails (%s): what it was asked goes to the other servers, and %s.", server, why, then)
        if again:
            self._coming[self._prepared(server)] = server


def in_thread(act: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Future[A]:
    """Call a function in a thread that does not keep the process from ending, as those of a pool would."""
    future: Future[A] = Future()

    def run() -> None:
        try:
            future.set_result(act(*args, **kwargs))
        except BaseException as error:  # whatever it is, it is raised where the result is read
            future.set_exception(error)

    Thread(target=run, daemon=True, name="ask a server").start()
    return future
