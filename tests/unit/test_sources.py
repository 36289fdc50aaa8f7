"""Every kind of source, with the place that each row stands at, and every error by its words."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from choosy.data.reading import placed_candidates, placed_prompts, read_candidates, read_prompts
from choosy.data.sources import READERS, read_rows

ask, yes = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}
PAIR = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}


def written(folder: Path, *rows: Any, name: str = "d.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


# ---- files -> rows


def test_jsonl_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('\ufeff{"a": 1}\n\n  \n{"a": "\u2028ü"}', encoding="utf-8")
    assert list(read_rows(str(file))) == [
        (f"{file}, line 1", {"a": 1}),
        (f"{file}, line 4", {"a": "\u2028ü"}),
    ]


def test_json_is_an_array_or_lines(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    file.write_text('\n[{"a": 1},\n {"a": 2}]')
    assert list(read_rows(str(file))) == [(f"{file}, row 0", {"a": 1}), (f"{file}, row 1", {"a": 2})]
    file.write_text('{"a": 1}\n{"a": 2}')
    assert list(read_rows(str(file))) == [(f"{file}, line 1", {"a": 1}), (f"{file}, line 2", {"a": 2})]


def test_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file, rows = tmp_path / "d.parquet", [{"messages": [ask]}, {"messages": [ask, yes]}]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=1)
    assert list(read_rows(str(file))) == [(f"{file}, row {index}", row) for index, row in enumerate(rows)]
    file.write_text("no")
    with pytest.raises(ValueError, match=r"d\.parquet is not a readable Parquet file"):
        list(read_rows(str(file)))


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one, two = datasets.Dataset.from_list([{"a": 1}]), datasets.Dataset.from_list([{"a": 2}])
    alone, both, late = (str(tmp_path / name) for name in ("alone", "both", "late"))
    one.save_to_disk(alone)
    datasets.DatasetDict(train=one, test=two).save_to_disk(both)
    datasets.DatasetDict(test=two).save_to_disk(late)
    assert list(read_rows(alone)) == [(f"{alone}, row 0", {"a": 1})]
    assert list(read_rows(both)) == list(read_rows(f"{both}:train")) == [(f"{both}[train], row 0", {"a": 1})]
    assert list(read_rows(f"{both}:test")) == [(f"{both}[test], row 0", {"a": 2})]
    with pytest.raises(ValueError, match=r"alone is one dataset without splits; type .*alone"):
        list(read_rows(f"{alone}:train"))
    with pytest.raises(ValueError, match=r"late has no split train; type .*late:test"):
        list(read_rows(late))


@pytest.mark.parametrize(
    ("source", "split", "where"),
    [
        ("HuggingFaceH4/x:prefs:test[:5]", ("prefs", "test[:5]"), "HuggingFaceH4/x[prefs:test[:5]], row 0"),
        ("HuggingFaceH4/x", "train", "HuggingFaceH4/x[train], row 0"),
        ("imdb:test", "test", "imdb[test], row 0"),
        ("HuggingFaceH4/x:train[:5]", "train[:5]", "HuggingFaceH4/x[train[:5]], row 0"),
    ],
)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, source: str, split: str, where: str) -> None:
    calls = []

    def load(name: str, *subset: str, split: str) -> list[dict[str, int]]:
        calls.append((name, (*subset, split) if subset else split))
        return [{"a": 1}]

    monkeypatch.setattr("datasets.load_dataset", load)
    assert list(read_rows(source)) == [(where, {"a": 1})]
    assert calls == [(source.partition(":")[0], split)]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> None:
        raise ConnectionError(f"Couldn't reach {name}")

    monkeypatch.setattr("datasets.load_dataset", load)
    words = r"No file or folder 'data/x' \(looked in .*Hugging Face dataset data/x:train does not load: C"
    with pytest.raises(ValueError, match=words):
        list(read_rows("data/x"))


def test_a_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The folder .* does not load: .*check the name, the split"):
        list(read_rows(str(tmp_path)))


def test_a_folder_with_a_bad_file_says_what_is_bad(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"\n')
    with pytest.raises(ValueError, match=r"The folder .* does not load: .*JSON"):
        list(read_rows(str(tmp_path)))


@pytest.mark.parametrize("source", ["/no/such/folder", "../nowhere", ""])
def test_what_is_neither_a_path_nor_an_id(source: str) -> None:
    with pytest.raises(ValueError, match=r"No file or folder '.*' \(looked in .*type a .jsonl, .ndjson, .json, .csv"):
        list(read_rows(source))


@pytest.mark.parametrize("name", ["no.jsonl", "no.json", "no.parquet"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"No file .*{name} \(looked in .*check the path"):
        list(read_rows(str(tmp_path / name)))


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"d\.jsonl:test: a file has no splits; type .*d\.jsonl\."):
        list(read_rows(written(tmp_path, {"a": 1}) + ":test"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1}\n{"a": \n', r"d\.jsonl, line 2: not JSON \(Expecting value at column 6\); write one JSON object a"),
        (b'{"a": 1}\n\n[1]\n', r"d\.jsonl, line 3: wanted a JSON object with columns, found list"),
        (b" \n", r"d\.jsonl has no rows"),
        (b"", r"d\.jsonl has no rows"),
        (b'{"a": "\xff"}', r"d\.jsonl: not UTF-8 \(.*\); save it as UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        list(read_rows(str(tmp_path / "d.jsonl")))


def test_a_broken_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('[{"a": 1},')
    with pytest.raises(ValueError, match=r"d\.json: not JSON \(.* at column 11\)"):
        list(read_rows(str(tmp_path / "d.json")))


@pytest.mark.parametrize(("name", "packed"), [("d.txt", bytes), ("d.txt.gz", gzip.compress)])
def test_a_text_file_has_a_prompt_on_each_line(tmp_path: Path, name: str, packed: Callable[[bytes], bytes]) -> None:
    file = tmp_path / name
    file.write_bytes(packed("Why, and how?\r\n\n  Is it ü?\n".encode()))
    placed = {where: prompt.text for where, prompt in placed_prompts(str(file)).items()}
    assert placed == {f"{file}, line 1": "Why, and how?", f"{file}, line 3": "Is it ü?"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "prompt,n\nWhy?,1\n,2\n"),
        ("d.jsonl", '{"prompt": "Why?"}\n\n{"prompt": null, "n": 2}\n'),
        ("d.csv", "prompt,chosen,rejected\nWhy?,So.,No.\n,Not so.,Not at all.\n"),
    ],
)
def test_an_empty_cell_is_no_missing_column(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}, line 3: the cell prompt is empty; fill it in or remove the row\."):
        (read_candidates if "chosen" in text else read_prompts)(str(tmp_path / name))


def test_packaged_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"prompt": "Is it?"}, name="mine.jsonl")
    monkeypatch.setattr("choosy.data.sources.files", lambda package: {"choosy.data.prompts": tmp_path}[package])
    source = "choosy:prompts/mine.jsonl"
    assert list(read_rows(source)) == [(f"{source}, line 1", {"prompt": "Is it?"})]
    for wrong in ("choosy:prompts/no.jsonl", "choosy:mine.jsonl"):
        with pytest.raises(ValueError, match=f"{wrong} does not come with choosy; there is {source}"):
            list(read_rows(wrong))


# ---- tables of text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", 'prompt,chosen,rejected\n"Is it,\nso?",Yes.,No.\n'),
        ("d.csv", '\ufeffprompt;chosen;rejected\n"Is it,\nso?";Yes.;No.\n'),
        ("D.CSV", '"",prompt,chosen,rejected,note\n0,"Is it,\nso?",Yes.,No.,\n'),
        ("d.tsv", 'prompt\tchosen\trejected\n"Is it,\nso?"\tYes.\tNo.\n'),
        ("d.csv", 'prompt,chosen,rejected\r\n"Is it,\nso?",Yes.,No.\r\n'),
    ],
    ids=["comma", "semicolon", "index", "tab", "windows"],
)
def test_a_table_of_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    ((where, row),) = read_rows(str(tmp_path / name))
    assert where == f"{tmp_path / name}, line 3"
    assert {column: cell for column, cell in row.items() if cell} == PAIR | {"prompt": "Is it,\nso?"}


def test_messages_numbers_and_truths_of_a_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "messages,chosen,rejected,chosen_score,rejected_score,weight,id\n"
        "\"[{'role': 'user', 'content': 'Is it?'}]\",Yes.,No.,8,2.5,2,7\n"
    )
    (c,) = read_candidates(str(tmp_path / "d.csv"))
    assert (c.prompt.text, c.prompt.id, c.weight, [r.gold for r in c.responses]) == ("Is it?", "7", 2.0, [8.0, 2.5])


def test_a_line_with_other_fields_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,chosen\na,b\nc\n")
    with pytest.raises(ValueError, match=r"d\.csv, line 3: wanted 2 fields, as the first line has"):
        list(read_rows(str(tmp_path / "d.csv")))


# ---- names, several files, packed ones


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_packed_files(tmp_path: Path, kind: str, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / f"d{kind}{suffix}"
    file.write_bytes(pack(b"prompt\nIs it?\n" if kind == ".csv" else b'{"prompt": "Is it?"}'))
    assert [row for _, row in read_rows(str(file))] == [{"prompt": "Is it?"}]
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(ValueError, match=rf"d{kind}{suffix} cannot be read \(.*\); check that the file is whole"):
        list(read_rows(str(file)))
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match=rf"d{kind}{suffix} cannot be read"):
        list(read_rows(str(file)))


@pytest.mark.parametrize("name", ["D.JSONL", "run 10:30.jsonl", "a[1].jsonl", "d.ndjson", "choosy.jsonl"])
def test_a_file_of_any_name(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, {"a": 1}, name=name)
    assert list(read_rows(file)) == [(f"{file}, line 1", {"a": 1})]


def test_several_files_and_patterns(tmp_path: Path) -> None:
    one, two = (written(tmp_path, {"a": n}, name=f"part{n}.jsonl") for n in (1, 2))
    both = [(f"{one}, line 1", {"a": 1}), (f"{two}, line 1", {"a": 2})]
    assert list(read_rows([one, two])) == list(read_rows(f"{tmp_path}/part*.jsonl")) == both
    assert list(read_rows([two, one])) == both[::-1]
    with pytest.raises(ValueError, match=r"No file .*nosuch\*\.jsonl"):
        list(read_rows(f"{tmp_path}/nosuch*.jsonl"))


@pytest.mark.parametrize("name", ["d.xlsx", "d.docx", "d"])
def test_a_file_of_another_kind_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=rf"{name} is there, but .* is not read; save it as .jsonl, .*\.csv"):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(
    "value",
    [
        {"data": [{"a": 1}, {"a": 2}]},
        {"a": [1, 2]},
        {"a": {"0": 1, "1": 2}},
    ],
    ids=["under a name", "lists", "pandas"],
)
def test_an_object_that_holds_rows(tmp_path: Path, value: Any) -> None:
    (tmp_path / "d.json").write_text(json.dumps(value, indent=1))
    assert [row for _, row in read_rows(str(tmp_path / "d.json"))] == [{"a": 1}, {"a": 2}]


def test_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(PAIR, indent=1))
    assert [row for _, row in read_rows(str(tmp_path / "d.json"))] == [PAIR]


def test_half_a_character_is_replaced_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    halves = [{"a": "x \ud83d"}, {"a": [{"b": "\udc00 y"}]}, {"a": "\U0001f600"}]
    file = written(tmp_path, {"a": "plain"}, *halves)
    read = [row for _, row in read_rows(file)]
    assert read[1:] == [{"a": "x \ufffd"}, {"a": [{"b": "\ufffd y"}]}, {"a": "\U0001f600"}]
    assert f"{file}: half a character becomes U+FFFD in 2 of its rows; the first is {file}, line 2." in caplog.text


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_in_a_file_of_lines(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "d.jsonl").write_text("\n" + json.dumps([{"a": 1}, {"a": 2}], indent=indent))
    assert [row for _, row in read_rows(str(tmp_path / "d.jsonl"))] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("source", [3, [], [3], {"a": "b.jsonl"}, None])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="A data source is a file, a folder or a hub id, or a list of these; found"):
        list(read_rows(source))


def test_columns_are_renamed(tmp_path: Path) -> None:
    file = written(tmp_path, {"headline": "Is it?", "weight": "60 g", "chosen": "Yes.", "rejected": "No."})
    columns = {"headline": "prompt", "weight": "grams", "nosuch": "x"}
    (c,) = placed_candidates(file, columns=columns).values()
    assert (c.prompt.text, c.weight, c.prompt.columns["grams"]) == ("Is it?", None, "60 g")
    (prompt,) = placed_prompts(file, columns=columns).values()
    assert prompt.text == "Is it?"


BYTES = [
    b"",
    b"\0",
    b"\xff\xfe{",
    b'"a"',
    b"null",
    b"[]",
    b"{}",
    b"[null]",
    b"[[1]]",
    b'"',
    b",\n,",
    b'prompt\n"a',
    b"PAR1",
]
BYTES += [
    b'{"data": [1]}',
    b'{"a": {"b": 1}, "c": {"d": 2, "e": 3}}',
    b"[" * 100_000,
    b'{"a":' * 5000,
    b"\xef\xbb\xbf",
    b"a\n" * 3,
]


@pytest.mark.parametrize("suffix", [*READERS, ".jsonl.gz", ".csv.xz", ".parquet.gz"])
def test_whatever_stands_in_a_file_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"d{suffix}"
    for data in BYTES:
        for written_as in (data, gzip.compress(data)):
            file.write_bytes(written_as)
            with suppress(ValueError):
                read_candidates(str(file))


def test_a_limit_says_how_many_rows_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps({"prompt": f"{n}?"}) for n in (0, 0, 1, 2, 3, 4)]
    (file := tmp_path / "rows.jsonl").write_text("\n".join(lines))
    for limit, words in {2: f"{file}: 2 of its 6 rows are used, the first ones: limit=2.", 5: None, None: None}.items():
        caplog.clear()
        read_prompts(str(file), limit=limit)
        said = [line for line in caplog.messages if "the first ones" in line]
        assert said == ([words] if words else [])
    file.write_text("\n".join([*lines, "no JSON", *lines]))
    assert len(read_prompts(str(file), limit=2)) == 2, "what is wrong beyond the limit does not matter"
