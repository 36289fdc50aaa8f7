"""The process that samples, forked from this one: it needs no seconds to import its libraries."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch

from choosy.sampling import elsewhere


class Forked:
    """What `Elsewhere` uses of subprocess.Popen."""

    started: ClassVar[list[Forked]] = []  # by this process

    def __init__(self, words: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> None:
        code, (pipe,) = words[-1], pass_fds
        sys.stdout.flush()
        torch.set_num_threads(1)  # a fork has none of the other threads, and would wait for them
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.closerange(3, pipe)
            os.closerange(pipe + 1, 1 << 16)
            try:
                exec(code, {"__name__": "forked"})
            finally:
                os._exit(1)
        Forked.started.append(self)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def fork_samplers(patched: pytest.MonkeyPatch) -> None:
    """Fork the processes that sample."""
    patched.setattr(Forked, "started", [])
    patched.setattr(elsewhere, "Popen", Forked)
