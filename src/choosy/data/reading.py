"""Read prompts or candidates from a data source, with a word on what is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from choosy.data.formats import PROMPTS, Cells, Row, Untrainable, format_of, to_candidates, to_prompt
from choosy.data.sources import Source, named, read_rows
from choosy.terminal import logger
from choosy.types import Candidates, Prompt, content_id

Promptlike = TypeVar("Promptlike", Prompt, Candidates)

log = logger(__name__)

MANY = 10_000  # rows beyond a limit, which are counted no further


class Lost(NamedTuple):
    """How many rows were left out for one reason, and where the first of them stands."""

    rows: int
    first: str


Columns = Mapping[str, str]  # how a column of the data is to be called, by its name there


@contextmanager
def saying_once() -> Iterator[None]:
    """Say the same of a source only once, though it is read twice, as data.train and as data.heldout."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before, text = len(said), record.getMessage()
        said.add(text)
        return len(said) > before

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def read_prompts(source: Source, *, as_chat: bool = True, limit: int | None = None) -> list[Prompt]:
    """The first `limit` different prompts of a data source (see `read_rows`)."""
    return [*placed_prompts(source, as_chat=as_chat, limit=limit).values()]


def read_candidates(source: Source, *, as_chat: bool = True, limit: int | None = None) -> list[Candidates]:
    """The first `limit` different rows of preference data (see `read_rows`) that compare something."""
    return [*placed_candidates(source, as_chat=as_chat, limit=limit).values()]


def placed_prompts(
    source: Source,
    *,
    as_chat: bool = True,
    limit: int | None = None,
    columns: Columns | None = None,
    reads: Callable[[str], bool] | None = None,
    instead: str | None = None,
) -> dict[str, Prompt]:
    """The prompts of `read_prompts` by the places they stand at, with some columns renamed.

    Columns that the labeler `reads` are not reported as unused. Labeled answers that nothing reads are reported where
    `instead` says what the run trains on in their place.
    """
    left: tuple[str, ...] = ()

    def convert(row: Row) -> Prompt:
        nonlocal left
        prompt = to_prompt(row, as_chat=as_chat)
        answers = labeled_answers(row) if instead is not None else ()
        if isinstance(row, Cells) and not (reads and any(map(reads, answers))):
            row.read |= {*answers}
            left = left or answers
        return prompt

    why_unused = "only reward functions that name them read them"
    found = _read(source, convert, limit, columns or {}, why_unused, reads)
    if left:
        log.warning(
            f"{named(source)}: the answers of its rows and their labels ({', '.join(left)}) are NOT trained on: "
            f"{instead}. Type data=offline to train on the given ones."
        )
    return found


def labeled_answers(row: Row) -> tuple[str, ...]:
    """Return the columns of a row that hold answers with labels; none if it only asks.

    Example:
        >>> labeled_answers({"prompt": "2+2?", "completion": "4", "label": True})
        ('completion', 'label')
        >>> labeled_answers({"prompt": "2+2?", "answers": ["4"]})  # for a reward function to read
        ()
    """
    columns, split = format_of(row) or ((), None)
    if split is None:
        return ()
    try:
        split(Cells(row), *columns)
    except ValueError:
        return ()
    return columns


def placed_candidates(
    source: Source,
    *,
    as_chat: bool = True,
    limit: int | None = None,
    columns: Columns | None = None,
    reads: Callable[[str], bool] | None = None,
) -> dict[str, Candidates]:
    """The candidates of `read_candidates` by the places they stand at, with some columns renamed.

    Columns that the labeler `reads` are not reported as unused.
    """
    return _read(source, partial(to_candidates, as_chat=as_chat), limit, columns or {}, "of no known meaning", reads)


def fingerprint(items: Iterable[Prompt | Candidates]) -> str:
    """A short name for what was read: the same for equal rows in the same order, whatever file they are in.

    Example:
        >>> one, other = Prompt("a", "2?", columns={"x": 3, "y": 4}), Prompt("a", "2?", columns={"y": 4, "x": 3})
        >>> fingerprint([one]) == fingerprint([other]) != fingerprint([one, other])
        True
    """
    parts: list[str] = []
    for item in items:
        prompt, answers, weight = (
            (item, (), None) if isinstance(item, Prompt) else (item.prompt, item.responses, item.weight)
        )
        parts += prompt.id, repr(prompt.messages), prompt.text, prompt.keywords, repr(weight)
        parts += repr(sorted(prompt.columns.items())), repr([(r.text, r.gold) for r in answers])
    return content_id(*parts)


def _read(
    source: Source,
    convert: Callable[[Row], Promptlike],
    limit: int | None,
    columns: Columns,
    why_unused: str,
    reads: Callable[[str], bool] | None = None,
) -> dict[str, Promptlike]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} reads nothing; type a number >= 1, or null for all.")
    kept: dict[str, tuple[str, Promptlike]] = {}
    lost: dict[str, Lost] = {}
    unused: dict[str, str] = {}  # columns, each with the reason

    def lose(why: str, where: str) -> None:
        lost[why] = Lost(lost[why].rows + 1, lost[why].first) if why in lost else Lost(1, where)

    for where, row in (rows := read_rows(source)):
        cells = Cells({columns.get(column, column): cell for column, cell in row.items()})
        try:
            item = convert(cells)
        except Untrainable as error:
            lose(str(error), where)
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        unused |= cells.parts
        for column in cells.unread():
            asked = next((name for name in PROMPTS if name in cells.read and column in PROMPTS), None)
            if asked is not None or reads is None or not reads(column):
                unused.setdefault(column, why_unused if asked is None else f"the prompt is in {asked}")
        name = (item if isinstance(item, Prompt) else item.prompt).id
        first, same = kept.setdefault(name, (where, item))
        if first != where and repr(same) == repr(item):  # repr, as nan is not equal to itself
            lose("a repeated row", where)
        elif first != where and cells.get("id") is None:
            lose("a repeated row with other scores", where)
        elif first != where:
            raise ValueError(f"{where}: id {name} is taken by {first}, which differs; rename one.")
        if len(kept) == limit:
            if log.isEnabledFor(logging.WARNING) and (rest := _count(rows)):
                all_rows = limit + sum(each.rows for each in lost.values()) + rest
                total = f"more than {all_rows - 1:,}" if rest > MANY else f"{all_rows:,}"
                log.warning(f"{named(source)}: {limit:,} of its {total} rows are used, the first ones: limit={limit}.")
            break
    _report(named(source), kept=len(kept), lost=lost, unused=unused)
    return dict(kept.values())


def _count(rows: Iterator[object]) -> int:
    """Count the rows that a limit leaves out, up to one more than `MANY`; what is wrong with them does not matter."""
    count = 0
    with suppress(ValueError):
        for _ in islice(rows, MANY + 1):
            count += 1
    return count


def _report(name: str, *, kept: int, lost: Mapping[str, Lost], unused: Mapping[str, str]) -> None:
    """Say once what was not used; a source of which nothing is left raises a ValueError."""
    reasons = ", ".join(f"{n} x {why} ({first.removeprefix(f'{name}, ')})" for why, (n, first) in sorted(lost.items()))
    if not kept:
        raise ValueError(f"{name} has no row that compares anything, only {reasons}; give other data.")
    if lost:
        left_out = sum(n for n, _ in lost.values())
        log.warning(
            f"{name}: kept {kept} of {kept + left_out} rows, left out {left_out}: {reasons}; "
            "in brackets the first of each."
        )
    if unused:
        columns = "; ".join(
            f"{', '.join(column for column, why in unused.items() if why == reason)} ({reason})"
            for reason in dict.fromkeys(unused.values())
        )
        log.warning(f"{name}: not used: {columns}.")
