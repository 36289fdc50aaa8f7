"""Measures Choosy on one GPU in at most eight minutes, and needs no network: python benchmarks/gpu.py

The model is a Llama of 1.2 billion random weights, made here; its text means nothing, and its speed is that of a real
one. The parts run in this order, each with seconds of its own: the tests marked gpu; a round with sampler=generate;
DPO steps with sdpa, with FlexAttention on one row without padding, padded, and with `grouped`; both of the former
without fused layers; FSDP2 on one device; a run in bf16 that is stopped and resumed; vLLM, where it is installed.

What a part has found is written into benchmarks/results/gpu.json when it ends, and into the table of
docs/benchmarks.md. A part that fails, takes too long, runs out of memory or lacks a package says so there, and the next
one goes on. `--toy` plays all of it on a CPU at toy size, into another folder.

A machine without a network needs torch and transformers; the rest is carried. `--carry FOLDER` downloads it, here:

    python benchmarks/gpu.py --carry wheels --python 3.12 --there packages.txt    # there: pip freeze > packages.txt
    python benchmarks/gpu.py --wheels wheels                                      # on the machine with the GPU
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import wheels
from common import RESULTS, ROOT, machine, write_between, write_whole

SCRIPT = ROOT / "benchmarks" / "ours" / "gpu.py"
LEAST = 10  # seconds that are worth a start
START, END = "<!-- gpu: written by benchmarks/gpu.py -->", "<!-- end of gpu -->"
LIBRARIES = (
    *("torch", "transformers", "lightning", "peft", "torchmetrics", "hydra", "omegaconf", "pyarrow", "tenacity"),
    *("httpx2", "gguf"),
)
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",  # a machine without a network may not find its own name
    "NCCL_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True)
class Part:
    """Something that is measured."""

    name: str
    seconds: int  # most that it may take
    needs: tuple[str, ...] = LIBRARIES  # packages
    alone: bool = False  # in a process of its own


PARTS = (
    Part("card", 90),
    Part("tests", 100, (*LIBRARIES, "pytest", "pytest_timeout", "pandas")),
    Part("round", 70),
    Part("step sdpa", 45),
    Part("step flex_attention", 80),
    Part("step padded", 45),
    Part("step grouped", 45),
    Part("step sdpa, not fused", 40),
    Part("step flex_attention, not fused", 60),
    Part("step sdpa, FSDP2", 50),
    Part("resume", 60),
    Part("vllm", 130, (*LIBRARIES, "vllm"), alone=True),
    Part("vllm adapter", 90, (*LIBRARIES, "vllm"), alone=True),
)


class Worker:
    """The process that measures; a new one takes its place where it was ended or has died."""

    def __init__(self, job: dict[str, Any], log: Path) -> None:
        self.job, self.log = job, log
        self.process: subprocess.Popen[str] | None = None

    def ask(self, part: str, seconds: float) -> dict[str, Any]:
        """What a part finds, in so many seconds at most."""
        if self.process is None:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, SCRIPT, json.dumps(self.job)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**ENVIRON, **os.environ},
                    start_new_session=True,  # it may have processes of its own, which compile
                )
        process = self.process
        assert process.stdin
        assert process.stdout
        late = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            process.stdin.write(part + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except BrokenPipeError:
            said = ""
        finally:
            in_time = late.is_alive()
            late.cancel()
        if said:
            found: dict[str, Any] = json.loads(said)
            if "failed" in found:  # an error on a GPU spoils what follows in the process
                self.end()
            return found
        self.end()
        if not in_time:
            return {"stopped": f"it was not done after {seconds:.0f} s"}
        return {"failed": f"its process ended with {process.returncode}: {last_line(self.log)}"}

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()  # closes its pipes
            self.process = None


def last_line(log: Path) -> str:
    """The last line of a log that has words."""
    return next((line.strip()[:300] for line in reversed(log.read_text().splitlines()) if line.strip()), "")


def marked_tests(seconds: float, log: Path) -> dict[str, Any]:
    """The tests marked gpu, in so many seconds at most; vLLM has parts of its own."""
    files = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text()]
    words = ["-m", "gpu", "-W", "default", "-rs", "-q", "--no-header", "--continue-on-collection-errors", "-k"]
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words, "not vllm", *files],
            cwd=ROOT,
            env={**ENVIRON, **os.environ},
            stdout=out,
            stderr=out,
            start_new_session=True,  # some tests have processes of their own
        )
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        return {"stopped": f"they were not done after {seconds:.0f} s; the log says how far they came"}
    said = log.read_text()
    ending = next((line for line in reversed(said.splitlines()) if re.search(r" in \d+\.\d+s", line)), "")
    ends = r"(\d+) (passed|failed|skipped|errors?)\b"
    counts = {what.removesuffix("s"): int(n) for n, what in re.findall(ends, ending)}
    why = re.findall(r"^SKIPPED .*?: (.*)", said, re.MULTILINE)
    if not counts:
        return {"failed": f"pytest ended with {run.returncode}: {last_line(log)}"}
    return {**counts, **({"skipped_because": sorted(set(why))} if why else {})}


# -- what was found --------------------------------------------------------------------------------------------


ABOUT = {
    "step_s": "{:.3f} s a step",
    "mfu": "{:.0%} of the card's FLOP/s",
    "tflops": "{:.1f} TFLOP/s",
    "peak_gb": "{:.1f} GB",
    "tokens_per_s": "{:,.0f} tokens/s",
    "seconds": "{:.1f} s",
    "sampled_tokens_per_s": "sampled {:,.0f} tokens/s",
    "first_pass_s": "first pass {:.1f} s",
    "graphs": "{} graphs compiled",
    "new_lengths_step_s": "a step of new lengths {:.3f} s",
    "score_s": "the reference scored in {:.2f} s",
    "passed": "{} passed",
    "failed": "{} failed",
    "skipped": "{} skipped",
    "error": "{} not collected",
    "equal": "equal to the bit: {}",
    "difference_of_two_runs": "two runs of one seed differ by {:.2g}",
    "start_s": "start {:.0f} s",
    "sync_s": "weights handed over in {:.2f} s",
    "same_texts": "same texts after sleep {:.0%}",
    "awake_gb": "{:.1f} GB awake",
    "asleep_gb": "{:.1f} GB asleep",
    "product_tflops": "an 8192 x 8192 x 8192 product {:.0f} TFLOP/s",
    "out_of_memory": "out of memory: {}",
    "stopped": "stopped: {}",
}


def words(found: dict[str, Any]) -> str:
    """What a part has found, in a line of the table."""
    said = (
        ABOUT[name].format(found[name]) if not isinstance(found[name], str) else f"{name}: {found[name]}"
        for name in ABOUT
        if name in found
    )
    return "; ".join(said).replace("|", "/").replace("\n", " ")


def table(result: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    parts = result["parts"]
    card, versions = parts.get("card", {}), result["machine"]["versions"]
    of = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"{card.get('device', 'no device')}; {of}; {result['what']}.",
        "",
        "| part | found |",
        "|---|---|",
        *(f"| {name} | {words(found)} |" for name, found in parts.items()),
    ]


def play(out: Path, *, toy: bool, seconds: float) -> None:
    """Measure part after part, and write what each has found at once."""
    ends = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu.log"
    log.write_text("")
    what = "a toy" if toy else "a Llama of 1.2 billion random weights, bf16, LoRA of rank 16 on all linear layers"
    result: dict[str, Any] = {"machine": machine(), "what": what, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker({"toy": toy, "folder": folder}, log)
        try:
            for part in PARTS:
                began, left = time.monotonic(), ends - time.monotonic()
                limit = left if toy else min(part.seconds, left)
                if part.alone:
                    worker.end()
                if missing := [name for name in part.needs if find_spec(name) is None]:
                    found: dict[str, Any] = {"skipped": f"without {', '.join(missing)}"}
                elif left < LEAST:
                    found = {"skipped": f"{max(left, 0):.0f} of {seconds:.0f} s are left"}
                elif part.name == "tests":
                    found = marked_tests(limit, out / "gpu_tests.log")
                else:
                    found = worker.ask(part.name, limit)
                if part.name == "card" and not toy and found.get("device", "cpu") == "cpu":
                    sys.exit(
                        f"benchmarks/gpu.py measures a GPU, and found {found}. Type --toy to play it on a CPU; "
                        "--carry and --wheels bring packages that are missing (--help)."
                    )
                if part.alone:
                    worker.end()
                result["parts"][part.name] = {**found, "took_s": round(time.monotonic() - began, 1)}
                write_whole(out / "gpu.json", json.dumps(result, indent=1) + "\n")
                write_whole(out / "gpu.md", "\n".join(table(result)) + "\n")
                if not toy:
                    write_between(ROOT / "docs" / "benchmarks.md", START, END, table(result))
                print(f"{part.name}: {words(found)} ({time.monotonic() - began:.0f} s)", flush=True)
        finally:
            worker.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--seconds", type=float, default=470, help="most that all parts take together")
    parser.add_argument(
        "--out", type=Path, help="folder of gpu.json, gpu.md and the logs; benchmarks/results, or a new one with --toy"
    )
    parser.add_argument("--wheels", type=Path, help="folder that --carry has made: install it for this command")
    parser.add_argument("--carry", type=Path, help="measure nothing; download what a machine without a network lacks")
    parser.add_argument("--there", type=Path, help="with --carry: what that machine has, as pip freeze says")
    parser.add_argument(
        "--python", default=".".join(map(str, sys.version_info[:2])), help="with --carry: its version there"
    )
    typed = parser.parse_args()
    if typed.carry:
        wheels.carry(typed.carry, python=typed.python, packages=typed.there)
        return
    if typed.wheels:
        again = (
            ["--toy"] * typed.toy + ["--seconds", str(typed.seconds)] + (["--out", str(typed.out)] if typed.out else [])
        )
        wheels.use(typed.wheels, [__file__, *again])
    out = typed.out or (Path(tempfile.mkdtemp()) if typed.toy else RESULTS)
    play(out, toy=typed.toy, seconds=typed.seconds)
    print(f"written: {out / 'gpu.json'}")


if __name__ == "__main__":
    main()
