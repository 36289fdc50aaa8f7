"""A labeler that is wrong on purpose, for experiments with noisy labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import count

from choosy.labeling.asking import as_answer
from choosy.labeling.buyer import BuysLabels
from choosy.labeling.protocols import (
    Answer,
    ChecksPrompts,
    Compares,
    Labeler,
    NeedsPolicy,
    ReadsColumns,
    Scores,
    Stamps,
    SumsParts,
    fingerprint_of,
    terms_of,
)
from choosy.labeling.queue import Queue
from choosy.models.policy import Policy
from choosy.types import MIRRORED, Prompt, Response, seed_of


@dataclass(eq=False)
class Noisy:
    """Asks another labeler and reverses its judgement with probability p.

    Whether a verdict is reversed depends on the seed and the texts, not on their order. Whether rewards are negated
    depends on the seed and the prompt alone, so that all pairs of its responses are reversed and the gaps stay.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> items = [(Prompt("p", "?"), Response("Wonderful!"))]
        >>> [answer.value for answer in Noisy(Vader(), p=1.0).score(items)]
        [-0.6114]
    """

    wrapped: Labeler  # the labeler that is asked
    _: KW_ONLY
    p: float = 0.1  # probability that a judgement is reversed; at 0.5 the labels say nothing
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"labeler.p={self.p} is no probability; choose 0 <= p <= 1")
        if isinstance(self.wrapped, BuysLabels):
            raise ValueError(
                f"labeler.wrapped is {self.wrapped.name}, which learns from its own labels, and labeler=noisy gives "
                "labels of another name; make the labelers inside it noisy, for instance labeler@labeler.paid=noisy"
            )
        if isinstance(self.wrapped, Queue):
            raise ValueError(
                "labeler.wrapped is queue, whose verdicts are imported under its own name, and labeler=noisy gives "
                "labels of another one; import noisy verdicts, or wrap a labeler that answers at once"
            )
        self.name = f"{self.wrapped.name} with noise {self.p:g}, seed {self.seed}"
        self.terms = terms_of(self.wrapped)

    def state(self) -> str:
        return fingerprint_of(self.wrapped, self.terms)

    @property
    def inside(self) -> list[Labeler]:
        """The labeler whose judgements are reversed."""
        return [self.wrapped]

    def use_policy(self, policy: Policy) -> None:
        if isinstance(self.wrapped, NeedsPolicy):
            self.wrapped.use_policy(policy)

    def reads(self, column: str) -> bool:
        """Whether the labeler inside it reads this column of the data."""
        return isinstance(self.wrapped, ReadsColumns) and self.wrapped.reads(column)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that the labeler inside it could not judge answers to."""
        if isinstance(self.wrapped, ChecksPrompts):
            self.wrapped.check_prompts(prompts)

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        return self.wrapped.stamp(prompt, responses) if isinstance(self.wrapped, Stamps) else ""

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:
        """The other labeler's rewards, some of them negated."""
        assert isinstance(self.wrapped, Scores)
        for answer in map(as_answer, count(), self.wrapped.score(items)):
            prompt, _ = items[answer.at]
            reverse = self._reverses(prompt) and not isinstance(answer.value, str)
            raw = f"-{answer.raw}" if answer.raw and isinstance(self.wrapped, SumsParts) else answer.raw
            yield answer._replace(value=-answer.value, raw=raw) if reverse else answer  # type: ignore[operator]  # a number

    def parts_in(self, raw: str) -> Mapping[str, float]:
        """Read the parts of the other labeler's reward, negated where the reward is."""
        if not isinstance(self.wrapped, SumsParts):
            return {}
        if raw.startswith("-"):
            return {name: -value for name, value in self.wrapped.parts_in(raw[1:]).items()}
        return self.wrapped.parts_in(raw)

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        """The other labeler's verdicts, some of them reversed."""
        assert isinstance(self.wrapped, Compares)
        for answer in map(as_answer, count(), self.wrapped.compare(items)):
            prompt, *responses = items[answer.at]
            reverse = answer.value in MIRRORED and self._reverses(prompt, *sorted(r.text for r in responses))
            yield answer._replace(value=MIRRORED[answer.value]) if reverse else answer  # type: ignore[index]  # a verdict

    def _reverses(self, prompt: Prompt, *texts: str) -> bool:
        turns = [part for message in prompt.messages for part in (message.role, message.content)]
        draw = seed_of("noise", self.seed, prompt.text, len(turns), *turns, *texts)
        return draw < self.p * 2**63
