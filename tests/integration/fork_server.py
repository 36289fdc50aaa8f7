"""Forks Python programs from a process that has imported their libraries; programs.py starts it.

An import of torch, Lightning and transformers takes seven seconds of a CPU, a tiny run one. This process imports them
once and runs none of their code; each program is a fork of it, and in all else what a new interpreter would be.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    *(
        "torch.distributed.launcher.api",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "torch.utils.tensorboard",
    ),
    *("transformers.models.auto", "transformers.models.llama.modeling_llama", "peft", "safetensors.torch"),
    *("lightning.pytorch.cli", "lightning.pytorch.loggers", "lightning.pytorch.strategies", "hydra", "jsonargparse"),
    *("datasets", "pandas", "pyarrow.parquet", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("sentence_transformers", "httpx2", "filelock"),
)
ENTRIES = {
    "choosy.__main__",
    "choosy.main",
    "choosy.cli",
    "choosy.api",
    "choosy.evaluation",
    "choosy.tuned_model",
    "choosy.chat",
    "choosy.push",
}  # they note the command line


def preload() -> None:
    """Import what a program may need, and of ours all but what reads the command line."""
    ours = {
        ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__")
        for package, folder in (("choosy", "src/choosy"), ("callbacks", "callbacks"), ("data_modules", "data_modules"))
        for path in (ROOT / folder).rglob("*.py")
    }
    for name in (*LIBRARIES, *sorted(ours - ENTRIES)):
        importlib.import_module(name)
    assert "choosy.main" not in sys.modules, "a module that imports choosy.main is missing in ENTRIES"


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork once for each request and report how each program ends, until the last client is gone.

    A request is JSON with the words, the folder, the environment and the number of ranks, and three files: stdout,
    stderr and a pipe, which gets the pid in a line and later the exit code in another.

    Returns:
        In a forked process: its request. In this one, at the end: None.
    """
    running: dict[int, int] = {}  # pid -> the pipe that gets its exit code
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    while True:
        ready, *_ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report_ended(running)
        if requests not in ready:
            continue
        text, files, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not text:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        if (pid := os.fork()) == 0:
            take_over(files, unwanted=[woken, wakes, requests.detach(), *running.values()])
            request: dict[str, Any] = json.loads(text)
            return request
        *outputs, running[pid] = files
        os.write(running[pid], b"%d\n" % pid)
        for output in outputs:
            os.close(output)


def take_over(files: list[int], *, unwanted: list[int]) -> None:
    """Leave the server's session, signals and files behind, and write where the request says."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    for file in (*files, *unwanted):
        os.close(file)


def report_ended(running: dict[int, int]) -> None:
    """Write the exit codes of the programs that have ended; of one that a signal ended, minus its number."""
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            pipe = running.pop(pid)
            with suppress(BrokenPipeError):  # the test did not wait for it
                os.write(pipe, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(pipe)


def fork_ranks(number: int) -> None:
    """Become rank 0 and fork the others, with the variables that Lightning's launcher sets."""
    rank = next((rank for rank in range(1, number) if os.fork() == 0), 0)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(number))


def prepare(request: dict[str, Any]) -> None:
    """Make of a fork what a new interpreter with this environment would be."""
    import numpy as np
    from lightning.fabric.utilities import rank_zero

    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    if request["ranks"] > 1:
        fork_ranks(request["ranks"])
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # Lightning reads it when it is imported
    np.random.seed()
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def run(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    match words:
        case ["-m", name, *arguments]:
            sys.argv = ["-m", *arguments]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            sys.path.insert(0, "")
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__doc__": None})
        case [script, *_]:
            sys.argv = words
            sys.path.insert(0, str(Path(script).resolve().parent))
            runpy.run_path(script, run_name="__main__")


def leave() -> None:
    """End as an interpreter does after its last line, without half a second of unloading libraries."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    preload()
    gc.collect()
    gc.freeze()  # forks share what is never looked at again
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        prepare(request)
        run(request["words"])
        leave()
