"""A minute of `make chaos`: runs are struck, doubled, linked, copied and damaged, and no promise is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_monkey_breaks_no_promise(tmp_path: Path) -> None:
    line = [sys.executable, ROOT / "benchmarks/chaos/run.py", "--seed", "5", "--operations", "30"]
    files = ["--folder", tmp_path / "world", "--out", tmp_path / "chaos.json"]
    done = subprocess.run([*line, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert report["operations"] >= 30
    assert report["runs_compared"] > 0
    assert report["checked"]["a label is paid for once"] >= 30
