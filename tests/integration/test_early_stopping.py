"""A run that early stopping has ended is finished, and goes on where it no early stopping is typed."""

from __future__ import annotations

from pathlib import Path

from tiny import command, summary, typed

NEVER_BETTER = ("callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1000")


def test_a_stopped_run_is_finished_and_goes_on_without_early_stopping(
    tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path
) -> None:
    of_run = ("callbacks=best", "data.heldout_limit=2", "~logger.tensorboard", f"run_dir={tmp_path}/played")
    words = ["-m", "choosy", "train", *typed(tmp_path, tiny_policy_dir, prompts_file), *of_run]
    stopped = command(*words, *NEVER_BETTER, "rounds=4", "callbacks.report.console=true", folder=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert summary(tmp_path / "played")["rounds"] == 2
    assert " chat " in stopped.stdout
    assert "to continue" not in stopped.stdout
    assert " callbacks.early_stopping=null ckpt_path=last  # for the other rounds\n" in stopped.stdout
    again = command(*words, *NEVER_BETTER, "rounds=4", "ckpt_path=auto", folder=tmp_path)
    assert " is finished: " in again.stdout, again.stderr
    on = command(*words, *NEVER_BETTER, "rounds=4", "callbacks.early_stopping=null", "ckpt_path=auto", folder=tmp_path)
    assert " is finished: " not in on.stdout
    assert summary(tmp_path / "played")["rounds"] == 4, on.stdout + on.stderr


def test_a_run_below_the_least_quality_is_finished_and_goes_on_without_it(
    tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path
) -> None:
    of_run = ("data.heldout_limit=2", "~logger.tensorboard", "rounds=3", f"run_dir={tmp_path}/played")
    words = ["-m", "choosy", "train", *typed(tmp_path, tiny_policy_dir, prompts_file), *of_run]
    least = "+callbacks.least_quality={_target_:callbacks.least_quality.LeastQuality,after:[-9,99]}"
    stopped = command(*words, least, "callbacks.report.console=true", folder=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert summary(tmp_path / "played")["rounds"] == 2
    assert "is below 99, the least that is wanted now" in stopped.stderr
    assert " callbacks.least_quality=null ckpt_path=last  # for the other rounds\n" in stopped.stdout
    again = command(*words, least, "ckpt_path=auto", folder=tmp_path)
    assert " is finished: " in again.stdout, again.stderr
    on = command(*words, "ckpt_path=last", folder=tmp_path)
    assert summary(tmp_path / "played")["rounds"] == 3, on.stdout + on.stderr
