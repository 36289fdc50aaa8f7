"""Draws a mixture of several sources, in the shares that are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choosy.data.reading import Promptlike
from choosy.data.sources import Source
from choosy.terminal import logger
from choosy.types import Prompt, seed_of

log = logger(__name__)


def divided(
    train: Source | Mapping[str, float], shares: Sequence[float] | None
) -> tuple[Source, Sequence[float] | None]:
    """Return what is trained on and the shares of it, which may be typed as {a.jsonl: 0.7, b.jsonl: 0.3}.

    Raises:
        ValueError: The shares are not one positive number for each of several sources.
    """
    if isinstance(train, Mapping):
        if shares is not None:
            raise ValueError(f"data.train={dict(train)} has shares, and data.shares={list(shares)} others; drop one.")
        return divided(list(train), list(train.values()))
    if shares is None:
        return train, None
    if isinstance(train, str):
        raise ValueError(f"data.shares={shares} mixes several sources, and data.train={train} is one; type null.")
    if twice := [source for n, source in enumerate(train) if source in train[:n]]:
        raise ValueError(f"data.train names {twice[0]} twice; name it once, and add up its shares.")
    if len(shares) != len(train) or not all(is_share(one) for one in shares):
        raise ValueError(
            f"data.shares={list(shares)} gives no positive share to each of the {len(train)} sources of data.train; "
            "type one number for each, such as data.shares=[0.7,0.3], or null to take all rows."
        )
    return train, shares


def is_share(value: object) -> bool:
    """Whether a value is a number that can be the share of a source."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def mixture(
    found: Mapping[str, Sequence[Promptlike]], shares: Sequence[float], *, limit: int | None
) -> list[Promptlike]:
    """Draw prompts of several sources in shares: as many as can be without repeating one, or `limit` of them.

    Which ones is drawn by their ids, in any run the same; they stay in the order of their sources and rows. A prompt of
    several sources is one of the first. Each names its source.

    Raises:
        ValueError: A source has fewer prompts than its share takes, or its share takes none.
    """
    rows = _once(found)
    counts = drawn(dict(zip(rows, map(len, rows.values()), strict=True)), shares, limit=limit)
    names = short_names(rows)
    mixed: list[Promptlike] = []
    for source, count in counts.items():
        mixed += _some(rows[source], count, names[source])
    shown = ", ".join(f"{counts[source]} of the {len(items)} of {source}" for source, items in rows.items())
    log.warning(f"data.shares={list(shares)} takes {len(mixed)} prompts: {shown}.")
    return mixed


def drawn(available: Mapping[str, int], shares: Sequence[float], *, limit: int | None) -> dict[str, int]:
    """How many prompts are drawn of each source, whose numbers are in these shares as nearly as whole ones can be.

    Example:
        >>> drawn({"a": 100, "b": 30}, [0.7, 0.3], limit=None), drawn({"a": 100, "b": 30}, [2, 1], limit=10)
        ({'a': 70, 'b': 30}, {'a': 7, 'b': 3})
    """
    share_of = {source: share / sum(shares) for source, share in zip(available, shares, strict=True)}
    most = math.floor(min(available[source] / share for source, share in share_of.items()) + 1e-9)
    total = most if limit is None else limit
    exact = {source: round(share * total, 9) for source, share in share_of.items()}
    counts = {source: math.floor(number) for source, number in exact.items()}
    by_rest = sorted(exact, key=lambda source: counts[source] - exact[source])
    for source in by_rest[: total - sum(counts.values())]:
        counts[source] += 1
    for source, count in sorted(counts.items(), key=lambda item: available[item[0]] > 0):  # an empty one first
        has = (
            f"data.shares={list(shares)} takes {count} of {total} prompts from {source}, which has {available[source]}"
        )
        if count > available[source] and most:
            raise ValueError(
                f"{has}; type data.limit={most} or less, data.limit=null for as many as there are, or other shares."
            )
        if not count or not most:
            raise ValueError(f"{has}; type other shares, or leave it out of data.train.")
    return counts


def _some(items: Mapping[str, Promptlike], count: int, source: str) -> list[Promptlike]:
    """So many of a source's items, drawn by their ids, in their order and with its name."""
    taken = {*sorted(items, key=lambda name: seed_of("shares", name))[:count]}
    return [_named(item, source) for name, item in items.items() if name in taken]


def _once(found: Mapping[str, Sequence[Promptlike]]) -> dict[str, dict[str, Promptlike]]:
    """The items of each source by the ids of their prompts, less those that an earlier source has."""
    first: dict[str, tuple[str, Promptlike]] = {}
    for source, items in found.items():
        for item in items:
            name = prompt_of(item).id
            owner, same = first.setdefault(name, (source, item))
            if owner != source and repr(same) != repr(item):
                raise ValueError(f"{source}: id {name} is taken by {owner}, whose row differs; rename or drop one.")
    return {source: {name: item for name, (of, item) in first.items() if of == source} for source in found}


def prompt_of(item: Prompt | Any) -> Prompt:
    """The prompt itself, or that of candidates."""
    return item if isinstance(item, Prompt) else item.prompt


def _named(item: Promptlike, source: str) -> Promptlike:
    if isinstance(item, Prompt):
        return replace(item, source=source)
    return replace(item, prompt=replace(item.prompt, source=source))


def short_names(sources: Iterable[str]) -> dict[str, str]:
    """The names of sources without their folders, where these still differ.

    Example:
        >>> short_names(["data/a.jsonl", "trl-lib/tldr:train"])
        {'data/a.jsonl': 'a.jsonl', 'trl-lib/tldr:train': 'tldr:train'}
    """
    whole = list(sources)
    short = [Path(source).name for source in whole]
    return dict(zip(whole, short if len({*short}) == len(whole) else whole, strict=True))
