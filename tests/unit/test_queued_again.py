"""What becomes of a SLURM job whose machine is taken back, as far as scontrol's answers decide it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from choosy.resume import slurm
from choosy.resume.slurm import QueuedAgain, end_with_slurm, leave

RUNNING = "JobId=7 JobState=RUNNING Requeue=1 PreemptEligibleTime=2026-01-01T10:00:00 PreemptTime="
PREEMPTED = f"{RUNNING}2026-01-01T10:05:00"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Put back the handlers that a test replaces."""
    before = {signum: signal.getsignal(signum) for signum in slurm.SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a scontrol that answers with `shown` notes what it queues again."""
    (tmp_path / "shown").write_text(PREEMPTED)
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\ncd {tmp_path}\nif [ $1 = show ]; then cat shown; else echo "$@" >> queued; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm, "PATIENCE", 0.0)
    return tmp_path / "queued"


@pytest.mark.parametrize(
    ("shown", "signum", "again"),
    [
        (PREEMPTED, signal.SIGTERM, True),
        (f"{RUNNING}None", signal.SIGTERM, False),  # a signal that somebody has sent
        (PREEMPTED.replace("RUNNING", "COMPLETING"), signal.SIGTERM, False),  # cancelled, or queued again already
        (f"{RUNNING}None", signal.SIGUSR1, True),
        (PREEMPTED, signal.SIGUSR2, False),
    ],
)
def test_a_job_is_queued_again_where_its_machine_or_its_time_is_taken(
    shown: str, signum: signal.Signals, again: bool, queued: Path
) -> None:
    queued.with_name("shown").write_text(shown)
    with pytest.raises(SystemExit) as stop:
        leave(signum)
    assert stop.value.code == 128 + signum
    assert isinstance(stop.value, QueuedAgain) == again == queued.exists()
    assert not again or queued.read_text() == "requeue 7\n"


def test_a_job_of_an_array_has_the_array_s_number(queued: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with pytest.raises(QueuedAgain):
        leave(signal.SIGUSR1)
    assert queued.read_text() == "requeue 5_2\n"


def test_only_the_first_process_queues_its_job_again(queued: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):
        leave(signal.SIGTERM)
    assert not queued.exists()


def test_a_container_without_scontrol_is_told_of(
    queued: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stop:
        leave(signal.SIGUSR1)
    assert not isinstance(stop.value, QueuedAgain)
    assert "scontrol requeue 7 failed" in caplog.text
    assert "No such file" in caplog.text


def test_submitit_lets_sigterm_pass_and_a_run_does_not(queued: Path) -> None:
    from submitit.core.job_environment import SignalHandler

    def of_the_user(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, SignalHandler.bypass)
    signal.signal(signal.SIGUSR1, of_the_user)
    end_with_slurm()
    assert signal.getsignal(signal.SIGTERM) is leave
    assert signal.getsignal(signal.SIGUSR1) is of_the_user


def test_outside_of_slurm_nothing_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = [signal.getsignal(signum) for signum in slurm.SIGNALS]
    end_with_slurm()
    assert [signal.getsignal(signum) for signum in slurm.SIGNALS] == before


def test_a_scontrol_that_does_not_answer_is_not_waited_for(
    queued: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queued.with_name("scontrol").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(slurm, "ANSWERS", 0.2)
    with pytest.raises(SystemExit) as stop:
        leave(signal.SIGUSR1)
    assert not isinstance(stop.value, QueuedAgain)
    assert "scontrol requeue 7 failed: " in caplog.text
    assert "timed out after 0.2 seconds" in caplog.text
