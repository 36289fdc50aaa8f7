"""Whole runs whose judge is asked while the sampling goes on: the same labels, the same pool, in less time."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faulty_judge import Asked, FaultyJudge, prefers_longer
from tiny import ROOT, command, ending, labels, typed

from choosy.labeling.buyer import LabelBuyer
from choosy.main import compose, train
from choosy.resume import partial_rounds as sampled
from choosy.rounds import round as round_module
from choosy.sampling import generate

HERE = Path(__file__).parent
SLOW = 0.15  # seconds that a request takes


def slow(asked: Asked) -> str:
    time.sleep(SLOW)
    return prefers_longer(asked)


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path) -> list[str]:
    given = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if "labeler" not in line]
    return [
        *[line for line in given if "data.limit" not in line and "data.heldout" not in line],
        "data.heldout=null",
        "sampler.batch_size=4",
        "labeler=judge",
        "labeler.model=toy",
        "labeler.endpoint.concurrency=2",
        "labeler.endpoint.retries.first_wait=0.01",
        "selector=none",
        "weighting=uniform",
    ]


@pytest.fixture
def slow_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take their time, and are kept one by one."""
    batch = generate._sample_batch

    def slowly(*args: Any) -> Any:
        time.sleep(0.4)
        return batch(*args)

    monkeypatch.setattr(generate, "_sample_batch", slowly)
    monkeypatch.setattr(sampled, "EVERY", 0.0)


def seconds(run_dir: Path) -> pd.Series:
    metrics = pd.read_csv(run_dir / "metrics.csv")
    return metrics[[name for name in metrics if name.startswith("seconds/")]].dropna().iloc[-1]


def test_labels_bought_ahead_are_those_bought_afterwards(lines, slow_sampling, tmp_path, monkeypatch, capsys) -> None:
    with FaultyJudge(slow) as server:
        typed = [*lines, f"labeler.base_url={server.url}"]
        train(compose(typed), tmp_path / "ahead")
        assert server.done["answered"] == 2 * len(labels(tmp_path / "ahead" / "ledger.sqlite"))
        assert "prompts were labeled while the round was sampled" in capsys.readouterr().err
        monkeypatch.setattr(LabelBuyer, "covers", lambda self, answers: False)  # then none is bought ahead
        train(compose(typed), tmp_path / "afterwards")
    one, other = ending(tmp_path / "ahead"), ending(tmp_path / "afterwards")
    early = one["metrics"].pop("labels/ahead")
    assert max(float(ahead or 0) for ahead in early) > 12, "of 24 in two rounds"
    assert set(other["metrics"].pop("labels/ahead")) <= {"", "0.0"}
    assert one == other
    tables = [
        labels(tmp_path / name / "ledger.sqlite").set_index("key")[["response_first", "response_second", "verdict"]]
        for name in ("ahead", "afterwards")
    ]
    pd.testing.assert_frame_equal(tables[0].sort_index(), tables[1].sort_index())
    ahead, afterwards = seconds(tmp_path / "ahead"), seconds(tmp_path / "afterwards")
    requests = 2 * 12 * SLOW / 2  # of a round, two at a time
    assert afterwards["seconds/label"] > 2 * requests
    assert ahead["seconds/label"] < 0.7 * afterwards["seconds/label"], (ahead, afterwards)


def test_a_judge_that_refuses_stops_the_run_while_it_samples(lines, slow_sampling, tmp_path) -> None:
    batches = 0
    batch = generate._sample_batch

    def counted(*args: Any) -> Any:
        nonlocal batches
        batches += 1
        return batch(*args)

    generate._sample_batch = counted  # slow_sampling restores it
    few = ["labeler.endpoint.retries.count=0", "sampler.batch_size=2"]
    with FaultyJudge(slow, lambda asked: "401") as server, pytest.raises(ValueError, match="status 401"):
        train(compose([*lines, *few, f"labeler.base_url={server.url}"]), tmp_path / "run")
    assert batches < 12, "it did not go on to the end"


def test_a_budget_that_was_spent_ahead_is_trained_on_by_the_run_that_goes_on(lines, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sampled, "EVERY", 0.0)
    ledger = tmp_path / "run" / "ledger.sqlite"
    score = round_module.score_reference

    def stopped(at: Any, candidates: Any) -> Any:
        if at.number == 1:
            end = time.monotonic() + 60
            while len(labels(ledger)) < 24 and time.monotonic() < end:
                time.sleep(0.05)
            raise RuntimeError("the machine stops")
        return score(at, candidates)

    with FaultyJudge(prefers_longer) as server:
        typed = [*lines, f"labeler.base_url={server.url}", "labels.budget=48"]
        with monkeypatch.context() as patched:
            patched.setattr(round_module, "score_reference", stopped)
            with pytest.raises(RuntimeError, match="the machine stops"):
                train(compose(typed), tmp_path / "run")
        assert len(labels(ledger)) == 24, "the budget is spent"
        train(compose([*typed, "ckpt_path=last"]), tmp_path / "run")
        train(compose(typed), tmp_path / "whole")
    assert len(labels(ledger)) == 24
    one, other = ending(tmp_path / "run"), ending(tmp_path / "whole")
    for run in (one, other):
        run["metrics"].pop("labels/ahead")
    assert one == other


@pytest.mark.slow
def test_killed_in_the_middle_nothing_is_sampled_or_paid_twice(lines, tmp_path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    with FaultyJudge(slow) as server:
        typed = [*lines, f"labeler.base_url={server.url}"]
        done = command(ROOT / "train.py", *typed, f"run_dir={whole}", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        answered = server.done["answered"]
        killed = command(HERE / "killed.py", "sampling labeled", 14, *typed, f"run_dir={run}", folder=tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        before = labels(run / "ledger.sqlite")
        assert len(before) > 0
        assert list(run.glob("rounds/sampling_*.parquet"))
        resumed = command(ROOT / "train.py", *typed, f"run_dir={run}", "ckpt_path=last", folder=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        answered = server.done["answered"] - answered
    after = labels(run / "ledger.sqlite")
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    one, other = ending(run), ending(whole)
    for run in (one, other):
        run["metrics"].pop("labels/ahead")
    assert one == other
    assert 0 <= answered - 2 * len(after) <= 4, "what was under way, two pairs in two orders, may be asked again"
