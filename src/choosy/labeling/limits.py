"""The limits of a run's purchases: budgets, which end the buying, or too many invalid verdicts, which stop the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from choosy.errors import Stopped
from choosy.labeling.ledger import Counts, Question
from choosy.labeling.protocols import Answer, Terms
from choosy.labeling.statistics import as_money
from choosy.redaction import scrub

MAX_INVALID = 0.2  # the share of invalid verdicts that a machine may give, unless the run says otherwise
ENOUGH = 20  # answers, before the share of invalid or free ones says anything


@dataclass(frozen=True)
class Budget:
    """The most labels that a run may buy to train on, and the most money for all labels; None = no limit."""

    labels: int | None
    money: float | None  # in the labeler's currency
    labeler: str
    terms: Terms

    def __post_init__(self) -> None:
        least = self.terms.labels_per_answer
        if self.labels is not None and self.labels < least:
            raise ValueError(f"labels.budget={self.labels} buys nothing; type {least} or more, or null for no limit")
        if self.money is not None and not 0 < self.money < math.inf:
            raise ValueError(f"labels.budget_money={self.money} buys nothing; type an amount, or null for no limit")

    def __str__(self) -> str:
        limits = {"labels.budget": self.labels, "labels.budget_money": self.money}
        return " or ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)

    def limits_nothing(self) -> str:
        """Say that the labels cost nothing."""
        return (
            f"labels.budget_money={self.money} limits nothing: the labels of {self.labeler} cost nothing. Type "
            "labels.budget_money=null, or their price: labeler.price=... for a function, and for a judge "
            "labeler.endpoint.prices.prompt=... labeler.endpoint.prices.completion=..."
        )

    @property
    def price_unknown(self) -> bool:
        """Whether there is a budget of money, and only answers that are bought show what the next one may cost."""
        return self.money is not None and self.terms.price is None

    def may_be_free(self, answers: int, *, inner: bool) -> bool:
        """Whether it says little that so many answers cost nothing: one that failed does, or one of reused labels."""
        return self.price_unknown and (inner or answers < ENOUGH)

    def expected(self, highest: float | None) -> float | None:
        """What an answer is expected to cost: the price, or the most expensive one so far (`highest`) if that is more.

        None if there is no price, before the first answer.
        """
        return max((float(cost) for cost in (self.terms.price, highest) if cost is not None), default=None)

    def answers_left(self, bought: Counts, highest: float | None, *, kept: float = 0.0, free: bool) -> float:
        """How many answers the budgets still pay; infinite if there is no limit.

        Args:
            bought: What the run has bought, to train and to evaluate.
            highest: What the most expensive answer has cost so far; None before the first.
            kept: Money that is kept for later labels.
            free: Whether answers may cost nothing; if not, a budget of money that limits nothing is an error.
        """
        left = math.inf if self.labels is None else max(0, self.labels - bought.spent) // self.terms.labels_per_answer
        expected = self.expected(highest)
        if self.money is None or expected is None or (free and expected <= 0):
            return left
        if expected <= 0:
            raise ValueError(self.limits_nothing())
        affordable = (self.money - bought.money - bought.money_evaluation - kept) / expected
        return min(left, max(0, math.floor(affordable + 1e-9)))  # 0.3 / 0.1 is 2.9999999999999996 to a float


@dataclass(frozen=True)
class EvaluationPlan:
    """What judging held-out answers will cost a run.

    Attributes:
        labeler: Who judges.
        judgements: The most judgements of the whole run.
        price: What one costs; None = not known beforehand.
        estimate: What one may cost, if the price is not known.
    """

    labeler: str
    judgements: int
    price: float | None
    estimate: float | None = None

    def kept(self, bought: int, highest: float | None) -> float:
        """Money for the judgements after the first ones, of which the most expensive has cost `highest`."""
        known = [cost for cost in (self.price, highest) if cost is not None]
        return max(0, self.judgements - bought) * max(known, default=self.estimate or 0.0)

    def announced(self, money: float | None) -> str | None:
        """Say what the judgements will cost; None if they cost nothing, a ValueError if more than all the money."""
        what = f"Held-out answers are judged up to {self.judgements} times by {self.labeler}"
        each = self.estimate if self.price is None else self.price
        if each is None:
            unknown = "what that costs is known after the first one, and labels.budget_money includes it."
            return None if money is None else f"{what}; {unknown}"
        cost = each * self.judgements
        if money is not None and cost > money * (1 + 1e-9):
            about = "about " if self.price is None else ""
            raise ValueError(
                f"{what}, for {about}{as_money(cost)}, and labels.budget_money={money} pays for these too. "
                "Type a larger one, data.heldout_limit=..., callbacks.win_rate.every=..., or labels.evaluation=none"
            )
        keeps = "" if money is None else f", which labels.budget_money={money} keeps for them"
        return f"{what}, for about {as_money(cost)}{keeps}." if cost else None


def affordable_groups(
    groups: Iterable[Sequence[Question]],
    free: Set[str],
    left: float,
    at_once: float = math.inf,
    *,
    pair_is_one: bool = False,
) -> list[Sequence[Question] | None]:
    """Each group of questions if the budgets pay all of its labels, in the order given; else None.

    Args:
        groups: Questions that are bought together or not at all.
        free: Keys of labels that cost nothing.
        left: How many answers the budgets still pay.
        at_once: Once so many answers are paid for, only groups that are free are served.
        pair_is_one: Whether the scores of two responses are one answer if they are bought together.
    """
    paid: set[str] = set()
    spent = 0
    served: list[Sequence[Question] | None] = []
    for group in groups:
        new = {question.key for question in group} - free - paid
        if pair_is_one and len(group) == len(new) == 2:
            group = [group[0], replace(group[1], answers=0)]
            cost = 1
        else:
            cost = len(new)
        fits = cost <= left - spent and (not new or spent < at_once)
        served.append(group if fits else None)
        paid |= new if fits else set()
        spent += cost if fits else 0
    return served


class InvalidVerdicts:
    """Counts a labeler's verdicts, and stops the run if too many are invalid: each costs as much as a useful one."""

    def __init__(self, labeler: str, limit: float | None, *, neutral: float | None = None) -> None:
        self.labeler = labeler
        self.limit = limit  # the largest share; None = no limit
        self.neutral = neutral  # a score that is as invalid; with None, scores are not counted
        self._counts: Counter[str] = Counter()
        self._examples: list[str] = []

    def add(self, bought: Sequence[tuple[Question, Answer]]) -> None:
        """Count verdicts that are in the ledger; if too many are invalid, raise an error that quotes the labeler."""
        words = [(self._word(answer), answer) for question, answer in bought if self._counted(question)]
        self._counts.update(word for word, _ in words)
        examples = [answer.raw or "nothing" for word, answer in words if word == "invalid"]
        self._examples = [*self._examples, *examples][-3:]
        invalid, total = self._counts["invalid"], self._counts.total()
        if self.limit is None or total < ENOUGH or invalid <= self.limit * total:
            return
        quoted = "\n  ".join(repr(scrub(said)[:200]) for said in self._examples)
        raise Stopped(
            f"{invalid} of the {total} verdicts of labeler {self.labeler} are invalid, and "
            f"labels.max_invalid={self.limit} allows a share of no more. It said, for instance:\n  {quoted}\n"
            "All labels are in the ledger. Mend the labeler, or type a larger labels.max_invalid, and resume the run"
        )

    def remove(self, answer: Answer) -> None:
        """Uncount a verdict that was taken back."""
        self._counts[self._word(answer)] -= 1

    def _counted(self, question: Question) -> bool:
        return len(question.responses) == 2 or self.neutral is not None

    def _word(self, answer: Answer) -> str:
        return "invalid" if self.neutral is not None and answer.value == self.neutral else str(answer.value)
