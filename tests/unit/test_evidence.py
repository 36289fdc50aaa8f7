"""The scripts of the evidence compare runs that begin alike, and keep finished runs through a kill."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choosy.reporting.courses import Course

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = ("chat", "common", "film", "harmless", "page", "pools", "readme", "run", "sources", "store", "tasks")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The scripts, whose names are common ones, so that they are forgotten afterwards."""
    known = {name: sys.modules.pop(name) for name in SCRIPTS if name in sys.modules}
    for folder in (BENCHMARKS, BENCHMARKS / "evidence"):
        monkeypatch.syspath_prepend(folder)
    import run

    yield run
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    sys.modules.update(known)


def row(arm: str, seed: int, start: float, end: float, *, made: str = "here") -> str:
    costs = {"labels": [0, 8], "tokens": [0, 100], "seconds": [0, 1]}
    course = {"measure": "reward", "quality": [start, end], "kl": [0, 1], "answers": [[round(100 * start), 50]]}
    return json.dumps({"arm": arm, "seed": seed, "made": made, "lines": [f"selector={arm}"], **costs, **course}) + "\n"


def task(scripts: Any) -> Any:
    def nothing(*_: object) -> Any:
        raise AssertionError("nothing is made")

    return scripts.Task(
        nothing, nothing, [], "random", {arm: [f"selector={arm}"] for arm in ("random", "gap")}, [[]], 3
    )


def finished(scripts: Any, path: Path, made: str | None = None) -> dict[str, list[int]]:
    arms = scripts.finished(task(scripts), {"random": [], "gap": []}, 3, scripts.Store(path, made))
    return {arm: sorted(runs) for arm, runs in arms.items()}


def test_runs_that_begin_from_other_answers_are_not_compared(scripts, tmp_path, capsys):
    """As where another machine has trained another policy for the task."""
    path = tmp_path / "film.jsonl"
    begun = [row(arm, seed, 0.1 * seed, 1.0) for arm in ("random", "gap") for seed in range(3)]
    begun[-1] = row("gap", 2, 0.3, 1.0, made="elsewhere")
    path.write_text("".join(begun))
    assert finished(scripts, path) == {"random": [0, 1, 2]}, "the arm has two seeds"
    assert "seed 2: left out, for no run of random begins like them: gap" in capsys.readouterr().out
    path.write_text("".join(begun[:2] + begun[3:5] + [row("gap", 2, 0.2, 1.0)]))
    assert finished(scripts, path) == {"random": [0, 1], "gap": [0, 1]}, "an interrupted seed hides no others"
    assert "seed 2: left out, for no run of random begins like them: gap" in capsys.readouterr().out
    path.write_text("".join([*begun, row("gap", 2, 0.2, 1.5)]))
    assert finished(scripts, path) == {"random": [0, 1, 2], "gap": [0, 1, 2]}


def test_a_seed_from_two_machines_counts_twice_each_beside_a_baseline_of_its_own(scripts, tmp_path):
    path = tmp_path / "film.jsonl"
    here = [row(arm, seed, 0.1, 1.0) for arm in ("random", "gap") for seed in range(3)]
    elsewhere = [row(arm, 1, 0.3, 2.0, made="elsewhere") for arm in ("random", "gap")]
    path.write_text("".join(here + elsewhere))
    arms = scripts.finished(task(scripts), {"random": [], "gap": []}, 3, scripts.Store(path))
    found = {arm: [runs[n].quality for n in sorted(runs)] for arm, runs in arms.items()}
    assert found["random"] == found["gap"]
    assert sorted(found["gap"]) == [(0.1, 1.0), (0.1, 1.0), (0.1, 1.0), (0.3, 2.0)]


def test_a_machine_plays_what_is_missing_with_a_baseline_beside_it(scripts, tmp_path):
    """Seed 0 is whole; of seed 1 the arm is missing, and its baseline began from another machine's policy."""
    path = tmp_path / "film.jsonl"
    path.write_text(
        "".join(row(*run, 0.1, 1.0, made="elsewhere") for run in (("random", 0), ("gap", 0), ("random", 1)))
    )

    def left(made: str) -> list[tuple[str, int]]:
        jobs = scripts.wanted(task(scripts), {"random": [], "gap": []}, 3, scripts.Store(path, made))
        return sorted((job.arm, job.seed) for job in jobs)

    assert left("elsewhere") == [("gap", 1), ("gap", 2), ("random", 2)]
    assert left("here") == [("gap", 1), ("gap", 2), ("random", 1), ("random", 2)]


def test_another_policy_is_another_task(scripts, tmp_path):
    path = tmp_path / "film.jsonl"
    path.write_text(row("random", 0, 0.1, 1.0))
    (job,) = scripts.jobs_of(task(scripts), "random", [0], [])
    assert job in scripts.Store(path, "here")
    assert job not in scripts.Store(path, "elsewhere")
    made = tmp_path / "made"
    (made / "policy").mkdir(parents=True)
    (made / "train.jsonl").write_text("prompts")
    before = scripts.digest(made)
    (made / "policy" / "model.safetensors").write_bytes(b"weights")
    assert scripts.digest(made) != before
    assert scripts.digest(Path()) == "", "a task that makes nothing"


def test_a_line_that_a_kill_has_cut_is_taken_off(scripts, tmp_path, monkeypatch):
    path = tmp_path / "film.jsonl"
    whole = row("random", 0, 0.1, 1.0)
    cut = whole + row("random", 1, 0.1, 1.0)[:30]
    path.write_text(cut)
    store = scripts.Store(path, "here")
    assert store.seeds == {0}
    assert path.read_text() == cut, "to read it changes nothing: another process may be writing"

    found = Course({"labels": (0.0,), "tokens": (0.0,), "seconds": (0.0,)}, (0.1,), (0.0,), {"p": (0.1,)})
    monkeypatch.setattr("store.read_run", lambda folder: None)
    monkeypatch.setattr("store.course", lambda run: found)
    (job,) = scripts.jobs_of(task(scripts), "random", [2], [])
    store.add(job, tmp_path, "commit", 1.0)
    assert path.read_text().startswith(whole + '{"arm": "random", "seed": 2')
    assert scripts.Store(path).seeds == {0, 2}


def test_published_runs_of_one_seed_begin_alike(scripts, capsys):
    """The documentation compares these runs; a run from another start cannot be added to them."""
    results = BENCHMARKS / "results" / "evidence"
    for name, one in scripts.TASKS.items():
        if (results / f"{name}.jsonl").exists():
            store = scripts.Store(results / f"{name}.jsonl")
            settings = {arm: scripts.best(one, arm, store) for arm in scripts.ready(one, store, list(one.arms))}
            scripts.finished(one, settings, 20, store)
            assert "begins like them" not in capsys.readouterr().out, name
