"""How long do the other processes of a run live when one has failed? python benchmarks/ranks_end.py --times 2

Runs of two and three gloo processes, started by Lightning and by torchrun. In the middle of the training, or while
rank 0 waits for a label, one process raises or is killed with -9; measured is the time from then until no process of
the run is left, with the machine's load beside it. Written to benchmarks/results/ranks_end.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import ROOT, save
from kill import prepare

FAILS = """
import os, pathlib, signal, time
from lightning.pytorch import Callback

HERE = pathlib.Path(__file__).parent

def fail(how):
    HERE.joinpath("failed").write_text(str(time.time()))
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("the first error of all")

class Fails(Callback):
    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    def setup(self, trainer, pl_module, stage):
        HERE.joinpath(f"pid{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.global_rank == self.rank:
            fail(self.how)

class FailsWhileLabeled(Fails):
    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        if trainer.global_rank == self.rank:
            import threading
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while not HERE.joinpath("labeling").exists():
            time.sleep(0.05)
        time.sleep(1)
        fail(self.how)

def slow(prompt, response):
    HERE.joinpath("labeling").touch()
    time.sleep(3600)
"""
CASES: dict[str, tuple[str, int, str]] = {
    "one raises in a training step": ("Fails", 1, "raise"),
    "one is killed in a training step": ("Fails", 1, "kill"),
    "rank 0 is killed in a training step": ("Fails", 0, "kill"),
    "one is killed while rank 0 waits for a label": ("FailsWhileLabeled", 1, "kill"),
}


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def seconds_to_end(folder: Path, lines: list[str], *, case: str, launcher: str, processes: int) -> float:
    """Seconds from a failure until all processes of the run have ended.

    Raises:
        RuntimeError: Some have not within five minutes; they are ended now.
    """
    name, rank, how = CASES[case]
    for left in (*folder.glob("pid*"), folder / "failed", folder / "labeling"):
        left.unlink(missing_ok=True)
    words = [*lines, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "name=run"]
    words += [f"+callbacks.fails={{_target_: fails.{name}, rank: {rank}, how: {how}}}"]
    words += ["labeler.path=fails.slow"] if name == "FailsWhileLabeled" else []
    words += [f"run_dir={tempfile.mkdtemp(dir=folder)}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    started = [sys.executable, *(torchrun if launcher == "torchrun" else []), str(ROOT / "train.py"), *words]
    environ = {**os.environ, "PYTHONPATH": str(folder), "BILL": str(folder / "bill")}
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(started, cwd=folder, env=environ, stdout=log, stderr=log)
    end = time.monotonic() + 600
    while not (folder / "failed").exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if not (folder / "failed").exists():
        run.kill()
        raise RuntimeError(f"the run did not get so far:\n{(folder / 'log').read_text()[-3000:]}")
    pids = [run.pid, *(int((folder / f"pid{r}").read_text()) for r in range(processes))]
    end = time.monotonic() + 300
    while run.poll() is None or any(map(is_running, pids)):
        if time.monotonic() > end:
            for pid in filter(is_running, pids):
                os.kill(pid, 9)
            raise RuntimeError(f"{case}, {launcher}: some of {processes} processes were there after five minutes")
        time.sleep(0.05)
    return time.time() - float((folder / "failed").read_text())


def main() -> None:
    """Let processes fail in every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2, help="of each case")
    asked = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = [*prepare(folder), "data.heldout=null", "rounds=1"]
        (folder / "fails.py").write_text(FAILS)
        for case, launcher, processes in product(CASES, ("lightning", "torchrun"), (2, 3)):
            about = {"case": case, "launcher": launcher, "processes": processes}
            took = [
                seconds_to_end(folder, lines, case=case, launcher=launcher, processes=processes)
                for _ in range(asked.times)
            ]
            found.append({**about, "seconds": [round(t, 1) for t in took], "load": round(os.getloadavg()[0], 1)})
            print(found[-1], flush=True)
    longest = max(t for row in found for t in row["seconds"])
    save("ranks_end", {"longest seconds": longest, "runs": asked.times * len(found), "cases": found})


if __name__ == "__main__":
    main()
