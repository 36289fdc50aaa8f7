"""The contracts between labelers and the buyer of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from choosy.models.policy import Policy
from choosy.types import Prompt, Response, Verdict

Purpose = Literal["train", "evaluate"]
ResponsePair = tuple[Prompt, Response, Response]  # what a labeler compares


class Answer(NamedTuple):
    """One judgement, with what the ledger stores beside its value.

    Attributes:
        judgements: How many labels of the budget it takes; None means as many as the labeler's terms say. Where it is
            given, the cost is exact as well, and 0 means that nothing was paid.
    """

    at: int  # position of the item among the items of the call
    value: float | Verdict
    raw: str = ""  # the labeler's words, unchanged
    cost: float = 0.0  # money; 0 means the labeler's price, or nothing if it has none
    annotator: str = ""
    judgements: int | None = None


class TakenBack(Answer):
    """Takes back the answer given before to the item at this place; the labeler will answer that item again.

    It repeats the old answer, and is for people who change their mind: the buyer deletes the label from the ledger.
    """


class ItemFailed(Exception):
    """Raised by a labeler that can say which item it failed on, by its position in the call."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class Postponed(Exception):
    """Raised by a labeler whose labels come another day: the run ends in good order, and it is no error.

    The buyer passes it on unchanged; what was answered before it is in the ledger.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later


# What a labeler returns. They are `Any` because jsonargparse accepts a class for a protocol only if the return types
# are equal, and a list of numbers is as good as an iterator of answers. The buyer checks every answer.
Rewards = Any  # Iterable[float | Answer]
Verdicts = Any  # Iterable[Verdict | Answer]


@runtime_checkable
class Scores(Protocol):
    """A labeler that gives a response a reward; larger is better."""

    name: str  # who judges, and which version of it: the ledger stores labels under this name

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Rewards:
        """One finite reward per item: plain numbers in the order of the items, or `Answer`s in any order.

        What is yielded is in the ledger before the next answer is requested, so that a labeler that yields answers as
        they come loses none of them when a later one fails.

        Raises:
            ItemFailed: There is no answer to one of the items. Any other error is taken for a failure of the first
                item without an answer.
        """
        ...


@runtime_checkable
class Compares(Protocol):
    """A labeler that says which of two responses is better."""

    name: str  # as of `Scores`

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Verdicts:
        """One verdict per item, given as rewards are in `Scores.score`."""
        ...


Labeler = Scores | Compares


# -- what a labeler may need; the buyer offers it to every labeler that has the method ---------------------------


@runtime_checkable
class Changes(Protocol):
    """A labeler whose judgement changes during a run, or depends on what it is given after it was built."""

    def state(self) -> str:
        """Return what identifies its present state: labels of another state are not reused."""
        ...


@runtime_checkable
class Stamps(Protocol):
    """A labeler whose judgement depends on more than the texts of prompt and responses."""

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """Return what else identifies the question; it is part of the ledger's key."""
        ...


@runtime_checkable
class Informed(Protocol):
    """A labeler that shows people how far the purchase has come."""

    def inform(self, *, purpose: Purpose, budget: int | None, spent: int) -> None:
        """Receive, before each call, the labels' purpose, the run's budget, and the labels bought of it."""
        ...


@runtime_checkable
class NeedsPolicy(Protocol):
    """A labeler that judges with the policy that is trained."""

    def use_policy(self, policy: Policy) -> None:
        """Judge with this policy, whose weights may not be loaded yet; called before the first question."""
        ...


class LabelRecord(NamedTuple):
    """A label as labelers read it that learn from labels."""

    prompt: str
    first: str
    second: str | None
    score: float | None
    verdict: Verdict | None
    raw: str
    annotator: str
    judgements: int
    cost: float
    run: str


class LabelHistory(Protocol):
    """The labels that are in the ledger (see `Ledger.labels_of`)."""

    def labels_of(
        self, labeler: str, *, fingerprint: str | None = None, run: str | None = None
    ) -> list[LabelRecord]: ...


@runtime_checkable
class Recalls(Protocol):
    """A labeler that learns from the labels in the ledger."""

    def recall(self, history: LabelHistory, run: str) -> None:
        """Judge for this run from now on, whose earlier labels are in the history; called before the first question."""
        ...


class Buys(Protocol):
    """Buys the labels of one labeler for another one (see `LabelBuyer`)."""

    @property
    def spent(self) -> int: ...

    @property
    def money(self) -> float: ...

    def compare(self, questions: Sequence[ResponsePair]) -> list[Verdict | None]: ...


class BuyerOf(Protocol):
    """Makes the buyer of a labeler that stands inside another one."""

    def __call__(self, name: str, labeler: Labeler, *, budget: int | None = None) -> Buys: ...


@runtime_checkable
class BuysLabels(Protocol):
    """A labeler that makes its answers of what it buys from other labelers."""

    def use_buyers(self, buyer_of: BuyerOf) -> None:
        """Buy through these buyers from now on; called before `recall`."""
        ...
