"""Test `choosy labels`."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_labelers import Lengths, given

from choosy.console import Terminal
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.exchange.command import (
    Imported,
    export_labels,
    import_labels,
    labels_command,
    stats,
)
from choosy.labeling.exchange.rows import FILE_FORMATS, FileFormat
from choosy.labeling.ledger import Ledger
from choosy.labeling.protocols import Answer, Postponed, Terms
from choosy.types import Candidates, Message, Prompt, Response

Item = tuple[Prompt, Response, Response]
NASTY = 'He said, "=1+1";\r\nthen:\n\n\u2028 <script>\x00 🙂 ,\t'
ITEMS: list[Item] = [
    (Prompt("p0", "Which?"), Response("a"), Response("b")),
    (Prompt("p1", "hi", (Message("system", "be kind"), Message("user", "hi"))), Response(NASTY), Response("")),
    (Prompt("p2", NASTY), Response(""), Response(NASTY)),
    (Prompt("p3", "So?"), Response("one"), Response("two")),
]
DATA = Path(__file__).parent / "data"
SUFFIX: dict[FileFormat, str] = {"jsonl": ".jsonl", "csv": ".csv", "label-studio": ".json", "argilla": ".json"}


class Judge:
    """Compares in a few words, for money."""

    name = "judge"
    terms = Terms(fingerprint="template-1", labels_per_answer=2)

    def compare(self, items: Sequence[Item]) -> Iterator[Answer]:
        for at, verdict in enumerate(["first", "second", "tie", "invalid"][: len(items)]):
            yield Answer(at, verdict, raw=f"{NASTY} {at}", cost=0.1 + at, annotator="ada")  # type: ignore[arg-type]


class Scorer:
    name = "scorer"

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [0.1 + len(response.text) for _, response in items]


class Later:
    """Has no answer today."""

    name = "later"

    def compare(self, items: Sequence[Item]) -> list[Any]:
        raise Postponed("come back")


@pytest.fixture
def full(tmp_path: Path) -> Ledger:
    """A ledger with four verdicts and two scores."""
    path = str(tmp_path / "full.sqlite")
    for labeler in (Judge(), Scorer()):
        buyer = LabelBuyer(labeler, ledger=path)
        buyer.open("/runs/a")
        if isinstance(labeler, Judge):
            buyer.compare(ITEMS)
        else:
            buyer.score([Candidates(ITEMS[1][0], ITEMS[1][1:])], purpose="evaluate")
    return Ledger(path)


@pytest.fixture
def empty(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path / "empty.sqlite"))
    ledger.create()
    return ledger


@pytest.fixture
def waiting(tmp_path: Path) -> LabelBuyer:
    """A buyer whose run waits for four verdicts."""
    buyer = LabelBuyer(Later(), ledger=str(tmp_path / "waiting.sqlite"), budget=4)
    buyer.open("/runs/a")
    with pytest.raises(Postponed):
        buyer.compare(ITEMS)
    return buyer


# --- export, then import ---


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_exported_labels_import_unchanged(full: Ledger, empty: Ledger, tmp_path: Path, file_format: FileFormat) -> None:
    file = tmp_path / f"labels{SUFFIX[file_format]}"
    assert export_labels(full, file, file_format=file_format) == 6
    assert import_labels(file, empty) == Imported(6, 0, 0, [])
    assert empty.rows("labels") == full.rows("labels")
    assert import_labels(file, empty) == Imported(0, 6, 0, [])
    again = tmp_path / f"again{SUFFIX[file_format]}"
    export_labels(empty, again, file_format=file_format)
    assert again.read_bytes() == file.read_bytes()


def test_imported_labels_are_not_bought_again(full: Ledger, empty: Ledger, tmp_path: Path) -> None:
    export_labels(full, tmp_path / "labels.csv")
    import_labels(tmp_path / "labels.csv", empty)
    buyer = LabelBuyer(Judge(), ledger=empty.path)
    buyer.open("/runs/b")
    assert buyer.compare([(prompt, two, one) for prompt, one, two in ITEMS]) == ["second", "first", "tie", "invalid"]
    assert (buyer.spent, buyer.counts.reused, buyer.counts.money) == (0, 4, 0.0)


def test_export_needs_a_form_and_a_new_file(full: Ledger, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"labels.json: the name does not tell its format; type --format with one of jsonl"
    ):
        export_labels(full, tmp_path / "labels.json")
    export_labels(full, tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"labels.csv exists already; name another file"):
        export_labels(full, tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"labels.csv cannot be written \(.*\); name a file in a folder"):
        export_labels(full, tmp_path / "no folder" / "labels.csv")


# --- what a run waits for ---


def answered(file: Path, file_format: FileFormat) -> None:
    """Fill an exported file as people do: the first response is better each time, but for one tie."""
    if file_format == "csv":
        with file.open(newline="") as source:
            rows = list(csv.DictReader(source))
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["key", "verdict", "annotator"])  # nothing else is needed
            writer.writeheader()
            for at, row in enumerate(rows):
                writer.writerow({"key": row["key"], "verdict": "tie" if at == 2 else "first", "annotator": "ada"})
        return
    if file_format == "jsonl":
        rows = [json.loads(line) for line in file.read_text().split("\n") if line]
        file.write_text(
            "".join(
                json.dumps(row | {"verdict": "tie" if at == 2 else "first", "annotator": "ada"}) + "\n"
                for at, row in enumerate(rows)
            )
        )
        return
    items = json.loads(file.read_text())
    for at, item in enumerate(items):
        if file_format == "label-studio":
            left = {"from_name": "verdict", "type": "pairwise", "value": {"selected": "left"}}
            tie = {"from_name": "neither", "type": "choices", "value": {"choices": ["tie"]}}
            result = [tie if at == 2 else left]
            skipped = {"was_cancelled": True, "result": []}
            item["annotations"] = [skipped, {"completed_by": {"id": 1, "email": "ada"}, "result": result}]
        else:
            value = "tie" if at == 2 else "first"
            item["responses"] = {"verdict": [{"value": value, "user_id": "ada"}], "why": [{"value": "as it is"}]}
    file.write_text(json.dumps(items))


def test_argilla_responses_overrule_exported_suggestions(full: Ledger, empty: Ledger, tmp_path: Path) -> None:
    """Two people respond to the second record; the third has a suggestion of another agent, which does not count."""
    file = tmp_path / "labels.json"
    export_labels(full, file, file_format="argilla")
    records = json.loads(file.read_text())
    verdict = {"value": "first", "score": None, "agent": "choosy"}
    assert [record["suggestions"] for record in records[:1]] == [{"verdict": verdict}]
    assert not any(record["responses"] for record in records), "a response needs the id of a user of the server"
    records[1]["responses"] = {"verdict": [{"value": "tie", "user_id": user} for user in ("u1", "u2")]}
    records[2]["suggestions"]["verdict"]["agent"] = "a model"
    file.write_text(json.dumps(records))
    assert import_labels(file, empty) == Imported(5, 0, 1, [])
    assert [(row["verdict"], row["annotator"]) for row in empty.rows("labels")[:3]] == [
        ("first", "ada"),
        ("tie", "u1 u2"),
        ("invalid", "ada"),
    ]


@pytest.mark.parametrize("file", ["label-studio-1.23.2.json", "argilla-2.8.0.json"])
def test_import_of_files_that_the_real_programs_exported(empty: Ledger, file: str) -> None:
    """Their own files of six questions that a run waited for: one is skipped or unanswered, the last was not opened.

    Label Studio's was clicked together in its page in a browser, Argilla's written by `records.to_json`.
    """
    assert import_labels(DATA / file, empty) == Imported(4, 0, 2, [])
    rows = empty.rows("labels")
    assert [row["verdict"] for row in rows] == ["first", "second", "tie", "invalid"]
    assert [row["response_first"] for row in rows[2:]] == ["In Swabia.", "one"]
    assert {row["annotator"] for row in rows} in ({"1"}, {"00000000-0000-0000-0000-000000000007"})
    assert {(row["labeler"], row["run"]) for row in rows} == {("queue", "/runs/b")}
    assert json.loads(rows[1]["messages"]) == [["system", "be kind"], ["user", "hi"]]


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_wanted_questions_are_exported_and_answered(
    waiting: LabelBuyer, tmp_path: Path, file_format: FileFormat
) -> None:
    ledger, file = Ledger(waiting.ledger.path), tmp_path / f"wanted{SUFFIX[file_format]}"
    assert export_labels(ledger, file, file_format=file_format, wanted=True) == 4
    with pytest.raises(ValueError, match="holds no label: none of its 4 rows has a verdict or a score"):
        import_labels(file, ledger)
    answered(file, file_format)
    assert import_labels(file, ledger) == Imported(4, 0, 0, [])
    assert ledger.rows("wanted") == []
    assert {row["annotator"] for row in ledger.rows("labels")} == {"ada"}
    assert waiting.compare(ITEMS) == ["first", "first", "tie", "first"]
    assert (waiting.spent, waiting.pays(1)) == (4, False), "the run has bought them, within its budget"


def test_a_row_without_a_key_is_matched_by_its_contents(waiting: LabelBuyer, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": "Which?", "response_first": "b", "response_second": "a", "verdict": "first"},
        {"prompt": "New?", "response_first": "x", "score": 1},
        {"prompt": "New?", "response_first": "y"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = Ledger(waiting.ledger.path)
    assert import_labels(file, ledger, labeler="later") == Imported(2, 0, 1, [])
    assert len(ledger.rows("wanted")) == 3
    with pytest.raises(Postponed):
        waiting.compare(ITEMS)
    assert [row["verdict"] for row in ledger.rows("labels")] == ["first", None]
    assert waiting.compare(ITEMS[:1]) == ["second"]


# --- bad lines ---

GOOD = {"labeler": "x", "prompt": "p", "response_first": "a", "response_second": "b", "verdict": "tie"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", r"not JSON \("),
        ("[1]", "wanted a JSON object, found list"),
        ({"labeler": None}, "no labeler; give it a column labeler, or type --labeler NAME"),
        ({"prompt": None, "key": "k"}, "no prompt, and no run waits for the key 'k'"),
        ({"response_first": None}, "no response_first, and no run waits for the key None"),
        ({"prompt": 7}, "prompt must be a text, found 7"),
        ({"response_second": ["b"]}, r"response_second must be a text, found \['b'\]"),
        ({"verdict": "A"}, "two responses need a verdict, one of first, second, tie, invalid, found 'A'"),
        ({"verdict": None, "score": 1.0}, "two responses need a verdict, .* found 1.0"),
        ({"response_second": None}, "one response needs a score that is a finite number, found 'tie'"),
        ({"response_second": None, "verdict": None, "score": math.inf}, "a finite number, found inf"),
        ({"response_second": None, "verdict": None, "score": True}, "a finite number, found True"),
        ({"response_second": None, "verdict": None, "score": 10**400}, "a finite number, found 1000"),
        ({"cost": -1}, "cost must be a number, 0 or more, found -1"),
        ({"cost": 1.7e308}, "cost must be a number, 0 or more, found 1.7e"),
        ("[" * 100_000, r"not JSON \(maximum recursion depth"),
        ({"cost": "free"}, "cost must be a number, 0 or more, found 'free'"),
        ({"judgements": 1.5}, "judgements must be a whole number, 0 or more, found 1.5"),
        ({"purpose": "fun"}, "purpose must be train or evaluate, found 'fun'"),
        ({"messages": [["user", "p"]]}, "messages must be a list of objects with a role and a content"),
        ({"messages": [], "key": "k"}, "the key 'k' belongs to other contents, and these have the key '[0-9a-f]{16}'"),
        ({"prompt": "\ud800"}, "can't encode character"),
        ({"prompt": "q", "verdict": "first"}, "asks the same as line 1 and answers differently; keep one of the two"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(empty: Ledger, tmp_path: Path, line: Any, words: str) -> None:
    file = tmp_path / "labels.jsonl"
    text = line if isinstance(line, str) else json.dumps(GOOD | line)
    file.write_text(json.dumps(GOOD | {"prompt": "q"}) + f"\n\n{text}\nnonsense\n")
    with pytest.raises(ValueError, match=rf"(?s)2 of 3 rows .*nothing was written:\n  line 3: .*{words}") as caught:
        import_labels(file, empty)
    assert re.search(r"\n  line 4: not JSON .*\nCorrect these, or leave them out with --skip-bad", str(caught.value))
    assert empty.rows("labels") == []
    done = import_labels(file, empty, skip_bad=True)
    assert (done.added, [bad.split(":")[0] for bad in done.bad]) == (1, ["line 3", "line 4"])


def test_a_missing_file_leaves_no_new_ledger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No file .*labels.jsonl; check the path"):
        labels_command(["import", str(tmp_path / "new.sqlite"), str(tmp_path / "labels.jsonl")])
    assert not (tmp_path / "new.sqlite").exists()


def test_nan_of_pandas_is_no_answer(empty: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [GOOD, GOOD | {"prompt": "q", "verdict": math.nan, "score": math.nan, "cost": math.nan}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert import_labels(file, empty) == Imported(1, 0, 1, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,verdict\nk,first,more\n", "line 2: wanted 2 fields, as the first line has"),
        ("key,verdict\nk\n", "line 2: wanted 2 fields, as the first line has"),
        ("labeler,prompt,response_first,score\nx,p,a,high\n", "line 2: score must be a number, found 'high'"),
        ("labeler,prompt,response_first,score,messages\nx,p,a,1,{\n", r"line 2: messages must be JSON \("),
    ],
)
def test_a_bad_line_of_csv(empty: Ledger, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        import_labels(tmp_path / "labels.csv", empty)


LEFT = {"value": {"selected": "left"}}
RIGHT = {"value": {"selected": "right"}}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (7, "item 1: wanted a JSON object, found int"),
        ({"text": "a"}, "item 1: no data; wanted a Label Studio task"),
        ({"data": {}, "annotations": {}}, None),
        ({"data": GOOD, "annotations": "x"}, "item 1: annotations must be a list, found str"),
        ({"data": GOOD, "annotations": [{"result": [LEFT]}, {"result": [RIGHT]}]}, r"disagree \(first, second\); keep"),
        ({"data": GOOD, "annotations": [{"result": [LEFT, RIGHT]}]}, "an annotation says 2 things; wanted one side"),
        ({"data": GOOD, "annotations": [{"result": [{"value": {"selected": "up"}}]}]}, "one of first, .* found 'up'"),
        ({"fields": GOOD, "responses": []}, None),
        ({"fields": GOOD, "responses": {"verdict": [{"value": "A"}]}}, "one of first, .* found 'A'"),
        ({"fields": GOOD, "responses": {"verdict": [{"value": v} for v in ("tie", "first")]}}, "annotators disagree"),
    ],
)
def test_a_bad_item_of_an_annotation_tool(empty: Ledger, tmp_path: Path, item: Any, words: str | None) -> None:
    (tmp_path / "labels.json").write_text(json.dumps([item]))
    with pytest.raises(ValueError, match=words or "holds no label: none of its 1 rows"):
        import_labels(tmp_path / "labels.json", empty)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No file .*labels.json; check the path"),
        (b"\xff\xfe\x00", "cannot be read as text in UTF-8"),
        (b"{}", "wanted a list of Label Studio tasks or Argilla records, found dict"),
        (b"[", r"labels.json is not JSON \("),
        (b"[]", "holds no label: none of its 0 rows"),
    ],
)
def test_an_unreadable_file_is_refused(empty: Ledger, tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        import_labels(tmp_path / "labels.json", empty)


# --- the command ---


def test_the_command_line(
    full: Ledger, waiting: LabelBuyer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels_command(["export", full.path, str(tmp_path / "out.json"), "--format", "argilla"])
    labels_command(["import", str(tmp_path / "new.sqlite"), str(tmp_path / "out.json")])
    labels_command(["stats", str(tmp_path / "new.sqlite")])
    to = str(tmp_path / "wanted.json")
    labels_command(["export", waiting.ledger.path, to, "--wanted", "--format", "label-studio"])
    printed = capsys.readouterr().out
    for words in (
        "6 labels in ",
        "6 labels added, 0 were there, 0 rows have no answer yet",
        "6 labels, 0 wanted, in ",
        "4 wanted in ",
        '<Pairwise name="verdict" toName="response_first,response_second"/>',
    ):
        assert words in printed
    with pytest.raises(ValueError, match=r"No ledger nosuch.sqlite; type the folder of a run"):
        labels_command(["stats", "nosuch.sqlite"])
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match=r"run is not the folder of a run: it has no config\.yaml"):
        labels_command(["stats", str(run)])
    for ledger in (full.path, "runs/elsewhere.sqlite"):  # one that runs share; and a run that was moved
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"run": {"labels": {"ledger": ledger}}}}))
        labels_command(["stats", str(run)] if ledger == full.path else ["import", str(run), str(tmp_path / "out.json")])
    assert f"6labels,0wanted,in{full.path}6labelsadded" in "".join(capsys.readouterr().out.split()), "wrapped or not"
    assert (run / "ledger.sqlite").exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{json.dumps(GOOD)}\nnonsense\n")
    labels_command(["import", full.path, str(bad), "--skip-bad", "--labeler", "me"])
    assert "1 bad rows left out:\n  line 2: not JSON" in capsys.readouterr().out
    assert full.rows("labels")[-1]["labeler"] == "me"


def test_stats_show_each_labeler_and_run(full: Ledger) -> None:
    out = Terminal(width=160, record=True, file=io.StringIO())
    stats(full, out)
    printed = out.export_text()
    judge = next(line for line in printed.splitlines() if "judge" in line)
    assert judge.split() == ["judge", "template", "4", "1", "1", "50%", "1", "6.4000"]
    assert re.search(r"scorer +\w{8} +2 +– +– +– +0 +0.0000", printed)
    assert re.search(r"/runs/a +evaluate +2 .*\n.*/runs/a +train +4", printed)


def test_stats_show_whole_names_in_a_pipe(
    buyer: Callable[..., LabelBuyer], path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "a-labeler-whose-name-is-longer-than-a-column-of-eighty-characters-would-like-it-to-be"
    labeler = Lengths()
    labeler.name = long
    buyer(labeler, run="a-run-with-a-name-of-its-own-0123456789ab").score([given("p", "a", "bb")])
    stats(Ledger(str(path)))
    shown = capsys.readouterr().out
    assert long in shown
    assert "a-run-with-a-name-of-its-own-0123456789ab" in shown
    assert "fingerprint" in shown
