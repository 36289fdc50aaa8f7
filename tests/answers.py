"""Types command lines in one process, and returns what each of them is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROGRAM = """
import contextlib, io, json, resource, sys
from choosy.__main__ import main
sys.modules["wandb"] = None  # as if it were not installed
def seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
said, took = {}, {"start": seconds()}
for line in json.loads(sys.argv[1]):
    sys.argv[1:] = line.split(" ")
    out, began = io.StringIO(), seconds()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            print(end.code)
    said[line], took[line] = out.getvalue(), seconds() - began
    heavy = [name for name in ("torch", "lightning", "transformers", "peft", "pandas") if name in sys.modules]
    if heavy:
        sys.exit(f"{line} imports {heavy}: {said[line]}")
print(json.dumps({"said": said, "took": took}))
"""


def answers(lines: Iterable[str], folder: Path) -> Any:
    """What each line printed, `said`, and the seconds of processors it `took`; a line that imports torch fails."""
    words = [sys.executable, "-c", PROGRAM, json.dumps([*lines])]
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])
