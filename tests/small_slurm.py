"""SLURM itself on this machine, as long as a block lasts, for tests and benchmarks.

Needed are the packages slurmctld, slurmd, slurm-client and munge of Debian or Ubuntu, and no service, cgroup or
privilege: who starts it is the only user. Its key, ports, state and logs are its own, in one folder.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("n1", "n2")
CONF = """
ClusterName=small
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPort={ports[0]}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=graceless Nodes=ALL PriorityTier=1 GraceTime=0
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs of SLURM that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def search_path() -> str:
    """Where programs are, daemons included."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class SmallSlurm:
    """A running cluster of two nodes of two processors, both this machine.

    The partitions `low` and `graceless` give their nodes to jobs of `high`, and queue theirs again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        known = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        where = {"PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self.environ = {**known, **where, "MASTER_ADDR": "127.0.0.1"}  # no address is known by the name of a node

    def __call__(self, *words: str, cwd: Path | None = None) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(words, env=self.environ, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def submit(self, options: Sequence[str], script: str, folder: Path) -> str:
        """Queue a job, whose output is in the folder, and return its number."""
        file = folder / "job.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        return self("sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options, str(file), cwd=folder)

    def shown(self, job: str, name: str) -> str:
        """A word of what scontrol says about a job."""
        found = re.search(rf"\b{name}=(\S*)", self("scontrol", "show", "job", job))
        return found[1] if found else ""

    def wait(self, what: str, there: Callable[[], object], seconds: float = 600) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not there():
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds:.0f} s there is no {what}; the queue:\n{self('squeue')}")
            time.sleep(0.5)

    def finish(self, job: str, seconds: float = 600) -> str:
        """Wait for a job's end and return its last state."""
        self.wait(f"end of job {job}", lambda: self.shown(job, "JobState") not in UNFINISHED, seconds)
        return self.shown(job, "JobState")

    def log(self, job: str) -> list[str]:
        """What the controller has logged about a job."""
        lines = (self.folder / "slurmctld.log").read_text().splitlines()
        return [line for line in lines if re.search(rf"JobId={job}\b", line)]


UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")


@contextmanager
def small_slurm(folder: Path) -> Iterator[SmallSlurm]:
    """Start a cluster in an empty folder, and stop it with all its jobs."""
    ports = free_ports(1 + len(NODES))
    folder.chmod(0o755)
    for name in ("state", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONF.format(user=getpass.getuser(), folder=folder, ports=ports))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    cluster = SmallSlurm(folder)
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
    with ExitStack() as stack:
        stack.enter_context(daemon(cluster, "munged", "--foreground", "--force", "--num-threads=2", *munge))
        cluster.wait("munge", (folder / "munge.socket").exists, 30)
        stack.enter_context(daemon(cluster, "slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(daemon(cluster, "slurmd", "-D", "-N", node))
        cluster.wait("idle node", lambda: idle(cluster) == len(NODES), 60)
        stack.callback(cancel_all, cluster)
        yield cluster


MUNGE = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


@contextmanager
def daemon(cluster: SmallSlurm, *words: str) -> Iterator[None]:
    """Start a daemon that stays in the foreground, and stop it."""
    with (cluster.folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(words, env=cluster.environ, stdout=log, stderr=log, cwd=cluster.folder)
    try:
        time.sleep(0.5)
        if process.poll() is not None:
            raise RuntimeError(f"{words[0]} has ended: {(cluster.folder / 'daemons.log').read_text()}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def idle(cluster: SmallSlurm) -> int:
    """How many nodes are ready; none before the controller answers."""
    try:
        return sum(line == "idle" for line in cluster("sinfo", "-h", "-N", "-p", "high", "-o", "%T").splitlines())
    except RuntimeError:
        return 0


def cancel_all(cluster: SmallSlurm) -> None:
    """Cancel all jobs, and wait until their processes have ended."""
    user = getpass.getuser()
    cluster("scancel", "--user", user)
    cluster.wait("end of all jobs", lambda: not cluster("squeue", "-h"), 90)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
