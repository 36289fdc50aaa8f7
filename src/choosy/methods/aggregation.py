"""Whom to believe when several judge: votes on one pair to a verdict, by weights learned from who was right.

A worker's weight is the log-odds of being right, estimated from the worker's own record alone:

    weight = log((right + 2) / (wrong + 1)).

It is the Bayes rule for workers who err independently, each with a belief of Beta(2, 1) in being right: at first a
majority vote; later experts count more, guessers nothing, and who is reliably wrong is turned round.
docs/decisions/006-crowd-aggregation.md has the regret bound, what it assumes, and why nobody gains by lying.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from choosy.types import Verdict

BELIEVED_RIGHT, BELIEVED_WRONG = 2.0, 1.0  # of a worker nobody knows yet: right twice as often as wrong

Vote = Literal["first", "second"]
SIGN: Mapping[Verdict, int] = {"first": 1, "second": -1, "tie": 0, "invalid": 0}


@dataclass(frozen=True)
class Record:
    """How often a worker was right and wrong, as far as anybody told; fractions where the truth was only likely.

    Example:
        >>> Record().weight, Record(right=6).weight, Record(wrong=7).weight
        (0.6931471805599453, 2.0794415416798357, -1.3862943611198906)
    """

    right: float = 0.0
    wrong: float = 0.0

    @property
    def ability(self) -> float:
        """The believed probability that the next vote is right."""
        believed = BELIEVED_RIGHT + BELIEVED_WRONG
        return (self.right + BELIEVED_RIGHT) / (self.right + self.wrong + believed)

    @property
    def weight(self) -> float:
        """What a vote counts: the log-odds of being right; negative for a worker who is mostly wrong."""
        return math.log((self.right + BELIEVED_RIGHT) / (self.wrong + BELIEVED_WRONG))


Records = Mapping[str, Record]


def probability_first(votes: Mapping[str, Verdict], records: Records) -> float:
    """How likely the first response is the better one, given everybody's votes; ties and invalid votes say nothing.

    Args:
        votes: By worker.
        records: By worker; one without a record is new.

    Example:
        >>> probability_first({"a": "first", "b": "first", "c": "second"}, {})
        0.6666666666666666
    """
    total = math.fsum(SIGN[vote] * records.get(worker, Record()).weight for worker, vote in votes.items())
    return 1 / (1 + math.exp(-total)) if total > -700 else 0.0


def verdict_of(first: float, *, doubt: float = 1e-9) -> Verdict:
    """The likelier of the two; a tie where both are equally likely.

    Example:
        >>> [verdict_of(p) for p in (0.7, 0.5, 0.2)]
        ['first', 'tie', 'second']
    """
    return "tie" if abs(first - 0.5) <= doubt else "first" if first > 0.5 else "second"


def learned(
    records: Records, votes: Mapping[str, Verdict], truth: Vote, *, memory: float = math.inf
) -> dict[str, Record]:
    """The records after somebody trusted said which response is better.

    Args:
        records: Before.
        votes: By worker.
        truth: What the trusted one said.
        memory: After about so many such answers an old one counts no more; infinite = never.

    Example:
        >>> learned({}, {"a": "first", "b": "second", "c": "tie"}, "first")
        {'a': Record(right=1.0, wrong=0.0), 'b': Record(right=0.0, wrong=1.0)}
    """
    first = 1.0 if truth == "first" else 0.0
    return _with_feedback(records, {worker: (vote, first) for worker, vote in votes.items()}, memory)


def learned_from_peers(
    records: Records, votes: Mapping[str, Verdict], *, memory: float = math.inf
) -> dict[str, Record]:
    """The records after nobody told the truth: each worker is measured by what all the others make likely.

    A worker's own vote has no part in that, so that nobody can vouch for oneself.

    Example:
        >>> learned_from_peers({}, {"a": "first", "b": "first"})["a"]
        Record(right=0.6666666666666666, wrong=0.33333333333333337)
    """
    others = {
        worker: probability_first({peer: vote for peer, vote in votes.items() if peer != worker}, records)
        for worker in votes
    }
    return _with_feedback(records, {worker: (vote, others[worker]) for worker, vote in votes.items()}, memory)


def _with_feedback(records: Records, told: Mapping[str, tuple[Verdict, float]], memory: float) -> dict[str, Record]:
    """Each voter's record with one more answer, given the vote and how likely the first response is the better one."""
    assert memory > 1
    kept = 1 - 1 / memory
    new = dict(records)
    for worker, (vote, first) in told.items():
        if SIGN[vote] == 0:
            continue
        old = records.get(worker, Record())
        right = first if vote == "first" else 1 - first
        new[worker] = Record(kept * old.right + right, kept * old.wrong + 1 - right)
    return new


def regret_bound(questions: int, workers: int, audited: float = 1.0) -> float:
    """The most wrong verdicts, in expectation, above those of the best rule that knows every worker's ability.

    Args:
        questions: T, how many were put to the workers.
        workers: N.
        audited: The share of them on which somebody trusted told the truth.

    Example:
        >>> round(regret_bound(1000, 5), 1)
        371.7
    """
    return 2 * math.sqrt(workers * questions * math.log(questions + 1) / audited)
