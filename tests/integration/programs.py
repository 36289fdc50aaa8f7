"""Python programs in processes of their own, which fork_server.py starts in a moment."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")


@cache
def server() -> socket.socket:
    """The socket of this process's fork server, which is started at the first use."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    environ.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(theirs.fileno())],
        env=environ,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def free_port() -> int:
    """A free port below those that the system gives to outgoing connections, so that none takes it meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


class Program:
    """A running Python program, and of subprocess.Popen what the tests use."""

    def __init__(self, words: list[str], *, folder: Path, environ: dict[str, str], ranks: int = 1) -> None:
        """Start `python WORDS` in a folder.

        Args:
            words: The command line after `python`.
            folder: The working directory.
            environ: The whole environment. What libraries read when they are imported is as it was at the first use.
            ranks: So many processes with the variables that Lightning's launcher gives them; the pid is rank 0's.
        """
        if ranks > 1:
            environ = {**environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        request = {"words": words, "folder": str(folder), "environ": environ, "ranks": ranks}
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(server(), [json.dumps(request).encode()], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self.args = words
        self.stdout, self.stderr, self._report = (os.fdopen(end, errors="replace") for end, _ in pipes)
        self.returncode: int | None = None
        self.pid = self._reported()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr, self._report):
            file.close()

    def _reported(self) -> int:
        line = self._report.readline()
        if not line:
            raise RuntimeError("the fork server has ended; its stderr says why")
        return int(line)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.returncode = self._reported()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._reported()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what all its processes write until they end, and close its files; at the timeout they are killed."""
        with self, ThreadPoolExecutor(2) as pool:
            written = [pool.submit(output.read) for output in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
                stdout, stderr = (text.result(timeout) for text in written)
            except (subprocess.TimeoutExpired, TimeoutError):
                os.killpg(self.pid, signal.SIGKILL)
                raise
        return stdout, stderr
