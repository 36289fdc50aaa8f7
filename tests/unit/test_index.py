"""What the index of a sweep says of runs whose numbers are known."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import EVIL, write_run

from choosy.console import Terminal
from choosy.reporting.index import read_index, write_index
from choosy.reporting.summary import read_run, write_summary
from choosy.sealed import read_json, write_json


def write_job(folder: Path, words: list[str], *, config: dict[str, Any] | None = None, **numbers: Any) -> None:
    """A finished run: what was typed for it, its configuration, and numbers that are not those of every run."""
    write_run(folder)
    write_summary(read_run(folder), folder / "summary.json")
    write_json(folder / "summary.json", read_json(folder / "summary.json") | numbers)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {}))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def printed(folder: Path) -> str:
    screen = io.StringIO()
    read_index(folder).print(Terminal(file=screen, width=200))
    return screen.getvalue()


def reward(final: float) -> dict[str, Any]:
    return {"reward": {"initial": 0.25, "final": final}}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two selectors with two seeds each, and a run that was interrupted."""
    constants = ["rounds=2", "model.name=m"]
    for job, (selector, seed, final) in enumerate(
        [("optune", 0, 0.25), ("optune", 1, 0.75), ("certainty", 0, 1.0), ("certainty", 1, 2.0)]
    ):
        words = [*constants, f"selector={selector}", f"seed={seed}"]
        write_job(tmp_path / str(job + 8), words, seed=seed, **reward(final))
    write_run(tmp_path / "3", rounds=3)  # it has no summary
    return tmp_path


def test_the_index_has_a_column_for_each_option_that_varies_and_for_what_was_measured(sweep):
    write_index(read_index(sweep))
    found = rows(sweep)
    assert [row["job"] for row in found] == ["8", "9", "10", "11"], "in the order of the jobs"
    measures = ["reward_initial", "reward_final", "win_rate"]
    assert list(found[0]) == ["job", "selector", "seed", *measures, "labels", "tokens", "seconds"]
    assert [(row["selector"], row["seed"]) for row in found] == [
        (selector, seed) for selector in ("optune", "certainty") for seed in "01"
    ]
    assert found[1] | {"reward_final": "0.75", "win_rate": "0.875", "labels": "24", "seconds": "18.0"} == found[1]
    page = (sweep / "index.html").read_text()
    assert '<a href="8/report.html">8</a>' in page
    assert "1.50 ± 0.71" in page
    assert not list(sweep.rglob("*.unfinished"))


def test_the_means_over_seeds_are_printed_best_first_with_the_best_run(sweep):
    lines = [line.split() for line in printed(sweep).splitlines() if line.strip()]
    assert lines[0] == ["selector", "best", "run", "runs", "reward", "win", "rate", "labels"]
    assert lines[2] == ["certainty", "11", "2", "1.50", "±", "0.71", "88%", "±", "0%", "24", "±", "0"]
    assert lines[3][:6] == ["optune", "9", "2", "0.50", "±", "0.35"]
    assert f"Best: selector=certainty: reward 1.50 ± 0.71 in 2 runs, the best of them {sweep}/11." in printed(sweep)
    assert "With 2 seeds of each arm nothing can be said" in printed(sweep)
    assert printed(sweep).endswith(f"Next: choosy compare {sweep}\n")


def test_an_option_that_only_some_runs_were_given_has_the_others_value_from_their_configuration(tmp_path):
    parts = {"certainty": {"_target_": "callbacks.certainty.Certainty", "fraction": 0.5}}
    loss = {"_target_": "choosy.methods.pair_losses.PairLoss", "formula": "ipo"}
    config = {"lr": 2e-4, "labels": {"budget": None}, "loss": loss, "callbacks": parts}
    write_job(tmp_path / "0", [], config=config)
    write_job(tmp_path / "1", ["lr=1e-3", "labels.budget=9", "loss=hinge", "selector=optune"])
    write_index(read_index(tmp_path))
    options = [{name: row[name] for name in ("lr", "labels.budget", "loss", "selector")} for row in rows(tmp_path)]
    assert options == [
        {"lr": "0.0002", "labels.budget": "", "loss": "ipo", "selector": "certainty"},
        {"lr": "1e-3", "labels.budget": "9", "loss": "hinge", "selector": "optune"},
    ]


def test_runs_on_given_pairs_have_their_accuracy_loss_and_margin(tmp_path):
    nothing = {"reward": {"initial": None, "final": None}, "win_rate": None}
    for job, (loss, accuracy) in enumerate([("sigmoid", 0.75), ("ipo", 0.75), ("hinge", 0.5)]):
        of_pairs = {name: {"initial": 0.5, "final": accuracy} for name in ("accuracy", "loss", "margin")}
        write_job(tmp_path / str(job), [f"loss={loss}"], heldout_pairs=of_pairs, **nothing)
    write_index(read_index(tmp_path))
    both = [f"{name}_{when}" for name in ("accuracy", "loss", "margin") for when in ("initial", "final")]
    assert list(rows(tmp_path)[0]) == ["job", "loss", "seed", *both, "labels", "tokens", "seconds"]
    assert "Best: loss=sigmoid and loss=ipo, with the same accuracy of 75%." in printed(tmp_path)
    assert "held-out loss" in printed(tmp_path), "the other column of this name is the option"


def test_runs_that_nobody_judged_are_listed_and_not_compared(tmp_path):
    write_job(tmp_path / "0", ["seed=1"], win_rate=None, **reward(0.0) | {"reward": {"initial": None, "final": None}})
    write_index(read_index(tmp_path))
    assert "Nothing was judged" in (tmp_path / "index.html").read_text()
    assert printed(tmp_path) == f"All runs: {tmp_path}/index.html\n"


def test_rewards_of_different_judges_or_heldout_data_are_not_ranked_against_each_other(tmp_path):
    vader, other = ({"_target_": f"choosy.labeling.{name}"} for name in ("vader.Vader", "dataset.Dataset"))
    for job, (labeler, final) in enumerate([(vader, 0.5), (other, 9.0), (vader, 0.75)]):
        config = {"labeler": labeler, "data": {"heldout": "test.jsonl"}}
        write_job(tmp_path / str(job), [f"lr={job}"], config=config, **reward(final))
    said = printed(tmp_path)
    assert "such as labeler=dataset data.heldout=test.jsonl and labeler=vader data.heldout=test.jsonl" in said
    assert "Best:" not in said
    assert "Next:" not in said
    assert [each.options for each in read_index(tmp_path).means] == [("1",), ("2",), ("0",)]


def test_many_options_share_a_column_and_have_their_own_in_the_file(tmp_path):
    for job in range(9):
        write_job(tmp_path / str(job), [f"option{job}=on", "lr=1" if job else "lr=2"])
    first = next(line for line in printed(tmp_path).splitlines() if "option0=on" in line)
    assert first.split()[:3] == ["option0=on", "lr=2", "0"]
    assert "option1" not in first
    write_index(read_index(tmp_path))
    assert {"lr", "option0", "option8"} <= rows(tmp_path)[0].keys()
    assert '<td class="text">option0=on lr=2</td>' in (tmp_path / "index.html").read_text()


def test_the_index_escapes_what_was_typed(tmp_path):
    for job in "01":
        write_job(tmp_path / job, [f"+note={EVIL}{job}"])
    write_index(read_index(tmp_path))
    assert "<script" not in (tmp_path / "index.html").read_text()
    assert "&lt;script&gt;" in (tmp_path / "index.html").read_text()
