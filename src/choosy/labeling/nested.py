"""Buyers inside a labeler: what it buys to answer with, in the ledger as labels of their own, and who bears it."""

from __future__ import annotations

from collections.abc import Mapping

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Ledger
from choosy.models.policy import Policy


class NestedBuyers:
    """The buyers a labeler buys from, and how much of what they spent its own answers have not borne yet.

    Labels bought here are in the ledger under their own labelers' names, so that none is bought twice; they belong to
    a run of their own, `<run>#<name>`, and the run's budgets are charged by the answers that are made of them. The two
    sums are reconciled whenever an answer is given, so that they agree after an interruption as well.

    Args:
        buyers: By name.
    """

    def __init__(self, buyers: Mapping[str, LabelBuyer]) -> None:
        self.buyers = dict(buyers)
        self._borne = (0, 0.0)

    def open(self, ledger: Ledger, run: str, labeler: str) -> None:
        """Buy for this run of the labeler from now on."""
        for name, buyer in self.buyers.items():
            buyer.open(f"{run}#{name}")
        told = ledger.told(labeler, run=run)
        self._borne = (sum(one.judgements for one in told), sum(one.cost for one in told))

    def use_policy(self, policy: Policy) -> None:
        """Hand the policy on."""
        for buyer in self.buyers.values():
            buyer.use_policy(policy)

    def shares(self, answers: int) -> list[tuple[int, float]]:
        """What has been bought and not borne: labels and money, divided among so many answers.

        Each share counts as borne once `bear` is told of it.
        """
        labels = sum(buyer.spent for buyer in self.buyers.values()) - self._borne[0]
        money = sum(buyer.money for buyer in self.buyers.values()) - self._borne[1]
        each, more = divmod(max(labels, 0), answers)
        return [(each + (n < more), max(money, 0.0) / answers) for n in range(answers)]

    def bear(self, share: tuple[int, float]) -> None:
        """Note that an answer bears this share."""
        self._borne = (self._borne[0] + share[0], self._borne[1] + share[1])
