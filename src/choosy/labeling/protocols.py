"""The contract of labelers with the buyer of their labels."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from choosy.own_code import OURS, code_id
from choosy.types import Prompt, Response, Verdict, content_id

if TYPE_CHECKING:
    from choosy.models.policy import Policy

Purpose = Literal["train", "evaluate"]
ResponsePair = tuple[Prompt, Response, Response]  # what a labeler compares


class Answer(NamedTuple):
    """One judgement, with what the ledger stores beside its value."""

    at: int  # position of the item among the items of the call
    value: float | Verdict
    raw: str = ""  # the labeler's words, unchanged
    cost: float = 0.0  # money; 0 means the labeler's price, or nothing if it has none or `judgements` is given
    annotator: str = ""
    judgements: int | None = None  # labels of the budget that it takes; None means as many as the labeler's terms say


class TakenBack(Answer):
    """Repeats the answer given before to the item at this place, which people take back to answer it again.

    The buyer deletes the label from the ledger.
    """


class ItemFailed(Exception):
    """Raised by a labeler that can say which item it failed on, by its position in the call."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class Postponed(Exception):
    """Raised by a labeler whose labels come another day: the run ends in good order, and it is no error."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later


# What a labeler is given and returns. They are `Any` because jsonargparse accepts a class for a protocol only if all
# types are equal, and a class of the user's may have none; a list of numbers is as good as an iterator of answers. The
# buyer checks every answer.
ScoreItems = Any  # Sequence[tuple[Prompt, Response]]
CompareItems = Any  # Sequence[tuple[Prompt, Response, Response]]
Rewards = Any  # Iterable[float | Answer]
Verdicts = Any  # Iterable[Verdict | Answer]


@runtime_checkable
class Scores(Protocol):
    """A labeler that gives a response a reward; larger is better."""

    name: str  # of the labeler and its version: the ledger stores labels under it

    def score(self, items: ScoreItems, /) -> Rewards:
        """One finite reward per item: plain numbers in the order of the items, or `Answer`s in any order.

        What is yielded is in the ledger before the next answer is requested, so that a labeler that yields answers as
        they come loses none of them when a later one fails.

        Raises:
            ItemFailed: There is no answer to one of the items. Any other error is reported for all items
                without an answer.
        """


@runtime_checkable
class Compares(Protocol):
    """A labeler that says which of two responses is better."""

    name: str  # as of `Scores`

    def compare(self, items: CompareItems, /) -> Verdicts:
        """One verdict per item, given as rewards are in `Scores.score`."""


Labeler = Scores | Compares


# -- what a labeler may have beside these: `BuysLabels` in buyer.py, and ------------------------------------------


@runtime_checkable
class Changes(Protocol):
    """A labeler whose judgement changes during a run, or depends on what it is given after it was built."""

    def state(self) -> str:
        """Return what identifies its present state: labels of another state are not reused."""


@runtime_checkable
class Stamps(Protocol):
    """A labeler whose judgement depends on more than the texts of prompt and responses."""

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """Return what else identifies the question; it is part of the ledger's key."""


@runtime_checkable
class ChecksPrompts(Protocol):
    """A labeler that needs more of a prompt than its text."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that it could not judge answers to; called before the first question."""


@runtime_checkable
class ReadsColumns(Protocol):
    """A labeler that reads other columns of the data than those of the prompt."""

    def reads(self, column: str) -> bool:
        """Whether it reads this column."""


@runtime_checkable
class Estimates(Protocol):
    """A labeler whose price is not known, and can be estimated."""

    def estimate(self, prompt: Prompt, response_tokens: int) -> float:
        """Return about what one answer costs, for responses of so many tokens."""


@runtime_checkable
class Informed(Protocol):
    """A labeler that shows people how far the purchase has come."""

    def inform(self, *, purpose: Purpose, budget: int | None, spent: int) -> None:
        """Receive, before each call, the labels' purpose, the run's budget, and the labels bought of it."""


@runtime_checkable
class NeedsPolicy(Protocol):
    """A labeler that judges with the policy that is trained."""

    def use_policy(self, policy: Policy) -> None:
        """Judge with this policy, whose weights may not be loaded yet; called before the first question."""


def judges_with_policy(labeler: object) -> bool:
    """Whether a labeler judges with the policy that is trained, or one inside it does (`inside`)."""
    inside = getattr(labeler, "inside", None)
    return isinstance(labeler, NeedsPolicy) if inside is None else any(map(judges_with_policy, inside))


@runtime_checkable
class Measures(Protocol):
    """A labeler that measures itself; what it finds is logged each round as `labeler/NAME`."""

    knowledge: dict[str, float]


@runtime_checkable
class SumsParts(Protocol):
    """A labeler whose score is a sum of parts, each of which is logged as `parts/NAME`."""

    def parts_in(self, raw: str) -> Mapping[str, float]:
        """Read the parts of a score from the `raw` of its label."""


# -- what a labeler declares --------------------------------------------------------------------------------------

ALL = sys.maxsize
LARGEST = 1e15  # of a score or a cost: in fp32 squares of it are finite, and so are sums of millions
LIST_AT_ONCE = 64  # items in one call of a labeler that returns a list: at most so many are lost with the process


@dataclass(frozen=True)
class Terms:
    """What a labeler declares about its labels, as its attribute `terms`; one that declares nothing has the defaults.

    Attributes:
        fingerprint: What else than its name its judgement depends on, such as the hash of a prompt template. It is part
            of the ledger's key: labels of another fingerprint are not reused. A class of the user's that states none
            goes by its source code and its settings (see `code_id`).
        price: Money for one answer, or the most that one may cost if answers carry their cost; None = unknown.
        labels_per_answer: How many labels of a budget one answer takes.
        at_once: How many items it is asked in one call, `ALL` for as many as there are; None = `ALL` if its method
            yields answers, 64 if it returns a list.
        runs_remotely: Whether it judges on another processor than the one that samples, each item by itself, whatever
            else is asked and in whatever order. Then labels are bought while the rest of the round is sampled.
        people: Whether people answer. Unless the run says otherwise, they are not asked about held-out answers, and
            may call as many pairs invalid as they like.
        given_only: Whether it judges only the responses that came with the data, and none that the policy sampled. Its
            scores of two responses are one answer if they are bought together: the verdict of a given pair.
        neutral: The score that says nothing, of a reply that is no answer or of a question that was skipped: it makes
            no pair, and its response is neither good nor bad; None = every score says something.
        scores: Whether it gives a response a reward; None = if it has the method.
        compares: Whether it compares two responses itself, not by two scores; None = if it has the method.
    """

    fingerprint: str = ""
    price: float | None = None
    labels_per_answer: int = 1
    at_once: int | None = None
    runs_remotely: bool = False
    people: bool = False
    given_only: bool = False
    neutral: float | None = None
    scores: bool | None = None
    compares: bool | None = None

    def __post_init__(self) -> None:
        given: Any = self.fingerprint
        if type(given) is int:  # as Hydra reads one of digits alone
            object.__setattr__(self, "fingerprint", str(given))
        if not is_text(self.fingerprint):
            raise ValueError(
                f"the fingerprint of a labeler is a text, and {self.fingerprint!r} is none; on the command line type "
                "it in two kinds of quotes: \"labeler.fingerprint='...'\""
            )
        for name, least in (("labels_per_answer", 1), ("at_once", 1), ("price", 0)):
            value = getattr(self, name)
            kind, wanted = (int | float, "number") if name == "price" else (int, "whole number")
            if value is not None and not (isinstance(value, kind) and least <= value < math.inf):
                raise ValueError(f"the terms of a labeler have {name}={value!r}; wanted a {wanted}, {least} or more")


def is_number(value: Any) -> bool:
    """Whether a value is a number that may be a score or a cost.

    Example:
        >>> [is_number(value) for value in (1, -0.5, float("nan"), 10**400, "1")]
        [True, True, False, False, False]
    """
    return isinstance(value, Real) and abs(value) <= LARGEST  # type: ignore[operator]  # they are compared so


def is_name(value: object) -> bool:
    """Whether a value is a text that labels can be stored under."""
    return is_text(value) and value != ""


def is_text(value: object) -> bool:
    """Whether a value is a text that a file can hold."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def terms_of(labeler: Labeler) -> Terms:
    """The terms of a labeler, without None in `scores`, `compares` and `at_once`, and with its fingerprint."""
    terms: Terms = getattr(labeler, "terms", Terms())
    score = labeler.score if isinstance(labeler, Scores) else None
    compare = labeler.compare if isinstance(labeler, Compares) else None
    yields = all(inspect.isgeneratorfunction(method) for method in (score, compare) if method)
    return replace(
        terms,
        fingerprint=terms.fingerprint or (code_id(labeler) if is_own_labeler(labeler) else ""),
        scores=bool(score) if terms.scores is None else terms.scores,
        compares=bool(compare) if terms.compares is None else terms.compares,
        at_once=terms.at_once or (ALL if yields else LIST_AT_ONCE),
    )


def is_own_labeler(labeler: Labeler) -> bool:
    """Whether a labeler is of a class of the user's, and none of Choosy's."""
    return type(labeler).__module__.partition(".")[0] not in OURS


def fingerprint_of(labeler: Labeler, terms: Terms | None = None) -> str:
    """What else than its name the labeler's judgement depends on now, as a part of the ledger's key.

    Args:
        labeler: The labeler.
        terms: Its `terms_of` when it was built, since a class of the user's may count or keep things meanwhile; None =
            those of now.
    """
    fingerprint = (terms or terms_of(labeler)).fingerprint
    return content_id(fingerprint, labeler.state()) if isinstance(labeler, Changes) else fingerprint


# The files of `conf/labeler/`, which a test compares. `noisy` can do what the labeler inside it can.
SCORE = (
    *("contrastive", "dataset", "function", "reward_model", "thumbs_human", "thumbs_judge", "vader", "weighted"),
    *("relevance", "cheerful_answer"),
)
COMPARE = ("crowd", "human", "judge", "predictor", "queue")


def labelers_able_to(method: Literal["score", "compare"]) -> str:
    """The labelers of `conf/labeler/` that have this method, as they are typed, for error messages.

    `dataset` is left out: it judges no sampled response.
    """
    able = SCORE if method == "score" else COMPARE
    return ", ".join(f"labeler={name}" for name in able if name != "dataset")
