"""Aggregate several workers' votes on a pair, weighted by each worker's past accuracy.

A worker's weight is the log-odds of being right, estimated from the worker's own record:

    weight = log((right + 2) / (wrong + 1)).

This is Bayes' rule for workers with independent errors under a Beta(2, 1) prior on each worker's accuracy. New workers
are a majority vote; later, experts count more, guessers count nothing, and the votes of a worker who is usually wrong
are reversed. docs/decisions/006-crowd-aggregation.md states the regret bound with its assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from choosy.types import Verdict

PRIOR_RIGHT, PRIOR_WRONG = 2.0, 1.0  # Beta(2, 1)

SIGN: Mapping[Verdict, int] = {"first": 1, "second": -1, "tie": 0, "invalid": 0}


@dataclass(frozen=True)
class WorkerRecord:
    """How often a worker was right or wrong; fractions where the truth is known only with a probability.

    Example:
        >>> WorkerRecord().weight, WorkerRecord(right=6).weight, WorkerRecord(wrong=7).weight
        (0.6931471805599453, 2.0794415416798357, -1.3862943611198906)
    """

    right: float = 0.0
    wrong: float = 0.0

    @property
    def weight(self) -> float:
        """Log-odds of being right; negative for a worker who is usually wrong."""
        return math.log((self.right + PRIOR_RIGHT) / (self.wrong + PRIOR_WRONG))


Records = Mapping[str, WorkerRecord]


def probability_first(votes: Mapping[str, Verdict], records: Records) -> float:
    """Return the probability that the first response is better, given votes and records by worker.

    Ties and invalid votes say nothing; a worker without a record is new.

    Example:
        >>> probability_first({"a": "first", "b": "first", "c": "second"}, {})
        0.6666666666666666
    """
    total = math.fsum(SIGN[vote] * records.get(worker, WorkerRecord()).weight for worker, vote in votes.items())
    return 1 / (1 + math.exp(-total)) if total > -700 else 0.0


def likelier_verdict(first: float, *, tolerance: float = 1e-9) -> Verdict:
    """Return the likelier verdict, given the probability of `first`; a tie if both are equally likely.

    Example:
        >>> [likelier_verdict(p) for p in (0.7, 0.5, 0.2)]
        ['first', 'tie', 'second']
    """
    return "tie" if abs(first - 0.5) <= tolerance else "first" if first > 0.5 else "second"


def update_from_expert(
    records: Records, votes: Mapping[str, Verdict], truth: Literal["first", "second"], *, memory: float = math.inf
) -> dict[str, WorkerRecord]:
    """Return the records after an expert's verdict on the pair.

    Args:
        records: By worker, before.
        votes: By worker.
        truth: The expert's verdict.
        memory: Number of updates after which an old one counts 1/e; infinity = nothing is forgotten.

    Example:
        >>> update_from_expert({}, {"a": "first", "b": "second", "c": "tie"}, "first")
        {'a': WorkerRecord(right=1.0, wrong=0.0), 'b': WorkerRecord(right=0.0, wrong=1.0)}
    """
    first = 1.0 if truth == "first" else 0.0
    return _updated(records, {worker: (vote, first) for worker, vote in votes.items()}, memory)


def update_from_peers(
    records: Records, votes: Mapping[str, Verdict], *, memory: float = math.inf
) -> dict[str, WorkerRecord]:
    """Return the records after a pair without an expert: each worker is compared with what the others make likely.

    A worker's own vote is left out, so that it cannot confirm itself.

    Example:
        >>> update_from_peers({}, {"a": "first", "b": "first"})["a"]
        WorkerRecord(right=0.6666666666666666, wrong=0.33333333333333337)
    """
    others = {
        worker: probability_first({peer: vote for peer, vote in votes.items() if peer != worker}, records)
        for worker in votes
    }
    return _updated(records, {worker: (vote, others[worker]) for worker, vote in votes.items()}, memory)


def _updated(records: Records, feedback: Mapping[str, tuple[Verdict, float]], memory: float) -> dict[str, WorkerRecord]:
    """Add one vote to each record, given the probability that the first response is better."""
    assert memory > 1
    decay = 1 - 1 / memory
    new = dict(records)
    for worker, (vote, first) in feedback.items():
        if SIGN[vote] == 0:
            continue
        old = records.get(worker, WorkerRecord())
        right = first if vote == "first" else 1 - first
        new[worker] = WorkerRecord(decay * old.right + right, decay * old.wrong + 1 - right)
    return new
