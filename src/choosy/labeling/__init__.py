"""Labelers: who judges the responses. One scores a response, another compares two, some do both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from choosy.types import Prompt, Response, Verdict


@runtime_checkable
class Scores(Protocol):
    """A labeler that gives a response a reward; larger is better.

    Attributes:
        name: Who judges, and which version of it: the ledger keeps labels under this name.
    """

    name: str

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """One finite reward per item, in the order given."""
        ...


@runtime_checkable
class Compares(Protocol):
    """A labeler that says which of two responses is better.

    Attributes:
        name: Who judges, and which version of it: the ledger keeps labels under this name.
    """

    name: str

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        """One verdict per item, in the order given."""
        ...


Labeler = Scores | Compares
