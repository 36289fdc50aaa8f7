"""Several labelers judge each pair, and who was right before counts more."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence

from choosy.labeling.nested import NestedLabelers
from choosy.labeling.protocols import Answer, BuyerOf, Labeler, LabelHistory
from choosy.methods.aggregation import (
    WorkerRecord,
    likelier_verdict,
    probability_first,
    update_from_expert,
    update_from_peers,
)
from choosy.models.policy import Policy
from choosy.types import Prompt, Response, Verdict, content_id, seed_of

log = logging.getLogger(__name__)

Votes = dict[str, Verdict]


class Crowd:
    """Asks every member about every pair and weighs the votes by what each member's earlier votes were worth.

    With an expert, a share of the pairs is put to the expert as well: that verdict stands, and the members are measured
    by it. Without one they are measured by each other. A tie, an invalid verdict and a member whose own budget is
    spent are no vote. The formulas and their bound: docs/decisions/006-crowd-aggregation.md.

    Votes are labels of the members, never bought twice; what the members have learned to be worth is read from the
    ledger, so that a resumed run goes on where it was. Each vote that is bought takes a label of the budget.

    Args:
        members: The members, by name.
        expert: Somebody who is trusted; None = nobody.
        budgets: The most labels that some members may give, by name; a member that has given them has no vote.
        audit: Share of the pairs that the expert judges too; drawn by content, the same in every run.
        memory: After about so many measurements an old one counts no more, for members who change; None = never.

    Raises:
        ValueError: There are fewer than two members, a budget is nobody's, or a number is out of range.
    """

    def __init__(
        self,
        members: dict[str, Labeler],
        *,
        expert: Labeler | None = None,
        budgets: dict[str, int] | None = None,
        audit: float = 0.1,
        memory: float | None = None,
    ) -> None:
        if len(members) < 2:
            raise ValueError(
                f"a crowd has two members or more, and labeler.members names {len(members)}; type for instance "
                "+labeler@labeler.members.one=vader +labeler@labeler.members.two=function"
            )
        if expert is not None and "expert" in members:
            raise ValueError("labeler.members.expert has the name of the expert; give that member another name")
        if not 0 < audit <= 1:
            raise ValueError(f"labeler.audit={audit} is no share of the pairs; type a number above 0, at most 1")
        if memory is not None and memory <= 1:
            raise ValueError(f"labeler.memory={memory} remembers nothing; type more than 1, or null for all")
        if unknown := sorted((budgets or {}).keys() - members.keys() - ({"expert"} if expert else set())):
            raise ValueError(f"labeler.budgets.{unknown[0]} is the budget of no member; members: {', '.join(members)}")
        self.name = f"crowd:{'+'.join(members)}"
        self.members = members
        self.expert = expert
        self.audit = audit
        self.memory = math.inf if memory is None else memory
        self.records: dict[str, WorkerRecord] = {}
        self._nested = NestedLabelers({**members, **({"expert": expert} if expert else {})}, budgets)
        self._history: LabelHistory | None = None
        self._run = ""

    @property
    def judgements(self) -> int:
        """How many labels an answer takes at most: one of each member, and the expert's."""
        return self._nested.labels_per_comparison

    @property
    def price(self) -> float | None:
        """What an answer costs at most; None if a member does not say."""
        return self._nested.price_of_comparison

    @property
    def fingerprint(self) -> str:
        """Who the members are, and how they are measured."""
        return content_id(*self._nested.fingerprint, str(self.audit if self.expert else 0), str(self.memory))

    def use_policy(self, policy: Policy) -> None:
        self._nested.use_policy(policy)

    def use_buyers(self, buyer_of: BuyerOf) -> None:
        self._nested.use_buyers(buyer_of)

    def recall(self, history: LabelHistory, run: str) -> None:
        self._history, self._run = history, run
        self.records = {}
        for label in history.labels_of(self.name, run=run):
            said = json.loads(label.raw)
            self._learn(said["votes"], said["expert"])

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        """A verdict on each item, in their order; all votes are bought before the first is given."""
        assert self._history is not None, "a crowd is asked through a buyer that is open"
        said = {name: self._nested.compare(name, items) for name in self.members}
        trusted = self._audited(items)
        charges = self._nested.charges(self._history, self.name, self._run, len(items))
        for at in range(len(items)):
            votes: Votes = {name: vote for name, of in said.items() if (vote := of[at]) is not None}
            if not votes:
                raise ValueError(
                    f"no member of {self.name} has a budget left; raise labeler.budgets, or let labels.budget "
                    "say when the run stops buying"
                )
            yield self._answer(at, votes, trusted.get(at), charges[at])
            self._learn(votes, trusted.get(at))
        log.info("%s: %s", self.name, worth(self.records))

    def _audited(self, items: Sequence[tuple[Prompt, Response, Response]]) -> dict[int, Verdict]:
        """The expert's verdicts by place."""
        if self.expert is None:
            return {}
        drawn = [at for at, item in enumerate(items) if _draw(*item) < self.audit]
        verdicts = self._nested.compare("expert", [items[at] for at in drawn])
        return {at: verdict for at, verdict in zip(drawn, verdicts, strict=True) if verdict is not None}

    def _answer(self, at: int, votes: Votes, trusted: Verdict | None, charge: tuple[int, float]) -> Answer:
        first = probability_first(votes, self.records)
        verdict = "invalid" if set(votes.values()) == {"invalid"} else likelier_verdict(first)
        raw = json.dumps({"votes": votes, "expert": trusted, "first": round(first, 6)}, ensure_ascii=False)
        return Answer(at, trusted or verdict, raw, charge[1], "expert" if trusted else "", charge[0])

    def _learn(self, votes: Mapping[str, Verdict], trusted: Verdict | None) -> None:
        if self.expert is None:
            self.records = update_from_peers(self.records, votes, memory=self.memory)
        elif trusted in ("first", "second"):
            self.records = update_from_expert(self.records, votes, trusted, memory=self.memory)


def _draw(prompt: Prompt, *responses: Response) -> float:
    """A number in [0, 1) that depends on what is judged, not on the order in which it is shown."""
    return seed_of("audit", prompt.text, *sorted(response.text for response in responses)) / 2**63


def worth(records: Mapping[str, WorkerRecord]) -> str:
    """What the members' votes count, the best first.

    Example:
        >>> worth({"guesser": WorkerRecord(4, 5), "expert": WorkerRecord(10, 0)})
        'expert +2.48 (right 10.0, wrong 0.0), guesser +0.00 (right 4.0, wrong 5.0)'
    """
    best_first = sorted(records.items(), key=lambda item: -item[1].weight)
    return ", ".join(f"{name} {r.weight:+.2f} (right {r.right:.1f}, wrong {r.wrong:.1f})" for name, r in best_first)
