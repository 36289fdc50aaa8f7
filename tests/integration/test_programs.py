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


@pytest.mark.parametrize("way", ["script", "module", "code"])
@pytest.mark.parametrize(("program", "code"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_fork_does_what_a_new_interpreter_does(program, code, way, tmp_path):
    (tmp_path / "program.py").write_text(program)
    words = {"script": ["program.py"], "module": ["-m", "program"], "code": ["-c", program]}[way]
    ours, theirs = (command(*words, "one", "two=2", folder=tmp_path, fresh=fresh) for fresh in (False, True))
    assert ours.returncode == theirs.returncode == code
    assert ours.stdout == theirs.stdout
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_several_run_at_once_and_a_signal_meets_the_right_one(tmp_path):
    wait = "import time; print('here', flush=True); time.sleep(600)"
    first, second = (Program(["-c", wait], folder=tmp_path, environ=environ(tmp_path)) for _ in range(2))
    assert [first.stdout.readline(), second.stdout.readline()] == ["here\n", "here\n"]
    assert first.poll() is second.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == -signal.SIGTERM
    assert second.poll() is None
    second.kill()
    assert second.wait(60) == -signal.SIGKILL


def test_ranks_are_a_family(tmp_path):
    program = "import os; print(*(os.environ[n] for n in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')), os.getppid())"
    run = Program(["-c", program], folder=tmp_path, environ=environ(tmp_path), ranks=3)
    told, _ = run.communicate(60)
    rows = sorted(line.split() for line in told.splitlines())
    assert [row[:2] for row in rows] == [["0", "3"], ["1", "3"], ["2", "3"]]
    assert len({row[2] for row in rows}) == 1
    assert {row[3] for row in rows[1:]} <= {str(run.pid), "1"}, "their parent is rank 0, unless it has ended"
