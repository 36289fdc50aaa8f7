"""Ctrl-C or SIGTERM while labels are bought."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT, environ, labels, summary, typed

SLOW = """
import pathlib, time

def slow(prompt, response):
    pathlib.Path("asked").touch()
    time.sleep(0.5)
    return float(sum(map(ord, response)) % 7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "status"), [([signal.SIGINT], 130), ([signal.SIGTERM, signal.SIGTERM], 143)])
def test_a_stopped_run_prints_the_command_that_continues(
    signals: list[signal.Signals], status: int, tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path
) -> None:
    (tmp_path / "sleepy.py").write_text(SLOW)
    given = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if not line.startswith("labeler.path")]
    lines = [*given, "labeler.path=sleepy.py:slow", "rounds=1", "data.heldout=null", "overwrite=true"]
    line = [sys.executable, str(ROOT / "train.py"), *lines, "run_dir='a run'"]
    with subprocess.Popen(line, cwd=tmp_path, env=environ(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not (tmp_path / "asked").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1.2)
        for each in signals:  # `timeout` sends its signal twice
            process.send_signal(each)
            time.sleep(0.01)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    before = labels(tmp_path / "a run" / "ledger.sqlite")
    assert len(before) > 0
    command = said.rstrip().splitlines()[-1].strip()
    assert command.startswith(f"python {ROOT}/train.py ")  # as it was typed, from another folder
    assert "overwrite" not in command
    again = subprocess.run(
        f"{sys.executable} {command.removeprefix('python ')}",
        shell=True,
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert "GPU available" not in again.stdout + again.stderr, "Lightning's banners are shown"
    after = labels(tmp_path / "a run" / "ledger.sqlite")
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    assert summary(tmp_path / "a run")["rounds"] == 1
