"""What a run leaves behind, from round files written here by the contract."""

import io
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from callbacks.report import Report
from choosy.console import Terminal
from choosy.data.table_files import write_table
from choosy.reporting.curves import curves
from choosy.reporting.display import PHASES
from choosy.reporting.folders import run_folders
from choosy.reporting.index import read_index
from choosy.reporting.model_card import model_card
from choosy.reporting.report import crop, print_report, write_report
from choosy.reporting.summary import HeldoutAnswer, RunSummary, read_run, write_summary
from choosy.reporting.sweeps import read_sweep
from choosy.sealed import read_json

COLUMNS = pa.schema(
    {
        "split": pa.string(),
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "responses": pa.list_(pa.string()),
        "rewards": pa.list_(pa.float64()),
        "outcome": pa.float64(),
    }
)
EVIL = "<script>alert('x')</script>"


def write_round(folder: Path, name: str, rows: list[dict], facts: dict) -> None:
    write_table(pa.Table.from_pylist(rows, schema=COLUMNS), folder / "rounds" / f"{name}.parquet", facts)


def facts(number: int, *, rounds: int, budget: int | None, evaluation: dict | None) -> dict:
    """The metadata after round `number`: every round buys 12 labels, and each phase takes 1.5 s a round."""
    played = number + 1
    return {
        "round": number,
        "rounds": rounds,
        "seed": 7,
        "budget": budget,
        "labels": {"spent": 12 * played, "reused": played, "evaluation": 4 * (played + 1)},
        "tokens_generated": 1000 * played,
        "prompts_sampled": 8 * played,
        "responses_cut": 2 * played,
        "responses_empty": played,
        "sync_milliseconds": 250 * played,
        "pairs_trained": 6 * played,
        "judged": {"round": {}, "run": {"decided": 11 * played, "ties": played}},
        "money": {"spent": 0.5 * played, "evaluation": 0.0, "budget": None},
        "seconds": dict.fromkeys(PHASES, 1.5 * played),
        "evaluation": evaluation,
    }


def write_run(folder: Path, *, rounds: int = 2, played: int = 2, budget: int | None = 40) -> Path:
    prompts = [f"Prompt {i} {EVIL}" for i in range(10)]
    start = facts(-1, rounds=rounds, budget=budget, evaluation={"reward": 0.25, "length": 30.0})
    heldout = {"split": "heldout", "prompt_id": "p"}
    rows = [heldout | {"prompt": p, "responses": ["grey"], "rewards": [0.25]} for p in prompts]
    write_round(folder, "start", rows, start)
    for number in range(played):
        answers = [f"sunny {number} {EVIL}", "grey & <b>dull</b>"]
        now = {"responses": answers, "rewards": [0.5 + number / 4, 0.25], "outcome": 1.0}
        train = {
            "split": "train",
            "prompt_id": "t",
            "prompt": "t",
            "responses": ["a", "b"],
            "rewards": [None, 1],
        }
        measured = {"reward": 0.5 + number / 4, "win_rate": 0.75 + number / 8, "ties": 0.125, "invalid": 0.0}
        about = facts(number, rounds=rounds, budget=budget, evaluation=measured | {"kl": 1.5, "length": 33.0})
        write_round(folder, f"round_{number:03}", [train, *(heldout | now | {"prompt": p} for p in prompts)], about)
    return folder


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def printed(run: RunSummary, width: int = 100) -> str:
    screen = io.StringIO()
    print_report(run, Terminal(file=screen, width=width))
    return screen.getvalue()


def test_the_rounds_and_the_commands_are_whole_in_a_pipe(run_dir, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    run = read_run(run_dir)
    print_report(run)
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {run.headline, *(" ".join(row) for row in run.table())} <= lines
    assert " ".join(run.headings) in lines


@pytest.mark.parametrize(("kl", "shown"), [(-0.31, "-0.31"), (-0.001, "0.00")])
def test_a_negative_estimate_of_the_kl_is_explained_where_it_is_shown(tmp_path, kl, shown):
    folder = write_run(tmp_path / "run")
    write_round(folder, "round_001", [], facts(1, rounds=2, budget=None, evaluation={"kl": kl, "kl_error": 0.4}))
    run = read_run(folder)
    assert run.table()[-1][run.headings.index("KL")] == shown
    assert ("the estimate may be negative" in run.notes) == shown.startswith("-")
    assert run.notes.endswith("The last KL has a standard error of 0.40.")


def test_runs_are_looked_for_in_folders_that_may_be_a_sweep_s(tmp_path, monkeypatch):
    for job in ("b/0", "a/1", "a/0"):
        write_run(tmp_path / "sweep" / job)
    write_run(tmp_path / "sweep" / "a" / "0" / "replaced.1")
    assert run_folders(tmp_path) == [tmp_path / "sweep" / job for job in ("a/0", "a/1", "b/0")]
    assert run_folders(tmp_path / "sweep" / "b" / "0") == [tmp_path / "sweep" / "b" / "0"]
    monkeypatch.setattr("choosy.reporting.folders.MOST_FOLDERS", 3)
    for read in (read_run, read_index, read_sweep):
        with pytest.raises(ValueError, match="has more than 3 folders in it: type that of a sweep, or of a run"):
            read(tmp_path)


def test_summary_holds_the_numbers_of_the_contract(run_dir):
    run = read_run(run_dir)
    assert run.finished
    assert run.numbers() == {
        "rounds": 2,
        "seed": 7,
        "reward": {"initial": 0.25, "final": 0.75},
        "win_rate": 0.875,
        "ties": 0.125,
        "heldout_pairs": {key: {"initial": None, "final": None} for key in ("accuracy", "loss", "margin")},
        "training": {},
        "labels": {"spent": 24, "reused": 2, "evaluation": 12, "budget": 40},
        "judgements": {
            **{"decided": 22, "ties": 2, "invalid": 0, "tie_rate": 2 / 24, "invalid_rate": 0.0},
            **{"first_shown": None, "agreement": None},
        },
        "money": {"spent": 1.0, "evaluation": 0.0, "budget": None},
        "tokens_generated": 2000,
        "responses": {"cut": 4, "empty": 2},
        "sync_seconds": 0.5,
        "pairs_trained": 12,
        "seconds": dict.fromkeys(PHASES, 3.0) | {"total": 18.0},
    }


def test_summary_json_is_the_summary(run_dir):
    run = read_run(run_dir)
    write_summary(run, run_dir / "summary.json")
    assert read_json(run_dir / "summary.json") == run.numbers()
    assert json.loads((run_dir / "summary.json").read_text()).keys() == {"checksum", *run.numbers()}


def test_what_was_not_measured_is_null(tmp_path):
    folder = write_run(tmp_path, played=1, rounds=1)
    unmeasured = {"reward": None, "win_rate": None, "ties": 0.0}
    write_round(folder, "round_000", [], facts(0, rounds=1, budget=None, evaluation=unmeasured))
    run = read_run(folder)
    write_summary(run, folder / "summary.json")
    numbers = json.loads((folder / "summary.json").read_text())
    assert (numbers["reward"], numbers["win_rate"]) == ({"initial": 0.25, "final": None}, None)
    assert curves(run).startswith(b"\x89PNG")


def test_the_answers_are_those_of_the_last_round(run_dir):
    answers = read_run(run_dir).answers
    assert len(answers) == 10
    assert answers[3] == HeldoutAnswer(f"Prompt 3 {EVIL}", "grey & <b>dull</b>", f"sunny 1 {EVIL}", 0.25, 0.75, 1.0)


def test_what_full_rounds_would_have_cost(tmp_path):
    folder = write_run(tmp_path)
    assert read_run(folder).full_costs == "", "nothing is known of a run that counted neither"
    about = facts(1, rounds=2, budget=None, evaluation=None)
    write_round(folder, "round_001", [], about | {"responses_sampled": 50, "full_responses": 200, "full_labels": 100})
    line = "taken 100 labels and about 8,000 tokens; this run took 26% and 25% of them."
    assert read_run(folder).full_costs.endswith(line)
    assert line in " ".join(printed(read_run(folder)).split())
    assert line in (write_report(read_run(folder)), (folder / "report.html").read_text())[1]
    write_round(folder, "round_001", [], about | {"responses_sampled": 50, "full_responses": 50, "full_labels": 26})
    assert read_run(folder).full_costs == "", "the rounds were full"
    summed = {"full_labels": 52, "labels_per_answer": 2, "labels": {"spent": 0, "reused": 26, "evaluation": 0}}
    write_round(folder, "round_001", [], about | {"responses_sampled": 50, "full_responses": 50} | summed)
    assert read_run(folder).full_costs == "", "an answer that was there already is worth the labels of its parts"


def test_answers_that_the_policy_itself_did_not_sample_have_a_log_ratio(tmp_path):
    about = facts(0, rounds=1, budget=None, evaluation={"reward": 0.5, "log_ratio": 2.5})
    write_round(tmp_path, "round_000", [], about)
    run = read_run(tmp_path)
    assert dict(zip(run.headings, run.table()[-1], strict=True))["log ratio"] == "2.50"
    assert "KL" not in run.headings


def test_the_table_of_rounds(run_dir):
    assert read_run(run_dir).table() == [
        ("start", "0.25", "–", "–", "–", "30.0", "0", "0", "0"),  # a measure that a later round has
        ("1", "0.50", "75%", "12%", "1.50", "33.0", "12", "1,000", "9"),
        ("2", "0.75", "88%", "12%", "1.50", "33.0", "24", "2,000", "18"),
    ]


def test_what_a_learned_reward_knew_stands_beside_the_round_that_it_was_tested_on(tmp_path):
    folder = write_run(tmp_path, rounds=4, played=4)
    assert read_run(folder).learned_table() == []
    write_report(read_run(folder))
    assert "learned reward" not in (folder / "report.html").read_text()
    knowledge = [{}, {"labels": 20.0}, {"labels": 1040.0}, {"labels": 1060.0, "accuracy": 0.75, "correlation": 0.5}]
    for number, known in enumerate(knowledge):
        about = facts(number, rounds=4, budget=None, evaluation={"reward": 0.5}) | {"learned_reward": known}
        write_round(folder, f"round_{number:03}", [], about)
    run = read_run(folder)
    assert run.learned_table() == [("2", "20", "–", "–"), ("3", "1,040", "75%", "0.50"), ("4", "1,060", "–", "–")]
    write_report(run)
    assert "<td>1,040</td><td>75%</td><td>0.50</td>" in (folder / "report.html").read_text()


@pytest.mark.parametrize("played", [0, 1, 3])
def test_an_unfinished_run_can_be_read_and_shown(tmp_path, played):
    run = read_run(write_run(tmp_path, rounds=4, played=played))
    assert not run.finished
    assert run.numbers()["rounds"] == played
    write_report(run)
    assert f"{played} of 4 rounds" in (tmp_path / "report.html").read_text()
    assert f"{played} of 4 rounds" in printed(run)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[rounds=4, lr=1, ckpt_path=auto]")
    assert f"  choosy train rounds=4 lr=1 run_dir={tmp_path} ckpt_path=last  # to continue\n" in printed(run)


def test_a_last_round_without_its_evaluation_is_not_finished(run_dir):
    write_round(run_dir, "round_001", [], facts(1, rounds=2, budget=40, evaluation=None))
    run = read_run(run_dir)
    assert not run.finished
    assert run.numbers()["reward"] == {"initial": 0.25, "final": 0.5}
    assert run.answers[0].after.startswith("sunny 0")


def test_a_run_that_evaluates_nothing_finishes(tmp_path):
    write_round(tmp_path, "round_000", [], facts(0, rounds=1, budget=None, evaluation=None))
    run = read_run(tmp_path)
    assert run.finished
    assert run.numbers()["win_rate"] is None
    assert "1 of 1 rounds, not evaluated" in printed(run)


def test_held_out_pairs_are_shown_before_and_after_without_columns_of_prompts(tmp_path):
    before, after = ({"accuracy": a, "loss": b, "margin": c, "pairs": 40} for a, b, c in ((0.5, 0.7, 0), (1, 0.25, 2)))
    about = facts(0, rounds=1, budget=None, evaluation=after) | {"start_pairs": before}
    write_round(tmp_path, "round_000", [], about)
    run = read_run(tmp_path)
    assert run.headings == ("round", "accuracy", "loss", "margin", "labels", "tokens", "seconds")
    assert [row[:4] for row in run.table()] == [("start", "50%", "0.700", "0"), ("1", "100%", "0.250", "2")]
    assert run.numbers()["heldout_pairs"]["accuracy"] == {"initial": 0.5, "final": 1}
    headline = "Held-out accuracy 50% → 100% of 40 pairs, 1 of 1 rounds"
    write_report(run)
    page = (tmp_path / "report.html").read_text()
    card = model_card(run, {}, base="m", data=[], judged="pairs", form="model", chat=False)
    for shown in (printed(run), page, card):
        assert headline in shown
        assert "–" not in shown
        assert "win rate" not in shown
    assert "| margin | 0 | 2 |" in card
    assert "<div><b>0.700 → 0.250</b><span>held-out loss</span><small>n = 40</small></div>" in page


def test_a_round_that_trained_nothing_is_reported(tmp_path):
    write_round(tmp_path, "round_000", [], facts(0, rounds=2, budget=None, evaluation=None))
    write_report(read_run(tmp_path))
    assert "not evaluated" in (tmp_path / "report.html").read_text()


def test_a_run_that_has_finished_no_round_is_no_sweep(tmp_path):
    write_round(tmp_path, "sampled_000", [], facts(0, rounds=1, budget=None, evaluation=None))
    with pytest.raises(ValueError, match="is a run that has finished no round yet"):
        read_run(tmp_path)


def test_training_is_shown_where_nothing_was_held_out(tmp_path):
    for number, (loss, accuracy) in enumerate([(0.7, 0.5), (0.25, 1.0)]):
        trained = {"trained": {"train_loss": loss, "train_accuracy": accuracy}}
        write_round(tmp_path, f"round_00{number}", [], facts(number, rounds=2, budget=None, evaluation=None) | trained)
    run = read_run(tmp_path)
    assert run.headings == ("round", "training loss", "training accuracy", "labels", "tokens", "seconds")
    assert [row[1:3] for row in run.table()] == [("0.700", "50%"), ("0.250", "100%")]
    assert run.numbers()["training"] == {"train_loss": 0.25, "train_accuracy": 1.0}
    write_report(run)
    page = (tmp_path / "report.html").read_text()
    for shown in (printed(run, width=132), page):
        assert "Training loss 0.700 → 0.250, training accuracy 50% → 100%, 2 of 2 rounds, not evaluated" in shown
        assert "data.heldout_pairs=FILE" in shown
    assert "<span>training accuracy</span>" in page
    assert "held-out data" not in page


def test_answers_that_nobody_judged_are_shown_without_dashes(tmp_path):
    row = {"split": "heldout", "prompt": "p", "responses": ["new", "old"], "rewards": [None, None]}
    measured = {"reward": None, "win_rate": None, "ties": None, "kl": 0.5, "length": 9.0}
    write_round(tmp_path, "start", [], facts(-1, rounds=1, budget=None, evaluation={"reward": None, "length": 8.0}))
    write_round(tmp_path, "round_000", [row], facts(0, rounds=1, budget=None, evaluation=measured))
    run = read_run(tmp_path)
    assert run.headings == ("round", "KL", "length", "labels", "tokens", "seconds")
    write_report(run)
    page = (tmp_path / "report.html").read_text()
    assert page.count("–") == printed(run).count("–") == 1, "the KL of the start"
    assert '<td data-name="after">new</td>' in page
    assert "held-out answers not judged" in page


def test_a_folder_without_rounds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"with rounds/round_000.parquet; found none in"):
        read_run(tmp_path)


@pytest.mark.parametrize("free", [False, True])
def test_the_curves_are_a_png_of_sensible_size(run_dir, free):
    if free:  # no label was bought: there is no such column
        for number in range(2):
            about = facts(number, rounds=2, budget=None, evaluation={"reward": 0.5, "win_rate": 0.5})
            about["labels"]["spent"] = 0
            write_round(run_dir, f"round_{number:03}", [], about)
    image = curves(read_run(run_dir))
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    assert width == pytest.approx(130 * (7.5 if free else 11.1), abs=1)
    assert 600 < height < 1200
    assert 20_000 < len(image) < 400_000


def test_the_page_escapes_all_that_a_model_wrote_and_loads_nothing(run_dir):
    (run_dir / "config.yaml").write_text("seed: 7\n")
    write_report(read_run(run_dir))
    page = (run_dir / "report.html").read_text()
    assert "<script" not in page
    assert "<b>dull" not in page
    assert page.count("sunny 1 &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 8
    assert "grey &amp; &lt;b&gt;dull&lt;/b&gt;" in page
    assert "<svg" in page
    assert '<a href="config.yaml">' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "http:" not in page
    assert "https:" not in page


def test_a_folder_named_like_markup_is_escaped(tmp_path):
    run = read_run(write_run(tmp_path / "<i>run"))
    write_report(run)
    assert "<i>run" not in (tmp_path / "<i>run" / "report.html").read_text()


def test_the_last_words_show_answers_rounds_time_and_paths(run_dir):
    for name in ("adapter", ".hydra", "tensorboard"):
        (run_dir / name).mkdir()
    (run_dir / "ledger.sqlite").touch()
    (run_dir / ".hydra" / "overrides.yaml").write_text("[selector=none, rounds=2, name=run]")
    (run_dir / "config.yaml").write_text("{evaluation: {}, data: {train: [a.jsonl], heldout: null}}")
    words = printed(read_run(run_dir))
    assert words.count("sunny 1") == 5
    assert "Held-out reward 0.25 → 0.75, win rate 88% against the start, 2 of 2 rounds" in words
    assert "+0.75 won" in words
    assert "18.0 s after start-up  24 of 40 labels bought, 2 reused, 2 ties, 1.00 spent" in words
    assert "train 3.0 s" in words
    assert str(run_dir) in words
    for name in ("adapter", "tensorboard", "ledger.sqlite"):
        assert f"\n  {name} " in words
    other = "type a file of other prompts: this one is trained on"
    assert f"Next:\n  choosy chat {run_dir}\n  choosy eval {run_dir} a.jsonl  # {other}\n" in words
    again = f"choosy train selector=none run_dir={run_dir} rounds=4 ckpt_path=last"
    assert words.endswith(f"  {again}  # for more rounds\n")
    assert "metrics.csv" not in words


@pytest.mark.parametrize(
    ("measured", "notes"),
    [
        ({"win_rate": 0.75, "judged": 64}, "In the win rate a tie counts as half a win."),
        (
            {"win_rate": 0.25, "judged": 4, "win_rate_low": 0.05, "win_rate_high": 0.7},
            "In the win rate a tie counts as half a win. "
            "It is of 4 held-out answers only: its 95 % interval is 5% to 70%.",
        ),
        ({"accuracy": 0.5, "pairs": 6}, "The accuracy is of 6 held-out pairs only, and so a rough one."),
        ({"accuracy": 0.5, "pairs": 600}, ""),
        ({"reward": 0.5}, ""),
    ],
)
def test_the_final_figures_are_explained(measured, notes, tmp_path):
    write_round(tmp_path, "start", [], facts(-1, rounds=1, budget=None, evaluation={"length": 3.0}))
    write_round(tmp_path, "round_000", [], facts(0, rounds=1, budget=None, evaluation=measured))
    run = read_run(tmp_path)
    assert run.notes == notes
    write_report(run)
    assert notes in printed(run, width=132)
    assert notes in (tmp_path / "report.html").read_text()


def test_a_model_cannot_steer_the_terminal(tmp_path):
    folder = write_run(tmp_path, rounds=1, played=1)
    row = {"split": "heldout", "prompt": "[bold]hi[/]", "responses": ["\x1b[2Jgone\x07", "[red]x[/nope]"]}
    measured = {"reward": 0.5, "win_rate": 0.5}
    write_round(
        folder,
        "round_000",
        [row | {"rewards": [1.0, None]}],
        facts(0, rounds=1, budget=None, evaluation=measured),
    )
    words = printed(read_run(folder))
    assert "\x1b" not in words
    assert "\x07" not in words
    assert "[bold]hi[/]" in words
    assert "[red]x[/nope]" in words


def test_crop_cuts_between_words_and_never_grows():
    assert crop("one two three", 13) == "one two three"
    assert crop("one two three", 12) == "one two …"
    assert all(len(crop(text, 8)) <= 8 for text in ("a" * 30, "ab cd ef gh ij", "  a\n\n b c d e f"))


def test_files_are_replaced_whole(run_dir, monkeypatch):
    """A disk that fills up while the new summary is written leaves the old one."""
    (run_dir / "summary.json").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_summary(read_run(run_dir), run_dir / "summary.json")
    assert (run_dir / "summary.json").read_text() == "old"


RANK_0 = SimpleNamespace(is_global_zero=True, callbacks=[], datamodule=None)
MODULE = SimpleNamespace(policy=SimpleNamespace(lora=None))  # which left no tuned model, so that there is no card


def test_the_callback_leaves_everything_behind(run_dir, capsys):
    Report(str(run_dir)).teardown(RANK_0, MODULE, "fit")
    assert {"summary.json", "curves.png", "report.html"} <= {path.name for path in run_dir.iterdir()}
    assert "Left behind in" in capsys.readouterr().out


def test_a_page_that_cannot_be_drawn_loses_no_summary(run_dir, monkeypatch, caplog):
    monkeypatch.setattr("callbacks.report.write_report", lambda run: 1 / 0)
    Report(str(run_dir)).teardown(RANK_0, MODULE, "fit")
    assert read_json(run_dir / "summary.json")["rounds"] == 2
    (said,) = [one.getMessage() for one in caplog.records]
    assert said.startswith("report.html is not written (ZeroDivisionError: division by zero); when that is mended")
    assert said.endswith(f"type choosy report {run_dir}")


def test_labels_that_came_with_the_data_were_read(tmp_path):
    given = facts(0, rounds=1, budget=None, evaluation=None) | {"labels_given": True}
    write_round(tmp_path, "round_000", [], given)
    assert read_run(tmp_path).costs.startswith("12 labels read from the data, ")


def test_the_callback_calls_no_interrupted_run_finished(tmp_path, capsys):
    write_run(tmp_path, rounds=4)
    Report(str(tmp_path), console=False).teardown(RANK_0, MODULE, "fit")
    assert {path.name for path in tmp_path.iterdir()} == {"rounds", "curves.png", "report.html"}
    assert capsys.readouterr().out == ""


def test_the_other_ranks_write_nothing(run_dir):
    Report(str(run_dir)).teardown(SimpleNamespace(is_global_zero=False), None, "fit")
    assert [path.name for path in run_dir.iterdir()] == ["rounds"]


def test_a_run_without_rounds_is_told_so_and_not_failed(tmp_path, caplog):
    Report(str(tmp_path)).teardown(RANK_0, MODULE, "fit")
    assert f"{tmp_path} holds no rounds/*.parquet; is callbacks.report.run_dir right?" in caplog.text


def test_a_run_whose_report_is_cut_off_is_not_finished(run_dir, monkeypatch):
    def cut_off(run):
        raise KeyboardInterrupt

    callback, trainer = Report(str(run_dir), console=False), SimpleNamespace(is_global_zero=True, callbacks=[])
    with monkeypatch.context() as patched:
        patched.setattr("callbacks.report.write_report", cut_off)
        with pytest.raises(KeyboardInterrupt):
            callback.teardown(trainer, MODULE, "fit")
    assert not (run_dir / "summary.json").exists()
    callback.teardown(trainer, MODULE, "fit")
    assert (run_dir / "summary.json").exists()
    assert "summary.json" in (run_dir / "report.html").read_text()
