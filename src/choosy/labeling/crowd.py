"""Ask several labelers about each pair, weighting their votes by past accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.nested import OuterLabeler, audit_draw
from choosy.labeling.protocols import Answer, Labeler, ResponsePair
from choosy.methods.aggregation import (
    WorkerRecord,
    likelier_verdict,
    probability_first,
    update_from_expert,
    update_from_peers,
)
from choosy.terminal import logger
from choosy.types import Verdict, content_id

log = logger(__name__)

Votes = dict[str, Verdict]


class Crowd(OuterLabeler):
    """Asks every member about every pair, and weights each vote by the accuracy of the member's earlier votes.

    With an expert, a share of the pairs is put to the expert as well: there the expert's verdict counts, and the
    members' accuracy is measured against it. Without one it is measured against the other members. A tie, an invalid
    verdict and a member whose own budget is spent cast no vote; each vote that is bought takes a label of the budget.
    docs/decisions/006-crowd-aggregation.md has the formulas and a regret bound.

    Args:
        members: The labelers that vote, by name.
        expert: A trusted labeler; None asks none.
        budgets: The most labels to buy of some members, by name; a member that has reached it casts no vote.
        audit: Share of the pairs that the expert judges too; a hash of the pair decides which.
        memory: Number of measurements after which an old one counts 1/e, for members that change; None forgets nothing.
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
                f"a crowd needs two members or more, and labeler.members names {len(members)}; type for instance "
                "+labeler@labeler.members.one=vader +labeler@labeler.members.two=function"
            )
        if expert is not None and "expert" in members:
            raise ValueError("labeler.members.expert has the name of labeler.expert; give the member another one")
        if not 0 < audit <= 1:
            raise ValueError(f"labeler.audit={audit} is no share of the pairs; type a number above 0 and at most 1")
        if memory is not None and memory <= 1:
            raise ValueError(f"labeler.memory={memory} is too small; type more than 1, or null to forget nothing")
        if unknown := sorted((budgets or {}).keys() - members.keys() - ({"expert"} if expert else set())):
            raise ValueError(f"labeler.budgets.{unknown[0]} names no member; the members are {', '.join(members)}")
        self.members = members
        self.expert = expert
        self.audit = audit
        self.memory = math.inf if memory is None else memory
        self.records: dict[str, WorkerRecord] = {}
        fingerprint = content_id(str(audit if expert else 0), str(self.memory))
        inner = {**members, **({"expert": expert} if expert else {})}
        super().__init__(f"crowd:{'+'.join(members)}", inner, budgets, fingerprint=fingerprint)
        self._refuse_copies()

    def use_buyer(self, buyer: LabelBuyer) -> None:
        super().use_buyer(buyer)
        self.records = {}
        for label in self.earlier_answers():
            details = json.loads(label.raw)
            self._update(details["votes"], details["expert"])

    def compare(self, items: Sequence[ResponsePair]) -> Iterator[Answer]:
        """Yield a verdict on each item, in order; all votes are bought before the first verdict."""
        votes_of = {name: self.buyers[name].compare(items) for name in self.members}
        audited = self._audited(items)
        charges = self.charges(len(items))
        for at in range(len(items)):
            votes: Votes = {name: vote for name, all_votes in votes_of.items() if (vote := all_votes[at]) is not None}
            if not votes:
                raise ValueError(
                    f"no member of {self.name} has a budget left; raise labeler.budgets, or limit the run by "
                    "labels.budget instead"
                )
            yield self._answer(at, votes, audited.get(at), charges[at])
            self._update(votes, audited.get(at))
        log.info("%s: %s", self.name, weights_line(self.records))

    def _refuse_copies(self) -> None:
        """Refuse two members that the ledger cannot tell apart: the votes of one would be copies of the other's."""
        known: dict[tuple[str, object], str] = {}
        for name, one in self.members.items():
            first = known.setdefault((one.name, self._inner_terms[name].fingerprint), name)
            if first != name:
                raise ValueError(
                    f"labeler.members {first} and {name} are one labeler for the ledger, {one.name}, so that the votes "
                    f"of one would be copies of the other's; give {name} another name, seed or model"
                )

    def _audited(self, items: Sequence[ResponsePair]) -> dict[int, Verdict]:
        """Return the expert's verdicts on the audited items, by position."""
        if self.expert is None:
            return {}
        drawn = [at for at, item in enumerate(items) if audit_draw("audit", item) < self.audit]
        verdicts = self.buyers["expert"].compare([items[at] for at in drawn])
        return {at: verdict for at, verdict in zip(drawn, verdicts, strict=True) if verdict is not None}

    def _answer(self, at: int, votes: Votes, expert: Verdict | None, charge: tuple[int, float]) -> Answer:
        first = probability_first(votes, self.records)
        verdict = "invalid" if set(votes.values()) == {"invalid"} else likelier_verdict(first)
        raw = json.dumps({"votes": votes, "expert": expert, "first": round(first, 6)}, ensure_ascii=False)
        labels, money = charge
        return Answer(at, expert or verdict, raw, money, "expert" if expert else "", labels)

    def _update(self, votes: Mapping[str, Verdict], expert: Verdict | None) -> None:
        if self.expert is None:
            self.records = update_from_peers(self.records, votes, memory=self.memory)
        elif expert in ("first", "second"):
            self.records = update_from_expert(self.records, votes, expert, memory=self.memory)


def weights_line(records: Mapping[str, WorkerRecord]) -> str:
    """Write the weight of each member's vote, largest first."""
    largest_first = sorted(records.items(), key=lambda item: -item[1].weight)
    return ", ".join(f"{name} {r.weight:+.2f} (right {r.right:.1f}, wrong {r.wrong:.1f})" for name, r in largest_first)
