"""What trackers get of a round, and how one that cannot begin is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pools import put

from choosy.data.pool import Pool
from choosy.data.pool_rows import to_row
from choosy.reporting.tracked import Row, answers, log_round, of_answers
from choosy.reporting.trackers import MLFlowLogger, TrackioLogger, WandbLogger
from choosy.sealed import write_line
from choosy.types import Candidates, Pair, Prompt, Response

KEY = "canary-0123456789"
PAIRED = Candidates(
    Prompt("p0", "tea"),
    (
        Response("good", finished=True, logp=-1.0, logp_ref=-2.0, reward=2.0),
        Response("bad", finished=False, logp=-3.0, logp_ref=-2.5, reward=0.0),
        Response("so so", finished=False, logp=-3.0, logp_ref=-3.0, reward=1.0),
    ),
    round=1,
    utility=0.25,
    pairs=(Pair(0, 1, weight=1.5, utility=0.5), Pair(2, 1), Pair(0, 2)),
)
EARLIER = Candidates(Prompt("p1", "rain"), (Response("old", reward=9.0),), round=0)
GIVEN = Candidates(Prompt("p2", "soup"), (Response("given", finished=True, reward=3.0),), round=1)
POOL = put(put(Pool(), [EARLIER], round=0), [PAIRED, GIVEN], round=1)
TWO = [Candidates(Prompt(n, f"held out {KEY}"), (Response("now"), Response("then"))) for n in "ab"]
HELDOUT = [to_row(each, origin="heldout", split="heldout", outcome=1.0) for each in TWO]


class Seen:
    """A tracker that keeps what it is given."""

    def __init__(self, table_rows: int) -> None:
        self.table_rows = table_rows
        self.rows: Sequence[Row] = ()
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics = metrics

    def log_answers(self, rows: Sequence[Row], *, round: int, step: int) -> None:
        self.rows = rows


def test_the_table_has_the_answers_of_the_round_and_what_was_chosen() -> None:
    rows = answers(POOL.table, HELDOUT, round=1, most=100)
    assert [(row["prompt"], row["completion"], row["choice"]) for row in rows[:4]] == [
        ("tea", "good", "chosen"),
        ("tea", "bad", "rejected"),
        ("tea", "so so", "chosen, rejected"),
        ("soup", "given", ""),
    ]
    assert {name: rows[0][name] for name in ("reward", "utility", "prompt_utility", "weight", "logp", "ref_logp")} == {
        **{"reward": 2.0, "utility": 0.5, "prompt_utility": 0.25, "weight": 1.5, "logp": -1.0, "ref_logp": -2.0}
    }
    assert [(row["choice"], row["outcome"]) for row in rows[4:]] == [("tuned", 1.0), ("start", 1.0)] * 2


def test_means_are_of_the_answers_of_the_round_and_of_sampled_ones() -> None:
    assert of_answers(POOL.table, round=1) == {
        "objective/scores": 1.5,
        "objective/kl": pytest.approx((1.0 - 0.5) / 3),
        "val/contain_eos_token": pytest.approx(1 / 3),
    }
    assert of_answers(Pool().table, round=0) == {}


def test_a_tracker_sets_how_many_rows_it_takes_and_other_loggers_get_none() -> None:
    few, none = Seen(3), Seen(0)
    log_round([object(), few, none], POOL, HELDOUT, step=7)
    assert [row["completion"] for row in few.rows] == ["good", "bad", "so so", "now", "then", "now"]
    assert (none.rows, none.metrics) == ((), few.metrics)


def test_secrets_and_half_characters_are_not_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    half: dict[str, Any] = {**HELDOUT[0], "responses": ["\ud800", "http://me:secret@host"]}
    rows = answers(POOL.table, [half], round=2, most=100)
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        ("held out [SOME_API_KEY]", "\\ud800"),
        ("held out [SOME_API_KEY]", "http://[password]@host"),
    ]


def test_weights_and_biases_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_MODE": "online", "HOME": tmp_path, "NETRC": tmp_path / "netrc"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"W&B begins no run .*; type wandb login, or export WANDB_MODE=offline"):
        WandbLogger(str(tmp_path), project="choosy").log_hyperparams({"lr": 1.0})


def test_an_mlflow_server_that_is_not_there_is_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{KEY}@127.0.0.1:9")
    logger = MLFlowLogger(str(tmp_path))
    with pytest.raises(ValueError, match=r"MLflow begins no run .*logger\.mlflow\.tracking_uri=") as refused:
        logger.log_hyperparams({"lr": 1.0})
    write_line(tmp_path / "mlflow_run_id", "0" * 32)
    with pytest.raises(ValueError, match=r"mlflow_run_id names an MLflow run") as lost:
        MLFlowLogger(str(tmp_path)).log_hyperparams({"lr": 1.0})
    assert KEY not in f"{refused.value} {lost.value}"


def test_another_run_of_the_same_name_in_trackio_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path)
    for folder in (tmp_path / "a" / "plum", tmp_path / "b" / "plum"):
        folder.mkdir(parents=True)
        logger = TrackioLogger(str(folder), name="plum")
        logger.log_hyperparams({"lr": 1.0})
        logger.log_metrics({"loss_step": 1.0}, step=0)
        logger.finalize("success")
    with pytest.raises(ValueError, match="names a run of Trackio, and the newest one of its name, plum, is another"):
        TrackioLogger(str(tmp_path / "a" / "plum"), name="plum").log_hyperparams({"lr": 1.0})
    trackio.delete_project("choosy", force=True)
    with pytest.raises(ValueError, match=r"Trackio begins no run .*'plum' does not exist.*; put back its data"):
        TrackioLogger(str(tmp_path / "a" / "plum"), name="plum").log_hyperparams({"lr": 1.0})
