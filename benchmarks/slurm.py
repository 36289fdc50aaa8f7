"""Run Choosy under SLURM itself, on this machine alone: python benchmarks/slurm.py

Debian's and Ubuntu's packages are enough: sudo apt-get install slurmctld slurmd slurm-client munge. The cluster is that
of tests/small_slurm.py: two nodes, both this machine, in a temporary folder, without root, cgroups or a service. It is
stopped and removed at the end, also after a failure. The steps of the runs sleep, so that they take little processor.

Played are the job of docs/clusters.md with a task on each node; the same job preempted while it starts, labels or
trains, with a grace time or without; the same job near the end of its time; and a grid of submitit_slurm, undisturbed
and preempted. What was interrupted must end as what was not, to the bit: weights, responses, labels, metrics, summary.

Written to benchmarks/results/slurm.json: how each job ended, and what SLURM's controller logged about it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from common import ROOT, save
from kill import ending, labels, prepare
from small_slurm import SmallSlurm, missing, small_slurm

SLOW = """
import os, time
from lightning.pytorch import Callback
from paid import vowels

class Pause(Callback):
    def on_train_batch_end(self, *_):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))

def slow_vowels(prompt, response):
    time.sleep(float(os.environ.get("LABEL_SECONDS", "0")))
    return vowels(prompt, response)
"""
JOB = """#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@60
#SBATCH --requeue
srun {choosy} train {words} trainer.num_nodes=2 trainer.devices=1 ckpt_path=auto"""
GRID = "hydra/launcher=submitit_slurm hydra.launcher.partition=low hydra.launcher.gpus_per_node=null "
GRID += "hydra.launcher.cpus_per_task=1 hydra.launcher.tasks_per_node=2 trainer.devices=2 ckpt_path=auto seed=0,1"


class Bench:
    """The runs that are played on a cluster, in a folder of theirs."""

    def __init__(self, slurm: SmallSlurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        (folder / "slow.py").write_text(SLOW)
        self.lines = [*prepare(folder), "labeler.path=slow.slow_vowels", "+callbacks.pause._target_=slow.Pause"]
        self.lines += ["trainer=ddp", "trainer.accelerator=cpu", "rounds=2", "epochs_per_round=4"]
        self.lines += ["callbacks.checkpoint.every_n_steps=1000"]  # only a signal writes one within a round
        slurm.environ |= {"BILL": str(folder / "bill"), "HF_HUB_OFFLINE": "1"}
        self.rows: dict[str, dict[str, Any]] = {}

    def submit(self, name: str, *options: str, seconds: float = 0.5) -> str:
        """Queue the run under a name."""
        self.slurm.environ |= {"STEP_SECONDS": str(seconds), "LABEL_SECONDS": "0.1"}
        words = " ".join([*self.lines, f"run_dir={self.folder / name}"])
        script = JOB.format(choosy=Path(sys.executable).with_name("choosy"), words=words)
        return self.slurm.submit([*options, f"--job-name={name}"], script, self.folder)

    def preempt(self, *run_dirs: Path, when: Callable[[Path], object]) -> str:
        """Take both nodes away for a moment, once all runs are so far."""
        self.slurm.wait("run to preempt", lambda: all(when(each) for each in run_dirs))
        return self.slurm.submit(["--partition=high", "--nodes=2", "--exclusive"], "sleep 1", self.folder)

    def ended(self, name: str, jobs: dict[str, Path], began: float, like: dict[Path, Path]) -> None:
        """Note how the jobs of a name ended, and whether their runs are equal to others."""
        states = {job: self.slurm.finish(job) for job in jobs}
        for job, state in states.items():
            if state != "COMPLETED":
                raise SystemExit(f"{name}: job {job} has ended as {state}:\n{self.output()}")
        unequal = sorted({part for one, other in like.items() for part in differences(one, other)})
        self.rows[name] = {
            "jobs": len(jobs),
            "restarts": [int(self.slurm.shown(job, "Restarts")) for job in jobs],
            "states": [*states.values()],
            "unequal": unequal,
            "seconds": round(time.monotonic() - began),
            "log": [line for job in jobs for line in self.slurm.log(job)],
        }
        print(f"{name}: {states}, {self.rows[name]['restarts']} restarts, unequal: {unequal or 'nothing'}", flush=True)

    def output(self) -> str:
        """The last lines of all jobs."""
        files = sorted(self.folder.rglob("*.out")) + sorted(self.folder.rglob("*.err"))
        return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in files)

    def play(self) -> None:
        """Play everything."""
        self.undisturbed("undisturbed")
        self.grid("grid", preempted=False, like=[self.folder / "undisturbed"])
        self.grid("preempted grid", preempted=True, like=[self.folder / "grid" / n for n in "01"])
        self.out_of_time("out of time")
        self.preempted("preempted while it trains", "low", trains)
        self.preempted("preempted while it labels", "low", is_labeled)
        self.preempted("preempted while it starts", "low", starts)
        self.preempted("preempted without grace", "graceless", trains)

    def undisturbed(self, name: str) -> None:
        began = time.monotonic()
        job = self.submit(name)
        self.ended(name, {job: self.folder / name}, began, {})

    def preempted(self, name: str, partition: str, when: Callable[[Path], object]) -> None:
        began, run = time.monotonic(), self.folder / name.replace(" ", "_")
        job = self.submit(run.name, f"--partition={partition}")
        self.slurm.finish(self.preempt(run, when=when))
        self.ended(name, {job: run}, began, {run: self.folder / "undisturbed"})

    def out_of_time(self, name: str) -> None:
        began, run = time.monotonic(), self.folder / name.replace(" ", "_")
        job = self.submit(run.name, "--time=3", seconds=4)
        self.ended(name, {job: run}, began, {run: self.folder / "undisturbed"})

    def grid(self, name: str, *, preempted: bool, like: list[Path]) -> None:
        began, sweep = time.monotonic(), self.folder / name.replace(" ", "_")
        self.slurm.environ |= {"STEP_SECONDS": "1" if preempted else "0.5", "LABEL_SECONDS": "0"}
        words = [*self.lines, *GRID.split(), f"hydra.sweep.dir={sweep}"]
        with sweep.with_suffix(".out").open("w") as out:
            line = [Path(sys.executable).with_name("choosy"), "train", "-m", *words]
            played = subprocess.Popen(line, cwd=self.folder, env=self.slurm.environ, stdout=out, stderr=out)
        runs = [sweep / "0", sweep / "1"]
        try:
            if preempted:
                self.preempt(*runs, when=trains)
            if played.wait(900):
                raise SystemExit(f"{name} has ended with {played.returncode}:\n{self.output()}")
        finally:
            played.kill()
        array = next(sweep.glob(".submitit/*_0")).name.removesuffix("_0")
        jobs = {f"{array}_{n}": run for n, run in enumerate(runs)}
        self.ended(name, jobs, began, dict(zip(runs, like, strict=False)))


def starts(run: Path) -> bool:
    """Whether the run's processes import their libraries."""
    return (run / "run.lock").exists()


def is_labeled(run: Path) -> bool:
    """Whether its first labels are bought."""
    return (run / "ledger.sqlite").exists() and len(labels(run)) >= 3


def trains(run: Path) -> bool:
    """Whether it has trained some steps."""
    return (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) >= 3


def differences(run: Path, other: Path) -> list[str]:
    """What two runs differ in that must not."""
    one, two = ending(run), ending(other)
    return [part for part in one if one[part] != two[part]]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if lacks := missing():
        sys.exit(f"{', '.join(lacks)}: not found; type sudo apt-get install slurmctld slurmd slurm-client munge")
    with tempfile.TemporaryDirectory(prefix="choosy-slurm-") as folder:
        (at := Path(folder) / "cluster").mkdir()
        (runs := Path(folder) / "runs").mkdir()
        os.chdir(runs)
        with small_slurm(at) as slurm:
            bench = Bench(slurm, runs)
            try:
                bench.play()
            finally:
                os.chdir(ROOT)
                save("slurm", {"slurm": slurm("sinfo", "--version"), **bench.rows})
    if any(row["unequal"] for row in bench.rows.values()):
        sys.exit("not every run ended as the undisturbed one")


if __name__ == "__main__":
    main()
