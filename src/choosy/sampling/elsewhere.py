"""Sampling in a second process, on another device, while this process trains.

The other process holds a copy of the policy, and an engine. Each call brings it the weights to sample from, so that no
step of training changes what is sampled. It answers one call after the other, and ends with this process.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, fields
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from subprocess import DEVNULL, Popen
from threading import Lock, RLock, Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from choosy.errors import Stopped
from choosy.models.policy import Policy
from choosy.sampling.protocol import OnComplete, Request, Sampler
from choosy.sampling.settings import SamplingSettings
from choosy.terminal import logger
from choosy.types import Response

Weights = Mapping[str, Tensor]

OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # what they mean, the caller decides
PATIENCE = 5.0  # seconds that an engine has to free what it holds
SERVE = "import sys; sys.path[:] = {path!r}; from choosy.sampling.elsewhere import serve; serve({pipe})"


class Answer(NamedTuple):
    """Responses, the seconds that the engine took before to start and to take the weights, and where they came from."""

    responses: list[list[Response]]
    start_seconds: float
    sync_seconds: float
    origin: str


@dataclass(kw_only=True, eq=False)
class Elsewhere(Sampler):
    """Samples with an engine in another process, which is started at the first call.

    Args:
        engine: Samples there.

    Attributes:
        waited_seconds: Seconds that calls of `sample` have waited for the one before them.
    """

    engine: Sampler
    waited_seconds: float = field(default=0.0, init=False)
    _process: Popen[bytes] | None = field(default=None, init=False, repr=False)
    _pipe: Connection[Any, Any] | None = field(default=None, init=False, repr=False)
    _threads: int = field(default=0, init=False, repr=False)  # of this process before the other one shared them
    _turn: Any = field(default_factory=RLock, init=False, repr=False)  # one call after the other

    @classmethod
    def of(cls, engine: Sampler) -> Elsewhere:
        """The engine in another process, with its settings."""
        return cls(engine=engine, **{f.name: getattr(engine, f.name) for f in fields(Sampler) if f.init})

    def expect(self, settings: SamplingSettings) -> None:
        self.engine.expect(settings)

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        began = time.perf_counter()
        with self._turn:
            self.waited_seconds += time.perf_counter() - began
            self.start(request.policy)  # only now: the call before may have ended the other process
            answer = self.answer_from(copied_weights(request.policy), request, done, threads=self._threads)
        self.start_seconds += answer.start_seconds
        self.sync_seconds += answer.sync_seconds
        self.origin = answer.origin
        return answer.responses

    def start(self, policy: Policy) -> None:
        """Start the other process, unless it runs; of the threads of a CPU, this process keeps half."""
        if self._process is not None:
            return
        device = second_device(policy.device, self.ahead_device, gpus=torch.cuda.device_count())
        environ = surroundings()
        if device.type == "cuda":  # an engine takes the first that it sees
            place, visible = device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES")
            environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place] if visible else str(place)
        ours, theirs = Pipe()
        self._process = Popen(
            [sys.executable, "-c", SERVE.format(path=sys.path, pipe=theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=DEVNULL,
            env=environ,
            start_new_session=True,  # Ctrl-C is for this process
        )
        theirs.close()
        self._pipe = ours
        self._threads = self._threads or torch.get_num_threads()
        self._send((unloaded(policy), self.engine, device.type))
        if policy.device.type == device.type == "cpu":
            torch.set_num_threads(half(self._threads))

    def answer_from(self, weights: Weights, request: Request, done: OnComplete, *, threads: int = 0) -> Answer:
        """Sample a request from these weights; on a CPU by so many threads, or by those that training leaves."""
        settings = SamplingSettings(**{f.name: getattr(request.settings, f.name) for f in fields(SamplingSettings)})
        responses = request.blank
        with self._turn:
            try:
                threads = threads or other_half(self._threads)
                self._send((as_bytes(weights), request.prompts, request.seeds, settings, threads))
                while True:
                    match self._received():
                        case "done", ended:
                            for p, of_prompt in ended.items():
                                responses[p] = of_prompt
                            done(ended)
                        case "log", record:
                            logger(record.name).handle(record)
                        case "failed", error:
                            raise error
                        case _, over:
                            return Answer(responses, *over)
            except BaseException:  # of `done`, too: the other process would sample on
                self._end()
                raise

    def _send(self, message: object) -> None:
        with self._naming_its_end() as pipe:
            pipe.send(message)

    def _received(self) -> Any:
        with self._naming_its_end() as pipe:
            return pipe.recv()

    @contextmanager
    def _naming_its_end(self) -> Iterator[Connection[Any, Any]]:
        """Say how the other process has ended where it does not answer any more, unless this one has ended it."""
        if self._pipe is None:
            raise CancelledError
        try:
            yield self._pipe
        except (EOFError, OSError):
            if self._process is None:
                raise CancelledError from None
            code = self._process.wait()
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}, and what it said stands above"
            memory = ", perhaps for its memory" if code == -signal.SIGKILL else ""
            raise Stopped(
                f"The process that samples (sampler.ahead=1) has ended {how}{memory}. What was sampled is kept; resume "
                "the run"
            ) from None

    def _end(self) -> None:
        """End the other process, which a call under way then meets; the next call starts it again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        with self._turn:
            if self._pipe is not None:
                self._pipe.close()
            self._pipe = None

    def _let_close(self) -> None:
        """Let the engine free what it holds, such as adapters on servers, unless a call is under way."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            with suppress(EOFError, OSError):  # the other process has ended
                if self._pipe is not None:
                    self._pipe.send(None)
                while self._pipe is not None and self._pipe.poll(PATIENCE):
                    kind, what = self._pipe.recv()
                    if kind == "log":
                        logger(what.name).handle(what)
        finally:
            self._turn.release()

    def close(self) -> None:
        self._let_close()
        self._end()
        if self._threads:
            torch.set_num_threads(self._threads)
            self._threads = 0


def half(threads: int) -> int:
    """How many of the threads of a CPU train while the others sample.

    Example:
        >>> [(half(threads), other_half(threads)) for threads in (1, 2, 5)]
        [(1, 1), (1, 1), (2, 3)]
    """
    return max(1, threads // 2)


def other_half(threads: int) -> int:
    """How many of the threads of a CPU sample while the others train."""
    return max(1, threads - threads // 2)


def second_device(first: torch.device, wanted: str, *, gpus: int) -> torch.device:
    """The device that samples beside the one that trains; of several GPUs the first half train.

    Example:
        >>> second_device(torch.device("cpu"), "auto", gpus=0), second_device(torch.device("cuda:0"), "auto", gpus=2)
        (device(type='cpu'), device(type='cuda', index=1))
    """
    if wanted != "auto":
        device = torch.device(wanted)
        if device.type == "cuda" and (device.index or 0) >= gpus:
            there = f"cuda:0 to cuda:{gpus - 1}" if gpus else "no GPU"
            raise ValueError(f"sampler.ahead_device={wanted}: there is {there}; type one that is there, cpu, or auto.")
        return device
    if first.type == "cpu":
        return first
    place, count = first.index or 0, gpus if first.type == "cuda" else 1
    if place >= count // 2:
        raise ValueError(
            f"sampler.ahead=1 trains on the first half of the GPUs and samples on the others, and the policy is on "
            f"{first} of {count}. Type trainer.devices={max(count // 2, 1)} where there are several, "
            f"sampler.ahead_device={first} to share one, sampler.ahead_device=cpu where servers sample "
            "(sampler=vllm_server), or sampler.ahead=0."
        )
    return torch.device(first.type, place + count // 2)


def surroundings() -> dict[str, str]:
    """The environment of this process, without what tells ranks of each other."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}


def unloaded(policy: Policy) -> Policy:
    """The same policy without its weights, which another process loads."""
    tokens, source = policy.tokens, policy.source
    given = {name: getattr(policy, name) for name in ("lora", "adapter", "dtype", "compute")}
    given |= {name: getattr(tokens, name) for name in ("chat_template", "chat_template_kwargs")}
    return Policy(source.name, **given, **{name: getattr(source, name) for name in ("revision", "trust_remote_code")})


def copied_weights(policy: Policy) -> dict[str, Tensor]:
    """The trainable weights as they are now, on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in policy.trainable()}


def as_bytes(weights: Weights) -> bytes:
    """Weights as they cross to another process, which shares no memory with this one."""
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    return buffer.getvalue()


# -- the other process -------------------------------------------------------------------------------------------


class Replies(QueueHandler):
    """Sends the calling process what it waits for, and log records, which are in its log."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        super().__init__(SimpleQueue())  # which nothing is put into
        self._connection = connection
        self._lock = Lock()

    def send(self, kind: str, what: object) -> None:
        with self._lock:
            self._connection.send((kind, what))

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send("log", record)


def serve(pipe: int) -> None:
    """Sample what is called for over a pipe, until the process at its other end is gone."""
    for each in PASSED:
        signal.signal(each, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(pipe)
    calls, replies = SimpleQueue[Any](), Replies(connection)

    def read() -> None:
        while True:
            try:
                calls.put(connection.recv())
            except (EOFError, OSError):  # the caller has ended, in whatever way
                os._exit(0)
            except Exception as error:  # of an engine of the user's that cannot be imported here
                replies.send("failed", sendable(error))
                os._exit(1)

    Thread(target=read, daemon=True).start()
    ours = logger("choosy")
    ours.addHandler(replies)
    ours.setLevel(logging.INFO)
    policy, engine, device = calls.get()
    while True:
        call = calls.get()
        try:
            if call is None:
                engine.close()
                os._exit(0)
            answer(call, policy, engine, torch.device(device), replies)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # whatever it is, it is raised where the call was made
            replies.send("failed", sendable(error))


def answer(call: Any, policy: Policy, engine: Sampler, device: torch.device, replies: Replies) -> None:
    """Answer one call: sample responses from the weights that come with it."""
    weights, prompts, seeds, settings, threads = call
    torch.set_num_threads(threads)
    policy.load(device=device, seed=0)  # once; what is trained is replaced
    now = torch.load(io.BytesIO(weights), weights_only=True)
    with torch.no_grad():
        for name, p in policy.trainable():
            p.copy_(now[name])
    started, synced = engine.start_seconds, engine.sync_seconds
    engine.sample(policy, prompts, seeds, settings=settings, done=lambda ended: replies.send("done", dict(ended)))
    replies.send("over", (engine.start_seconds - started, engine.sync_seconds - synced, engine.origin))


def sendable(error: BaseException) -> BaseException:
    """The error, or its words where it cannot cross to another process."""
    try:
        pickle.dumps(copy(error))
    except Exception:  # some take other arguments than those they keep
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
