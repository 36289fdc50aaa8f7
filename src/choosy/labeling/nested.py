"""The base of labelers that buy labels of other labelers, so that their own answers bear the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Label
from choosy.labeling.protocols import (
    ChecksPrompts,
    Labeler,
    NeedsPolicy,
    ReadsColumns,
    ResponsePair,
    Stamps,
    Terms,
    fingerprint_of,
    terms_of,
)
from choosy.models.policy import Policy
from choosy.types import Prompt, Response, content_id, seed_of


class OuterLabeler:
    """Makes its answers of the labels of inner labelers.

    These labels are in the ledger under the inner labelers' names and in runs of their own (see `LabelBuyer.nested`).
    The outer labeler's answers charge them to the run, by what the ledger says, so that a resumed run is charged right.

    Args:
        name: Under which the ledger stores its own labels.
        inner: The inner labelers, by the name they have here.
        budgets: The most labels that may be bought of some of them; the others have no limit of their own.
        fingerprint: What else than the inner labelers its judgement depends on.
        scores: Whether its answers are about one response, and not about two.
    """

    def __init__(
        self,
        name: str,
        inner: Mapping[str, Labeler],
        budgets: Mapping[str, int] | None = None,
        *,
        fingerprint: str,
        scores: bool = False,
    ) -> None:
        self.name = name
        self._inner = dict(inner)
        self._budgets = dict(budgets or {})
        # what one answer takes at most: a score, or about a pair a verdict or two scores, of each inner labeler
        self._inner_terms = {name: terms_of(one) for name, one in inner.items()}
        takes = [(terms, 1 if scores or terms.compares else 2) for terms in self._inner_terms.values()]
        prices = [terms.price * answers for terms, answers in takes if terms.price is not None]
        self.terms = Terms(
            fingerprint=fingerprint,
            price=sum(prices) if len(prices) == len(takes) else None,
            labels_per_answer=sum(terms.labels_per_answer * answers for terms, answers in takes),
            people=any(terms.people for terms in self._inner_terms.values()),
        )

    def state(self) -> str:
        """Return what identifies the inner labelers as they are now."""
        return content_id(
            *(part for name, one in self._inner.items() for part in (name, one.name, self._fingerprint(name)))
        )

    def _fingerprint(self, name: str) -> str:
        """Return the fingerprint of an inner labeler's labels."""
        return fingerprint_of(self._inner[name], self._inner_terms[name])

    @property
    def inside(self) -> list[Labeler]:
        """The inner labelers."""
        return [*self._inner.values()]

    def use_policy(self, policy: Policy) -> None:
        """Pass the policy to those that judge with it."""
        for labeler in self._inner.values():
            if isinstance(labeler, NeedsPolicy):
                labeler.use_policy(policy)

    def reads(self, column: str) -> bool:
        """Whether an inner labeler reads this column of the data."""
        return any(isinstance(labeler, ReadsColumns) and labeler.reads(column) for labeler in self._inner.values())

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that an inner labeler could not judge answers to."""
        for labeler in self._inner.values():
            if isinstance(labeler, ChecksPrompts):
                labeler.check_prompts(prompts)

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """What else than the texts the judgement of an inner labeler depends on."""
        stamping = [labeler for labeler in self._inner.values() if isinstance(labeler, Stamps)]
        stamps = [labeler.stamp(prompt, responses) for labeler in stamping]
        return content_id(*stamps) if any(stamps) else ""

    def use_buyer(self, buyer: LabelBuyer) -> None:
        """Buy labels of the inner labelers for this buyer's run from now on."""
        self.buyer = buyer
        self.buyers = {name: buyer.nested(name, one, self._budgets.get(name)) for name, one in self._inner.items()}

    def earlier_answers(self) -> list[Label]:
        """Its answers that this run has bought so far, the earliest first."""
        return self.buyer.ledger.labels_of(self.name, run=self.buyer.run)

    def charges(self, answers: int) -> list[tuple[int, float]]:
        """Divide the labels and money spent here, which no earlier answer was charged, among so many next answers."""
        charged = self.earlier_answers()
        labels = sum(buyer.spent for buyer in self.buyers.values()) - sum(one.judgements for one in charged)
        money = sum(buyer.counts.money for buyer in self.buyers.values()) - sum(one.cost for one in charged)
        each, more = divmod(max(labels, 0), answers)
        return [(each + (n < more), max(money, 0.0) / answers) for n in range(answers)]


def audit_draw(purpose: str, item: ResponsePair) -> float:
    """Hash a purpose and a pair, in either order of its responses, to a number in [0, 1)."""
    prompt, *responses = item
    return seed_of(purpose, prompt.text, *sorted(response.text for response in responses)) / 2**63
