"""Queues a SLURM job again whose machine is taken back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from types import FrameType
from typing import NoReturn

from choosy.resume.failed_starts import is_first_process
from choosy.terminal import logger

log = logger(__name__)

JOB = "SLURM_JOB_ID"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ANSWERS = 20.0  # seconds that scontrol may take, as SLURM soon ends a job that it takes back
PATIENCE = 5.0  # seconds in which the first process can queue the job again before another one ends


class QueuedAgain(SystemExit):
    """This process ends, and its SLURM job is in the queue again."""


def end_with_slurm() -> None:
    """Let SIGTERM and SIGUSR1 end this process by `leave`, if a SLURM job runs it and nobody handles them.

    submitit handles SIGTERM and does nothing.
    """
    if JOB not in os.environ or threading.current_thread() is not threading.main_thread():
        return
    for signum in SIGNALS:
        handler = signal.getsignal(signum)
        if handler == signal.SIG_DFL or str(getattr(handler, "__module__", "")).startswith("submitit."):
            signal.signal(signum, leave)


def leave(signum: int, frame: FrameType | None = None) -> NoReturn:
    """End this process with 128 plus the signal's number; the first one of a SLURM job queues the job again.

    It does so after SIGUSR1, and after SIGTERM where the job was preempted: SLURM itself queues no job again that ends
    within the time that a preempted one has left. SIGTERM of a cancelled job, or of one whose time is over, is the end.
    """
    queued = False
    if JOB in os.environ:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # as SLURM sends to a job that is queued again, scontrol included
        if not is_first_process():
            time.sleep(PATIENCE)
        elif signum == signal.SIGUSR1 or (signum == signal.SIGTERM and is_preempted()):
            queued = queue_again()
    raise (QueuedAgain if queued else SystemExit)(128 + signum)


def is_preempted() -> bool:
    """Whether SLURM wants this job's machine for another job and has not yet decided to end this one."""
    done = scontrol("show", "job", job := job_number())
    if done.returncode:
        log.error("scontrol show job %s failed, so the job is not queued again: %s", job, done.stderr.strip())
    shown = done.stdout
    return "JobState=RUNNING" in shown and re.search(r"\bPreemptTime=\d", shown) is not None


def queue_again() -> bool:
    """Queue this SLURM job again under the same number, and return whether it is."""
    done = scontrol("requeue", job := job_number())
    if done.returncode:
        log.error("scontrol requeue %s failed: %s", job, done.stderr.strip())
        return False
    log.warning("SLURM job %s is queued again.", job)
    return True


def job_number() -> str:
    """The number of this SLURM job, as scontrol takes it."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ[JOB]


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol, which a container may lack."""
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False, timeout=ANSWERS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))
