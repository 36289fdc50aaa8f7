"""Labelers inside a labeler: it buys their labels through the same ledger, and its own answers bear the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from choosy.labeling.protocols import BuyerOf, Buys, Labeler, LabelHistory, LabelRecord, NeedsPolicy, ResponsePair
from choosy.labeling.terms import fingerprint_of, terms_of
from choosy.models.policy import Policy
from choosy.types import Verdict, content_id, seed_of


class NestedLabelers:
    """The labelers that another one buys labels from.

    Their labels are in the ledger under their own names, so that none is bought twice. They belong to a run of their
    own, `<run>#<labeler>#<name>`: the budgets of the run are charged by the answers that are made of them. What an
    answer is charged is computed from the ledger, so that it is right after an interruption as well.

    Args:
        labelers: By the name they have here.
        budgets: The most labels that may be bought of some of them; the others have no limit of their own.
    """

    def __init__(self, labelers: Mapping[str, Labeler], budgets: Mapping[str, int] | None = None) -> None:
        self.labelers = dict(labelers)
        self.budgets = dict(budgets or {})
        self._buyers: dict[str, Buys] = {}
        self._earlier_answers: Callable[[], list[LabelRecord]] = list

    @property
    def labels_per_comparison(self) -> int:
        """How many labels it takes at most to have one pair compared by all of them."""
        return sum(terms_of(labeler).labels_per_comparison for labeler in self.labelers.values())

    @property
    def price_of_comparison(self) -> float | None:
        """What it costs at most to have one pair compared by all of them; None if one of them does not say."""
        prices = [terms_of(labeler).price_of_comparison for labeler in self.labelers.values()]
        return None if None in prices else sum(price for price in prices if price is not None)

    def state(self) -> str:
        """Return what identifies the labelers as they are now."""
        return content_id(
            *(part for name, labeler in self.labelers.items() for part in (name, labeler.name, fingerprint_of(labeler)))
        )

    def use_policy(self, policy: Policy) -> None:
        """Pass the policy to those that judge with it."""
        for labeler in self.labelers.values():
            if isinstance(labeler, NeedsPolicy):
                labeler.use_policy(policy)

    def use_buyers(self, buyer_of: BuyerOf) -> None:
        """Buy through these buyers from now on."""
        self._buyers = {
            name: buyer_of(name, labeler, budget=self.budgets.get(name)) for name, labeler in self.labelers.items()
        }

    def recall(self, history: LabelHistory, labeler: str, run: str) -> None:
        """Charge what is bought here to the answers that a labeler gives to a run."""
        self._earlier_answers = lambda: history.labels_of(labeler, run=run)

    def compare(self, name: str, pairs: Sequence[ResponsePair]) -> list[Verdict | None]:
        """The verdict of one of them on each pair; None where its own budget cannot pay one."""
        return self._buyers[name].compare(pairs)

    def charges(self, answers: int) -> list[tuple[int, float]]:
        """Divide the labels and money spent here, which no earlier answer was charged, among so many next answers."""
        charged = self._earlier_answers()
        labels = sum(buyer.spent for buyer in self._buyers.values()) - sum(one.judgements for one in charged)
        money = sum(buyer.money for buyer in self._buyers.values()) - sum(one.cost for one in charged)
        each, more = divmod(max(labels, 0), answers)
        return [(each + (n < more), max(money, 0.0) / answers) for n in range(answers)]


def nested_run(run: str, labeler: str, name: str) -> str:
    """The run to which labels belong that a labeler buys of another one.

    Example:
        >>> nested_run("run", "predictor:judge", "paid")
        'run#predictor:judge#paid'
    """
    return f"{run}#{labeler}#{name}"


def audit_draw(purpose: str, item: ResponsePair) -> float:
    """Hash a purpose and a pair, in either order of its responses, to a number in [0, 1)."""
    prompt, *responses = item
    return seed_of(purpose, prompt.text, *sorted(response.text for response in responses)) / 2**63
