"""Labelers: who judges the responses. One scores a response, another compares two, some do both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from choosy.types import Prompt, Response, Verdict

if TYPE_CHECKING:
    from choosy.models.policy import Policy

Purpose = Literal["train", "evaluate"]
ResponsePair = tuple[Prompt, Response, Response]  # what a labeler compares


class Answer(NamedTuple):
    """One judgement, with what the ledger keeps of it beside the value.

    Attributes:
        at: Position of the item in what was asked.
        value: A reward, or a verdict.
        raw: What was said, word for word.
        cost: Money, in the labeler's currency; 0 means the labeler's `price`, or nothing if it has none.
        annotator: Who said it.
        judgements: How many labels of the budget it takes; None means as many as the labeler says. Where it is told,
            the cost is exact as well, and 0 means that nothing was paid.
    """

    at: int
    value: float | Verdict
    raw: str = ""
    cost: float = 0.0
    annotator: str = ""
    judgements: int | None = None


MYPY = False  # true to a type checker, and to nobody else
if MYPY:
    Rewards = Iterable[float | Answer]
    Verdicts = Iterable[Verdict | Answer]
else:  # jsonargparse takes a class for a labeler only if it returns just this type, and list[float] is as good
    Rewards = Verdicts = Any


class TakenBack(Answer):
    """Takes back the answer given before to the item at this place, which will be answered anew.

    It repeats what that answer said, and is for people who change their mind: the buyer strikes the label out of the
    ledger before it asks on.
    """


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
    """The labels that are in the ledger."""

    def labels_of(self, labeler: str, *, fingerprint: str | None = None, run: str | None = None) -> list[LabelRecord]:
        """All labels of a labeler, the earliest first: of all runs or one, under any fingerprint or one."""
        ...


class Postponed(Exception):
    """Raised by a labeler whose labels come another day: it ends the run in good order, and is no mistake.

    The buyer passes it on as it is; what was answered before it is in the ledger.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later


@runtime_checkable
class Scores(Protocol):
    """A labeler that gives a response a reward; larger is better.

    Beside its name a labeler may say (the buyer reads these of a labeler of either kind):

    - `fingerprint: str`: what else its judgement depends on, such as the hash of a prompt template. It is part of the
      ledger's key: labels of another fingerprint are not reused.
    - `price: float`: money for one label, known beforehand; of answers that tell their cost themselves, the most that
      one may cost.
    - `judgements: int`: how many labels of the budget one answer takes; 1 if it does not say.
    - `at_once: int | None`: how many items it is asked at once; None for all. If it does not say, a method that yields
      is asked everything and one that returns a list 64 at a time.
    - `elsewhere: bool`: whether it judges on another processor than the one that samples, each item by itself, whatever
      else is asked and in whatever order. Then it is asked about the first items while others are still sampled.

    Attributes:
        name: Who judges, and which version of it: the ledger keeps labels under this name.
    """

    name: str

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Rewards:
        """One finite reward per item: plain numbers in the order of the items, or `Answer`s in any order.

        What is yielded is in the ledger before the next is asked for, so that a labeler that yields answers as they
        come loses none of them when a later one fails. An exception may name its item in an attribute `at`.
        """
        ...


@runtime_checkable
class Compares(Protocol):
    """A labeler that says which of two responses is better. See `Scores` for what else it may say of itself.

    Attributes:
        name: Who judges, and which version of it: the ledger keeps labels under this name.
    """

    name: str

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Verdicts:
        """One verdict per item, given as rewards are in `Scores.score`."""
        ...


@runtime_checkable
class Informed(Protocol):
    """A labeler that tells people what the buyer knows, and is told it before it is asked."""

    def inform(self, *, purpose: Purpose, budget: int | None, spent: int) -> None:
        """What the labels are for, how many the run may buy to train on, and how many of these it has bought."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """A labeler that learns from the labels in the ledger."""

    def recall(self, history: LabelHistory, run: str) -> None:
        """Judge for this run from now on, whose earlier labels are in the history; called before anything is asked."""
        ...


class Buys(Protocol):
    """Buys the labels of one labeler for another one."""

    @property
    def spent(self) -> int:
        """Labels bought so far."""
        ...

    @property
    def money(self) -> float:
        """What they cost."""
        ...

    def compare(self, questions: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict | None]:
        """The verdict on each pair, or None where the budget cannot pay it."""
        ...


class BuyerOf(Protocol):
    """Makes the buyer of a labeler that stands inside another one."""

    def __call__(self, name: str, labeler: Labeler, *, budget: int | None = None) -> Buys: ...


@runtime_checkable
class BuysLabels(Protocol):
    """A labeler that makes its answers of what it buys from other labelers."""

    def use_buyers(self, buyer_of: BuyerOf) -> None:
        """Buy through these buyers from now on; called before `recall`."""
        ...


@runtime_checkable
class NeedsPolicy(Protocol):
    """A labeler that judges with the policy that is trained."""

    def use_policy(self, policy: Policy) -> None:
        """Judge with this policy, whose weights may not be loaded yet; called before anything is asked."""
        ...


Labeler = Scores | Compares

# What the files in conf/labeler/ can; a test compares it with the classes they name. `noisy` can what it wraps can.
SCORE = ("contrastive", "dataset", "function", "reward_model", "vader")
COMPARE = ("crowd", "human", "judge", "predictor", "queue")


def that(can: Literal["score", "compare"]) -> str:
    """The labelers of the menu that can do it, as they are typed.

    Example:
        >>> that("score")
        'labeler=contrastive, labeler=dataset, labeler=function, labeler=reward_model, labeler=vader'
    """
    names = SCORE if can == "score" else COMPARE
    return ", ".join(f"labeler={name}" for name in names) or "one of your own, with a method compare"
