"""A search for better settings inside a safe region: its runs, what it takes from earlier sweeps, what it refuses."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import yaml
from tiny import ROOT, command, summary, typed

from choosy.data.table_files import read_about, read_table, write_table
from choosy.reporting.summary import read_run
from choosy.reporting.sweeps import quality_of, read_sweep, words_of
from choosy.sweeper import SafeSweeper, least_of

pytestmark = pytest.mark.slow
TRAIN = ROOT / "train.py"
SEARCH = ["experiment=online_tuning", "lr=1e-3", "hydra.sweeper.allowed_loss=1", "hydra.sweeper.n_trials=3"]


@pytest.fixture
def lines(tmp_path, tiny_policy_dir, prompts_file) -> list[str]:
    small = ["data.limit=4", "data.heldout_limit=2", "rounds=1", "~logger.tensorboard"]
    return [*typed(tmp_path, tiny_policy_dir, prompts_file), *small]


@pytest.fixture
def earlier(lines, tmp_path) -> Path:
    """The table of a sweep over the learning rate, and over an option that no search here knows."""
    grid = ["lr=3e-4,2e-3", "data.responses=2,3", "seed=5", f"hydra.sweep.dir={tmp_path}/earlier"]
    run = command(TRAIN, "-m", *lines, *grid, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert command("-m", "choosy", "compare", tmp_path / "earlier", folder=tmp_path).returncode == 0
    return tmp_path / "earlier" / "compare.csv"


def settings(run: Path) -> dict[str, str]:
    """What was typed for a run."""
    return dict(word.partition("=")[::2] for word in words_of(run) or ())


def test_a_search_starts_from_what_is_typed_takes_earlier_runs_and_goes_on_after_a_kill(lines, earlier, tmp_path):
    line = ["-m", *lines, *SEARCH, f"hydra.sweeper.earlier=[{earlier}]"]
    run = command(TRAIN, *line, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "2 runs of" in run.stdout
    assert "2 others differ in data.responses" in run.stdout
    sweep = tmp_path / "multirun" / "online_tuning"
    first, second, third = (settings(sweep / str(n)) for n in range(3))
    assert (first["lr"], first["loss.beta"], first["epochs_per_round"], first["seed"]) == ("0.001", "0.1", "1", "0")
    assert [second["seed"], third["seed"]] == ["1", "2"]
    assert all(2e-5 <= float(of_run["lr"]) <= 2e-3 for of_run in (second, third))
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert found["cost"] == sum(summary(sweep / str(n))["labels"]["spent"] for n in range(3))
    assert (found["trials"], found["stopped"]) == (3, "hydra.sweeper.n_trials=3 are played")
    assert found["start_params"] == {"lr": 0.001, "loss.beta": 0.1, "epochs_per_round": 1}
    assert "Best: lr=" in run.stdout

    (sweep / "2" / "summary.json").unlink()  # as if it were killed in its report
    before = {n: (sweep / str(n) / "ledger.sqlite").stat().st_mtime_ns for n in range(2)}
    again = command(TRAIN, *line, "hydra.sweeper.n_trials=4", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {n: (sweep / str(n) / "ledger.sqlite").stat().st_mtime_ns for n in range(2)} == before
    assert settings(sweep / "2") == third
    assert (sweep / "3" / "summary.json").exists()


def test_a_search_stops_runs_and_goes_on_with_them_after_a_kill(lines, tmp_path):
    strict = ["rounds=3", "hydra.sweeper.allowed_loss=0.01", "hydra.sweeper.least_gain=0", "hydra.sweeper.n_trials=4"]
    line = ["-m", *lines, *SEARCH, *strict]
    run = command(TRAIN, *line, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    sweep = tmp_path / "multirun" / "online_tuning"
    played = [read_run(sweep / str(n)) for n in range(4)]
    assert [one.finished for one in played] == [True] * 4
    assert not played[0].stopped_early, "the start is played to its end"
    short = [one for one in played if one.stopped_early]
    assert short
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert (found["trials"], found["trials_stopped"]) == (4, len(short))
    assert f"4 runs, {len(short)} of them stopped early, cost" in run.stdout
    assert found["cost"] == sum(one.numbers()["labels"]["spent"] for one in played)
    stopped = short[0]
    _, reached = quality_of(stopped)
    assert reached[-1] < least_of(words_of(stopped.folder) or [])[len(stopped.rounds) - 1]
    assert "The run ends: its quality" in run.stderr
    courses = [course for arm in read_sweep(sweep)[0].values() for course in arm.values()]
    assert sorted(len(course.quality) - 1 for course in courses) == sorted(len(one.rounds) for one in played)
    compared = command("-m", "choosy", "compare", sweep, folder=tmp_path)
    assert (compared.returncode, "The 4 arms are listed in compare.csv" in compared.stdout) == (0, True)

    (stopped.folder / "summary.json").unlink()  # as if it were killed in its report
    again = command(TRAIN, *line, "hydra.sweeper.n_trials=5", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [len(read_run(sweep / str(n)).rounds) for n in range(4)] == [len(one.rounds) for one in played]
    assert read_run(stopped.folder).stopped_early
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert (found["trials"], found["trials_stopped"] >= len(short)) == (5, True)

    earlier = [
        "hydra.sweep.dir=multirun/later",
        "hydra.sweeper.earlier=[multirun/online_tuning/compare.csv]",
        "hydra.sweeper.n_trials=0",
    ]
    later = command(TRAIN, *line, *earlier, folder=tmp_path)
    assert later.returncode == 0, later.stderr
    assert "4 runs of" in later.stdout


def test_a_search_without_stopping_plays_all_rounds(lines, tmp_path):
    whole = ["rounds=2", "callbacks.least_quality=null", "hydra.sweeper.allowed_loss=0.01", "hydra.sweeper.n_trials=2"]
    run = command(TRAIN, "-m", *lines, *SEARCH, *whole, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert [len(read_run(tmp_path / "multirun" / "online_tuning" / str(n)).rounds) for n in range(2)] == [2, 2]


def test_a_search_stops_within_its_budget(lines, tmp_path):
    run = command(TRAIN, "-m", *lines, *SEARCH, "hydra.sweeper.budget=9", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    found = yaml.safe_load((tmp_path / "multirun/online_tuning/optimization_results.yaml").read_text())
    assert found["stopped"] == "the next run would exceed hydra.sweeper.budget=9"
    assert (found["trials"], found["cost"]) == (1, 8)


def test_a_search_stops_where_nothing_promises_enough(lines, tmp_path):
    hopeless = ["hydra.sweeper.least_gain=100", "hydra.sweeper.patience=1", "hydra.sweeper.n_trials=9"]
    run = command(TRAIN, "-m", *lines, *SEARCH, *hopeless, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    ended = "2 runs cost 16; no safe settings were expected to gain 100 in the last 1 runs"
    assert ended in run.stdout
    assert ended in command(TRAIN, "-m", *lines, *SEARCH, *hopeless, folder=tmp_path).stdout, "typed again"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["lr=1"], "The search starts from lr=1, which hydra.sweeper.params.lr does not contain: type another lr=..."),
        (
            ["hydra.sweeper.params.epochs_per_round='range(1,9,2)'", "epochs_per_round=4"],
            "The search starts from epochs_per_round=4, which hydra.sweeper.params.epochs_per_round does not contain",
        ),
        (["objective=win_rate"], "This search maximises the quality, not objective=win_rate: leave that out."),
        (["labels.evaluation=none"], "objective=quality needs held-out answers that are judged"),
        (["seed=0,1"], "type one seed, which is the first"),
        (["hydra.sweeper.allowed_loss=0"], "hydra.sweeper.allowed_loss=0: with no loss allowed nothing can be tried."),
        (["hydra.sweeper.confidence=1"], "hydra.sweeper.confidence=1 is not in the range"),
        (["hydra.sweeper.label_price=0"], "Type what a run costs"),
        (["hydra.sweeper.label_price=inf"], "Type what a run costs"),
        (["hydra.sweeper.params=null"], "Nothing is searched"),
        (["hydra.sweeper.earlier=[compare.csv]"], "there is no file compare.csv. Type choosy compare DIR"),
        (["hydra.sweeper.earlier=[other.csv]"], "other.csv has no column typed, seed"),
    ],
)
def test_what_a_search_refuses_before_it_plays(more, said, lines, tmp_path):
    (tmp_path / "other.csv").write_text("labels,seconds,quality\n1,1,1\n")
    run = command(TRAIN, "-m", *lines, *SEARCH, *more, folder=tmp_path)
    assert run.returncode == 1
    assert said in " ".join(run.stderr.split())
    assert not [*tmp_path.rglob("rounds")]


def test_a_search_takes_no_unfinished_runs_of_an_earlier_sweep(lines, earlier, tmp_path):
    runs = [path.parent for path in (tmp_path / "earlier").rglob("summary.json")]
    killed = next(run for run in runs if settings(run)["data.responses"] == "2")
    (killed / "summary.json").unlink()
    only = killed / "rounds" / "round_000.parquet"
    write_table(read_table(only), only, read_about(only) | {"rounds": 4})
    assert command("-m", "choosy", "compare", tmp_path / "earlier", folder=tmp_path).returncode == 0
    line = [*lines, *SEARCH, f"hydra.sweeper.earlier=[{earlier}]", "hydra.sweeper.n_trials=0"]
    said = command(TRAIN, "-m", *line, folder=tmp_path).stdout
    assert "1 runs of" in said
    assert "; unfinished, and left out: 1" in said


def test_a_search_takes_no_runs_of_another_task(lines, earlier, tmp_path):
    other = ["labeler.path=toy.nan_for_chess", f"hydra.sweeper.earlier=[{earlier}]"]
    run = command(TRAIN, "-m", *lines, *SEARCH, *other, folder=tmp_path)
    assert run.returncode == 1
    assert "they differ in data.responses, labeler.path" in " ".join(run.stderr.split())


def test_a_search_refuses_the_runs_of_another_search(lines, tmp_path):
    assert command(TRAIN, "-m", *lines, *SEARCH, "hydra.sweeper.n_trials=1", folder=tmp_path).returncode == 0
    run = command(
        TRAIN, "-m", *lines, *SEARCH, "lr=1e-4", "hydra.sweeper.params.lr='interval(5e-5,2e-4)'", folder=tmp_path
    )
    assert run.returncode == 1
    assert "another search: type such as hydra.sweep.dir=multirun/mine" in run.stderr


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweeper = SafeSweeper({}, 0.1, 0.8, 20, None, 1.0, 0.0, 0.01, 3, [])
    with pytest.raises(ValueError, match=r"A search needs Optuna: pip install 'choosy-tuning\[cluster\]'"):
        sweeper.sweep([])


def test_a_search_without_its_flag_is_refused(tmp_path):
    run = command(TRAIN, "experiment=online_tuning", folder=tmp_path)
    assert run.returncode == 1
    assert "choosy train -m experiment=online_tuning" in run.stderr


def test_the_comparison_says_what_was_typed_for_each_run(earlier):
    rows = [*csv.DictReader(earlier.read_text().splitlines())]
    assert {"lr=0.0003" in row["typed"].split() for row in rows} == {True, False}
    assert all("labeler.path=toy.vowels" in row["typed"].split() for row in rows)
