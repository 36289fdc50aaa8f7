"""Rows of files, of folders of `datasets` or of the Hugging Face hub."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any, cast

from choosy.errors import json_fault
from choosy.options.names import file_meant
from choosy.terminal import logger

Source = str | Sequence[str]
Rows = Iterator[tuple[str, Any]]  # each row with the place it stands at

PACKAGED = "choosy:prompts/"
UNZIPPED: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
HALF = re.compile("[\ud800-\udfff]")  # of a character that was cut between its two escapes

log = logger(__name__)


def read_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a data source with the place it stands at, such as "prompts.jsonl, line 17".

    Args:
        source: One source or several: a file (.jsonl, .json, .csv, .tsv, .txt of a prompt a line, .parquet, all but
            the last also .gz, .bz2 or .xz), a pattern of files such as `data/*.jsonl`, a folder saved by `datasets`,
            "choosy:prompts/NAME" (comes with the package), or a Hugging Face dataset id. Folders and ids take a
            ":split" suffix, ids also ":subset:split".

    Raises:
        ValueError: A source is missing, empty or malformed; the message names the place.
    """
    sources = [source] if isinstance(source, str) else source
    if not isinstance(sources, list | tuple) or not sources or not all(isinstance(each, str) for each in sources):
        raise ValueError(f"A data source is a file, a folder or a hub id, or a list of these; found {source!r:.80}.")
    for each in sources:
        found, cut = False, []
        for where, row in _open(each):
            if not isinstance(row, dict):
                raise ValueError(f"{where}: wanted a JSON object with columns, found {type(row).__name__}.")
            whole, found = _whole(row), True
            cut += [] if whole is row else [where]
            yield where, whole
        if not found:
            raise ValueError(f"{each} has no rows; give a source with at least one.")
        if cut:
            log.warning(f"{each}: half a character becomes U+FFFD in {len(cut)} of its rows; the first is {cut[0]}.")


def _whole(value: Any) -> Any:
    """Return the value itself, or a copy with U+FFFD for each half of a character."""
    if isinstance(value, str):
        return value if value.isascii() or not HALF.search(value) else HALF.sub("\ufffd", value)
    if not isinstance(value, dict | list):
        return value
    cells = value.items() if isinstance(value, dict) else enumerate(value)
    if not (cut := {name: whole for name, cell in cells if (whole := _whole(cell)) is not cell}):
        return value
    return value | cut if isinstance(value, dict) else [cut.get(place, cell) for place, cell in enumerate(value)]


def named(source: Source) -> str:
    """Return a source as messages name it."""
    return source if isinstance(source, str) else ", ".join(source)


def _open(source: str) -> Rows:
    if source.startswith("choosy:"):
        folder, name = files("choosy.data.prompts"), source.removeprefix(PACKAGED)
        known = sorted(PACKAGED + file.name for file in folder.iterdir() if file.name.endswith(".jsonl"))
        if source not in known:
            raise ValueError(f"{source} does not come with choosy; there is {', '.join(known) or 'nothing'}.")
        return _file(folder / name, source)
    path = Path(source).expanduser()
    if path.is_file():  # whatever is in its name
        return _file(path, source)
    if re.search(r"[*?\[]", source) and (matching := sorted(glob.glob(str(path), recursive=True))):
        return (row for each in matching for row in _file(Path(each), each))
    refuse_missing_file(source)
    name, split = _split(source)
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{source}: a file has no splits; type {name}.")
    saved = any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    return _saved(path, name, split) if saved else _hub(path, name, split)


def refuse_missing_file(source: str) -> None:
    """Raise a ValueError if a source has the name of a file, or of files, and there is none; it opens nothing."""
    name, _ = _split(source)
    path = Path(name).expanduser()
    there = source.startswith("choosy:") or Path(source).expanduser().exists() or path.exists()
    if not there and _kind(path.name)[0] in READERS and not glob.glob(str(path), recursive=True):
        raise ValueError(f"No file {name} (looked in {Path.cwd()}); {file_meant(path) or 'check the path.'}")


def _split(source: str) -> tuple[str, str | None]:
    """Split a source into its name and what stands behind the colon."""
    match = re.fullmatch(r"(.*?)(?::([^/\\]+))?", source, re.DOTALL)  # C:\data has no split: a slash follows
    assert match
    return match[1], match[2]


# -- files ------------------------------------------------------------------------------------------------------


def _kind(name: str) -> tuple[str, str]:
    """The suffix that says what a file holds, and the one that says how it is compressed."""
    whole = name.lower()
    packed = next((suffix for suffix in UNZIPPED if whole.endswith(suffix)), "")
    return Path(whole.removesuffix(packed)).suffix, packed


def _file(path: Traversable, name: str) -> Rows:
    kind, packed = _kind(path.name)
    if kind not in READERS:
        raise ValueError(f"{name} is there, but {kind or 'a file without a suffix'} is not read; {READ}.")
    try:
        with path.open("rb") as raw:
            yield from READERS[kind](UNZIPPED[packed](raw) if packed else raw, name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 ({error.reason}); save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name} cannot be read ({error}); check that the file is whole.") from None


def _text(file: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")  # a line ends where an editor ends it


def _lines(file: IO[bytes], name: str) -> Rows:
    """One object a line; an array in a file of that name is read as one."""
    if file.peek(99).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):  # type: ignore[attr-defined]  # every file here is buffered
        yield from _json(file, name)
        return
    with _text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{name}, line {number}"
                yield where, _loaded(line, f"{where}: not JSON", "write one JSON object a line")


def _json(file: IO[bytes], name: str) -> Rows:
    """An array, an object of columns, an object that holds an array, one object, or one object a line."""
    with _text(file) as lines:
        text = lines.read()
    if not text.lstrip().startswith("["):
        try:
            whole = _loaded(text, "", "")
        except ValueError:
            yield from _lines(io.BufferedReader(io.BytesIO(text.encode())), name)
            return
    else:
        whole = _loaded(text, f"{name}: not JSON", "write an array of objects, or one object a line")
    if isinstance(whole, dict):
        cells = [list(column.values()) if isinstance(column, dict) else column for column in whole.values()]
        if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(row, dict) for row in cells[0]):
            whole = cells[0]  # {"data": [...]}
        elif cells and all(isinstance(column, list) for column in cells) and len({*map(len, cells)}) == 1:
            whole = [dict(zip(whole, row, strict=True)) for row in zip(*cells, strict=True)]  # as pandas writes it
        else:
            whole = [whole]
    yield from _numbered(name, whole if isinstance(whole, list) else [whole])


def _csv(file: IO[bytes], name: str, *, delimiter: str | None = None) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with _text(file) as lines:
        text = lines.read()
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter or max(",;\t", key=header.count))
    try:
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: wanted {len(rows.fieldnames or ())} fields, as the first line has.")
            yield where, {column: cell or None for column, cell in row.items() if column}  # pandas' index has no name
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: no CSV ({error}).") from error


def _text_lines(file: IO[bytes], name: str) -> Rows:
    """One prompt a line; empty lines are passed over."""
    with _text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{name}, line {number}", {"prompt": line.strip()}


def _parquet(file: IO[bytes], name: str) -> Rows:
    import pyarrow.parquet as pq  # here, as a .jsonl file needs none of it

    try:
        with pq.ParquetFile(file) as table:
            yield from _numbered(name, (row for batch in table.iter_batches() for row in batch.to_pylist()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not a readable Parquet file: {error}") from error


READERS: dict[str, Callable[[IO[bytes], str], Rows]] = {
    **dict.fromkeys((".jsonl", ".ndjson"), _lines),
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".txt": _text_lines,
    ".parquet": _parquet,
}
READ = f"save it as {', '.join(READERS)}; of these all but the last may be {', '.join(UNZIPPED)}"


def _loaded(text: str, where: str, wanted: str) -> Any:
    try:
        return json.loads(text.rstrip())
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} ({json_fault(error)}); {wanted}.") from None


# -- folders and the hub ----------------------------------------------------------------------------------------


def _saved(path: Path, name: str, split: str | None) -> Rows:
    import datasets

    data = datasets.load_from_disk(str(path))
    if not isinstance(data, datasets.DatasetDict):
        if split:
            raise ValueError(f"{name} is one dataset without splits; type {name}.")
        return _numbered(name, data)
    if (split := split or "train") not in data:
        options = " or ".join(f"{name}:{each}" for each in data)
        raise ValueError(f"{name} has no split {split}; type {options}.")
    return _numbered(f"{name}[{split}]", data[split])


def _hub(path: Path, name: str, split: str | None) -> Rows:
    import datasets

    split, missing = split or "train", f"No file or folder {name!r} (looked in {Path.cwd()})"
    if not (name and path.is_dir()) and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"{missing}; type a {', '.join(READERS)} file, a folder or a Hugging Face id.")
    try:
        *subset, part = split.split(":", 1) if re.match(r"[\w.-]+:", split) else (split,)
        return _numbered(f"{name}[{split}]", datasets.load_dataset(name, *subset, split=part))
    except Exception as error:  # datasets and the hub raise a dozen unrelated kinds
        what = "The folder" if path.is_dir() else f"{missing}, and the Hugging Face dataset"
        why = error.__cause__ or error
        text = f"{what} {name}:{split} does not load: {why}; check the name, the split and the network."
        raise ValueError(text) from error


def _numbered(name: str, rows: Iterable[Any]) -> Rows:
    return ((f"{name}, row {index}", row) for index, row in enumerate(rows))
