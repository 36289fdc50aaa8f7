"""What a labeler declares about its labels."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from choosy.labeling.protocols import Changes, Compares, Labeler, Scores
from choosy.types import content_id

ALL = sys.maxsize
Method = Literal["score", "compare"]


@dataclass(frozen=True)
class Terms:
    """What a labeler declares about its labels, as its attribute `terms`; one that declares nothing has the defaults.

    Attributes:
        fingerprint: What else than its name its judgement depends on, such as the hash of a prompt template. It is part
            of the ledger's key: labels of another fingerprint are not reused.
        price: Money for one answer, or the most that one may cost if answers carry their cost; None = unknown.
        labels_per_answer: How many labels of a budget one answer takes.
        at_once: How many items it is asked in one call, `ALL` for as many as there are; None = `ALL` if its method
            yields answers, 64 if it returns a list.
        runs_remotely: Whether it judges on another processor than the one that samples, each item by itself, whatever
            else is asked and in whatever order. Then labels are bought while the rest of the round is sampled.
        people: Whether people answer. Unless the run says otherwise, they are not asked about held-out answers, and
            may call as many pairs invalid as they like.
        given_only: Whether it judges only the responses that came with the data, and none that the policy sampled.
        methods: Which methods may be called. None = those that it has.
    """

    fingerprint: str = ""
    price: float | None = None
    labels_per_answer: int = 1
    at_once: int | None = None
    runs_remotely: bool = False
    people: bool = False
    given_only: bool = False
    methods: tuple[Method, ...] | None = None

    @property
    def scores(self) -> bool:
        """Whether it gives a response a reward."""
        return "score" in (self.methods or ())

    @property
    def compares(self) -> bool:
        """Whether it compares two responses itself; two of its scores compare them as well."""
        return "compare" in (self.methods or ())

    @property
    def labels_per_comparison(self) -> int:
        """How many labels of a budget one comparison takes; two scores if it only scores."""
        return self.labels_per_answer * (1 if self.compares else 2)

    @property
    def price_of_comparison(self) -> float | None:
        """What one comparison costs at most; None = unknown."""
        return None if self.price is None else self.price * (1 if self.compares else 2)


@runtime_checkable
class HasTerms(Protocol):
    """A labeler that declares its terms."""

    terms: Terms


def fingerprint_of(labeler: Labeler) -> str:
    """What else than its name the labeler's judgement depends on now, as a part of the ledger's key."""
    fingerprint = terms_of(labeler).fingerprint
    return content_id(fingerprint, labeler.state()) if isinstance(labeler, Changes) else fingerprint


def terms_of(labeler: Labeler) -> Terms:
    """The terms of a labeler, with the methods that it has.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> terms_of(Vader()).methods
        ('score',)
    """
    terms = labeler.terms if isinstance(labeler, HasTerms) else Terms()
    if terms.methods is not None:
        return terms
    can: dict[Method, bool] = {"score": isinstance(labeler, Scores), "compare": isinstance(labeler, Compares)}
    return replace(terms, methods=tuple(method for method, has in can.items() if has))
