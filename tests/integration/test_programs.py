"""A forked program behaves as one in a new interpreter."""

from __future__ import annotations

import signal

import pytest
from programs import Program
from tiny import command, environ

SEES = "import os, sys; print(sys.argv, os.getcwd(), sys.path, __name__, __doc__, sys.stdin.read(), os.environ)"
PROGRAMS = {
    "what it sees": (SEES, 0),
    "an error": ("raise ValueError('no')", 1),
    "a sentence": ("import sys; print('yes'); sys.exit('no')", 1),
    "a code": ("import sys; sys.exit(75)", 75),
    "at the end": ("import atexit; atexit.register(print, 'bye'); print('hello')", 0),
    "a thread": ("import threading; threading.Timer(0.1, print, ['late']).start()", 0),
    "a signal": ("import os, signal; print('lost'); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "a signal that raises": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
}
WAYS = {"script": ["program.py"], "module": ["-m", "program"]}


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "code") for name in PROGRAMS), *((name, way) for name in ("what it sees", "an error") for way in WAYS)],
)
def test_a_fork_does_what_a_new_interpreter_does(name, way, tmp_path):
    program, code = PROGRAMS[name]
    (tmp_path / "program.py").write_text(program)
    words = ["-c", program] if way == "code" else WAYS[way]
    ours, theirs = (command(*words, "one", "two=2", folder=tmp_path, fresh=fresh) for fresh in (False, True))
    assert ours.returncode == theirs.returncode == code
    assert ours.stdout == theirs.stdout
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_a_signal_reaches_the_program_that_it_is_sent_to(tmp_path):
    wait = "import time; print('here', flush=True); time.sleep(600)"
    first, second = (Program(["-c", wait], folder=tmp_path, environ=environ(tmp_path)) for _ in range(2))
    with first, second:
        assert [first.stdout.readline(), second.stdout.readline()] == ["here\n", "here\n"]
        assert first.poll() is second.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == -signal.SIGTERM
        assert second.poll() is None
        second.kill()
        assert second.wait(60) == -signal.SIGKILL


def test_ranks_are_forks_of_rank_0(tmp_path):
    program = """
import os
words = [*(os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")), str(os.getppid())]
os.write(1, f"{' '.join(words)}\\n".encode())  # a line at once: the ranks share the pipe
"""
    run = Program(["-c", program], folder=tmp_path, environ=environ(tmp_path), ranks=3)
    output, _ = run.communicate(60)
    rows = sorted(line.split() for line in output.splitlines())
    assert [row[:2] for row in rows] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({row[2] for row in rows}) == 1
    assert {row[3] for row in rows[1:]} <= {str(run.pid), "1"}, "their parent is rank 0, unless it has ended"
