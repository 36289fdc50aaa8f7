"""Read prompts or candidates from files, folders of `datasets` or the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from choosy.data.formats import Row, Untrainable, to_candidates, to_prompt
from choosy.types import Candidates, Prompt

Promptlike = TypeVar("Promptlike", Prompt, Candidates)

PACKAGED = "choosy:prompts/"

log = logging.getLogger(__name__)


def read_prompts(source: str, *, as_chat: bool = True, limit: int | None = None) -> list[Prompt]:
    """The first `limit` different prompts of a data source (see `read_rows`)."""
    return _read(source, partial(to_prompt, as_chat=as_chat), limit)


def read_candidates(source: str, *, as_chat: bool = True, limit: int | None = None) -> list[Candidates]:
    """The first `limit` different rows of preference data (see `read_rows`) that compare something."""
    return _read(source, partial(to_candidates, as_chat=as_chat), limit)


def _read(source: str, convert: Callable[[Row], Promptlike], limit: int | None) -> list[Promptlike]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} reads nothing; type a number >= 1, or null for all.")
    kept: dict[str, tuple[str, Promptlike]] = {}
    lost: Counter[str] = Counter()
    for where, row in read_rows(source):
        try:
            item = convert(row)
        except Untrainable as error:
            lost[str(error)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        name = (item if isinstance(item, Prompt) else item.prompt).id
        first, same = kept.setdefault(name, (where, item))
        if first != where and repr(same) == repr(item):  # repr, as nan is not equal to itself
            lost["a repeated row"] += 1
        elif first != where and row.get("id") is None:
            lost["a repeated row with other scores"] += 1
        elif first != where:
            raise ValueError(f"{where}: id {name} is taken by {first}, which differs; rename one.")
        if len(kept) == limit:
            break
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(lost.items()))
    if not kept:
        raise ValueError(f"{source} has no row that compares anything, only {reasons}; give other data.")
    if lost:
        log.warning(f"{source}: kept {len(kept)} rows, left out {lost.total()}: {reasons}.")
    return [item for _, item in kept.values()]


def read_rows(source: str) -> Iterator[tuple[str, Row]]:
    """Every row of a data source with the place it stands at, such as "prompts.jsonl, line 17".

    Args:
        source: A .jsonl, .json or .parquet file, a folder saved by `datasets`, "choosy:prompts/NAME" (comes
            with the package), or a Hugging Face dataset id. Folders and ids take a ":split" suffix.

    Raises:
        ValueError: If the source is missing, empty or malformed; the message names the place.
    """
    found = False
    for where, row in _open(source):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: wanted a JSON object with columns, found {type(row).__name__}.")
        found = True
        yield where, row
    if not found:
        raise ValueError(f"{source} has no rows; give a source with at least one.")


def _open(source: str) -> Iterator[tuple[str, Any]]:
    if source.startswith("choosy:"):
        folder, name = files("choosy.data.prompts"), source.removeprefix(PACKAGED)
        known = sorted(PACKAGED + file.name for file in folder.iterdir() if file.name.endswith(".jsonl"))
        if source not in known:
            raise ValueError(f"{source} does not come with choosy; there is {', '.join(known) or 'nothing'}.")
        return _json(folder / name, source)
    match = re.fullmatch(r"(.*?)(?::([^/\\]+))?", source, re.DOTALL)  # C:\data has no split: a slash follows
    assert match
    name, split = match.groups()
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if split:
            raise ValueError(f"{source}: a file has no splits; type {name}.")
        if not path.is_file():
            raise ValueError(f"No file {name} (looked in {Path.cwd()}); check the path.")
        return _parquet(path, name) if path.suffix == ".parquet" else _json(path, name)
    saved = any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    return _saved(path, name, split) if saved else _hub(path, name, split)


def _json(path: Traversable, name: str) -> Iterator[tuple[str, Any]]:
    where = name
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.name.endswith(".json") and (text := file.read()).lstrip().startswith("["):
                yield from _numbered(name, json.loads(text))
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                where = f"{name}, line {number}"
                if line.strip():
                    yield where, json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); write one JSON object a line.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} or later: not UTF-8 ({error.reason}); save it as UTF-8.") from None


def _parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq  # here, as a .jsonl file needs none of it

    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(name, (row for batch in file.iter_batches() for row in batch.to_pylist()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not a readable Parquet file: {error}") from error


def _saved(path: Path, name: str, split: str | None) -> Iterator[tuple[str, Any]]:
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


def _hub(path: Path, name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    import datasets

    split, missing = split or "train", f"No file or folder {name!r} (looked in {Path.cwd()})"
    if not (name and path.is_dir()) and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"{missing}; type a .jsonl, .json or .parquet file, a folder or a Hugging Face id.")
    try:
        return _numbered(f"{name}[{split}]", datasets.load_dataset(name, split=split))
    except Exception as error:  # datasets and the hub raise a dozen unrelated kinds
        what = "The folder" if path.is_dir() else f"{missing}, and the Hugging Face dataset"
        text = f"{what} {name}:{split} does not load: {error}; check the name, the split and the network."
        raise ValueError(text) from error


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{name}, row {index}", row) for index, row in enumerate(rows))
