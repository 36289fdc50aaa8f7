"""`choosy compare` reads the runs of a sweep, as far as they came, and says which arm pays."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from typing import Any

import pytest

from choosy.__main__ import main
from choosy.reporting.compare import compare
from choosy.reporting.earlier import read_compared

ARMS = {"random_pairs": "selector=random_pairs", "certainty": "selector=certainty"}


@pytest.fixture
def sweep(play: Any, tmp_path: Any) -> Any:
    """Two arms with two seeds each, and a run that has only begun."""
    for arm, line in ARMS.items():
        for seed in (0, 1):
            run = play(line, "data.responses=3", f"seed={seed}", name=f"sweep/{arm}/{seed}")
            (run.run_dir / ".hydra").mkdir(exist_ok=True)
            (run.run_dir / ".hydra" / "overrides.yaml").write_text(f"[{line}, seed={seed}]")
    folder = tmp_path / "sweep"
    begun = folder / "certainty" / "2" / "rounds"
    begun.mkdir(parents=True)
    shutil.copy(run.run_dir / "rounds" / "round_000.parquet", begun)
    (begun / "round_000.parquet").write_bytes(b"PAR1 cut short")
    return folder


def choosy(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["choosy", *words])
    main()


def test_arms_are_compared_at_equal_labels_tokens_seconds_and_money(sweep, monkeypatch, capsys):
    choosy(monkeypatch, "compare", str(sweep), "--label-price", "0.05", "--hour-price", "2")
    said = capsys.readouterr().out
    for words in ("random_pairs", "money to the final reward of random_pairs"):
        assert words in said
    page = (sweep / "compare.html").read_text()
    for words in ("certainty", "Labels to the final reward of random_pairs", "Money to the final", "certainty/2: "):
        assert words in page
    rows = list(csv.DictReader((sweep / "compare.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3  # arms, seeds, evaluations
    last = rows[-1]
    assert float(last["money"]) == pytest.approx(0.05 * float(last["labels"]) + 2 / 3600 * float(last["seconds"]))
    assert (sweep / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_is_read_as_far_as_it_came(sweep):
    (sweep / "certainty" / "1" / "rounds" / "round_001.parquet").unlink()
    arms = compare(sweep).arms
    assert [len(arms["certainty"][seed].quality) for seed in (0, 1)] == [3, 2]


def test_the_quality_is_the_mean_over_the_heldout_prompts(sweep):
    for arm in compare(sweep).arms.values():
        for run in arm.values():
            assert len(run.answers) == 2
            means = [sum(values) / 2 for values in zip(*run.answers.values(), strict=True)]
            assert means == pytest.approx(run.quality)
            assert len(run.kl) == 3


def test_a_price_of_nothing_is_refused(sweep, monkeypatch):
    with pytest.raises(SystemExit, match=r"found 0 for a label and 0 for an hour\. Type --label-price 0.05 or"):
        choosy(monkeypatch, "compare", str(sweep), "--label-price", "0")


def test_a_baseline_that_is_no_arm_is_named(sweep, monkeypatch):
    with pytest.raises(SystemExit, match="baseline=random is none of the arms: certainty, random_pairs"):
        choosy(monkeypatch, "compare", str(sweep), "--baseline", "random")


def test_a_folder_without_runs_says_what_to_type(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="First type choosy train -m"):
        choosy(monkeypatch, "compare", str(tmp_path))


@pytest.mark.parametrize("words", [["report"], ["chat"], ["merge", "DIR"]])
def test_a_sweep_where_a_run_is_wanted_says_what_to_type(sweep, words, monkeypatch):
    command, *more = words
    said = rf"sweep is a sweep of 5 runs: type choosy compare {sweep}, or give the folder of one, such as {sweep}/certa"
    with pytest.raises(SystemExit, match=said):
        choosy(monkeypatch, command, str(sweep), *more)


def test_runs_on_given_pairs_are_compared_by_their_accuracy_on_held_out_ones(play, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": f"Day {n}?", "chosen": "Good and long.", "rejected": "Bad!"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["data=offline", "labeler=dataset", "data.heldout=null"]
    given += [f"data.{name}={tmp_path}/pairs.jsonl" for name in ("train", "heldout_pairs")]
    for loss in ("sigmoid", "ipo"):
        for seed in (0, 1):
            run = play(*given, f"loss={loss}", f"seed={seed}", "lr=1e-2", name=f"sweep/{loss}{seed}").run_dir
            (run / ".hydra").mkdir(exist_ok=True)
            (run / ".hydra" / "overrides.yaml").write_text(f"[loss={loss}, seed={seed}]")
    choosy(monkeypatch, "compare", str(tmp_path / "sweep"))
    said = capsys.readouterr().out
    assert "labels to the final accuracy of loss=ipo" in said
    assert "100% ± 0%" in said
    assert "Final accuracy, and its difference" in (tmp_path / "sweep" / "compare.html").read_text()


def test_runs_without_a_seed_in_common_are_listed_and_not_compared(play, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "search"
    for number, (lr, seed) in enumerate([("1e-3", 0), ("1e-4", 1), ("1e-4", 1)]):
        run = play("rounds=1", f"lr={lr}", f"seed={seed}", name=f"search/{number}").run_dir
        (run / ".hydra").mkdir(exist_ok=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"[lr={lr}, seed={seed}]")
    choosy(monkeypatch, "compare", str(folder))
    *_, sentence, left_out, written = capsys.readouterr().out.splitlines()
    assert sentence == "The 2 arms are listed in compare.csv and not compared: no seed in common with lr=1e-3."
    assert left_out == "2 is left out: another run of its arm has its seed, 1"
    assert written == str(folder / "compare.csv")
    assert {path.name for path in folder.iterdir()} == {"0", "1", "2", "compare.csv"}
    found = read_compared(folder / "compare.csv")
    assert [(run.words, len(run.course.quality)) for run in found] == [(("lr=1e-3",), 2), (("lr=1e-4",), 2)]
