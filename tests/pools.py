"""Pools of candidates for tests, made by what a run makes them with."""

from __future__ import annotations

from collections.abc import Sequence

from choosy.data.pool import Keep, Pool
from choosy.data.pool_rows import as_rows
from choosy.types import Candidates


def put(pool: Pool, fresh: Sequence[Candidates], *, round: int, keep: Keep = "newest") -> Pool:
    """The pool after a round, as one process makes it in its memory."""
    return pool.put_rows(as_rows(pool.with_earlier(fresh)), round=round, keep=keep)
