"""Add up the weighted rewards of several labelers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from choosy.labeling.nested import OuterLabeler
from choosy.labeling.protocols import Answer, Labeler, labelers_able_to
from choosy.types import Candidates, Prompt, Response, content_id


class Weighted(OuterLabeler):
    """Gives a response the weighted sum of the rewards that other labelers give it.

    Every part is asked about every response. Its labels are in the ledger under its own name, so that another weight
    buys nothing again. A part whose weight is 0 is asked and logged, and adds nothing.

    Args:
        parts: The labelers whose rewards are added up, by name; each must score.
        weights: Of the parts, by name; a part that has none weighs 1, as does every part if it is None.
    """

    def __init__(self, parts: dict[str, Labeler], *, weights: dict[str, float] | None = None) -> None:
        if not parts:
            raise ValueError(
                "a weighted labeler needs a part, and labeler.parts names none; type for instance "
                "+labeler@labeler.parts.cheerful=vader +labeler@labeler.parts.short=function "
                "labeler.parts.short.path=rewards.py:short +labeler.weights.short=0.1"
            )
        if unknown := sorted((weights or {}).keys() - parts.keys()):
            raise ValueError(f"labeler.weights.{unknown[0]} names no part; the parts are {', '.join(parts)}")
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in parts}
        if infinite := [name for name, weight in self.weights.items() if not math.isfinite(weight)]:
            raise ValueError(
                f"labeler.weights.{infinite[0]}={self.weights[infinite[0]]} is no weight; type a finite number"
            )
        if not any(self.weights.values()):
            raise ValueError(
                "labeler.weights are all 0, and so is every reward; type another weight for one part at least"
            )
        fingerprint = content_id(*(f"{name}={weight!r}" for name, weight in self.weights.items()))
        super().__init__(f"weighted:{'+'.join(parts)}", parts, fingerprint=fingerprint, scores=True)
        if compares := [name for name, terms in self._inner_terms.items() if not terms.scores]:
            raise ValueError(
                f"labeler.parts.{compares[0]} is {parts[compares[0]].name}, which only compares, and rewards are added "
                f"up; choose one that scores, such as {labelers_able_to('score')}"
            )
        self.terms = replace(self.terms, given_only=any(terms.given_only for terms in self._inner_terms.values()))

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:
        """Yield the reward of each item, in order; the labels of all parts are bought before the first of them."""
        alone = [Candidates(prompt, (response,)) for prompt, response in items]
        rewards_of = {name: [c.responses[0].reward for c in buyer.score(alone)] for name, buyer in self.buyers.items()}
        for at, (labels, money) in enumerate(self.charges(len(items))):
            parts = {name: rewards[at] for name, rewards in rewards_of.items()}
            total = sum(self.weights[name] * reward for name, reward in parts.items() if reward is not None)
            yield Answer(at, total, json.dumps(parts, ensure_ascii=False), money, judgements=labels)

    def parts_in(self, raw: str) -> Mapping[str, float]:
        """Read the reward of each part from what was written with a label."""
        parts: dict[str, float] = json.loads(raw)
        return parts
