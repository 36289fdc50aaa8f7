"""A labeler that is wrong on purpose: for experiments on what noise in the labels does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from choosy.labeling.asking import in_places
from choosy.labeling.protocols import Answer, Compares, Labeler, Scores
from choosy.types import MIRRORED, Prompt, Response, seed_of


class Noisy:
    """Asks another labeler and turns its judgement round with probability p.

    A verdict is turned by a coin of the question: prompt and both responses, in whatever order. Rewards are negated
    by a coin of the prompt, which turns the order of each pair of its responses, and keeps the gap. The coin is drawn
    from the contents and the seed alone, so that the same question is answered the same way always, in any run.

    Args:
        wrapped: The labeler that is asked.
        p: How likely a judgement is turned round; 0.5 leaves nothing of it.
        seed: Of the coins.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> asked = [(Prompt("p", "?"), Response("Wonderful!"))]
        >>> [answer.value for answer in Noisy(Vader(), p=1.0).score(asked)]
        [-0.6114]
    """

    at_once = None  # the other labeler is asked as many at once as it wants

    def __init__(self, wrapped: Labeler, *, p: float = 0.1, seed: int = 0) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"labeler.p={p} is no probability; choose 0 <= p <= 1")
        self.wrapped = wrapped
        self.p = p
        self.seed = seed
        self.name = f"{wrapped.name} with noise {p:g}, seed {seed}"
        self.fingerprint = str(getattr(wrapped, "fingerprint", ""))
        self.elsewhere = bool(getattr(wrapped, "elsewhere", False))
        self.judgements = int(getattr(wrapped, "judgements", 1))
        if (price := getattr(wrapped, "price", None)) is not None:
            self.price = float(price)
        for method, protocol in (("score", Scores), ("compare", Compares)):
            if not isinstance(wrapped, protocol):  # it can what the other labeler can, and no more
                setattr(self, method, None)  # by which isinstance finds that a protocol is not met

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Iterator[Answer]:
        assert isinstance(self.wrapped, Scores)
        for answer in in_places(self.wrapped, self.wrapped.score, items):
            prompt, _ = items[answer.at]
            turned = self._turns(prompt) and not isinstance(answer.value, str)
            yield answer._replace(value=-answer.value) if turned else answer  # type: ignore[operator]

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> Iterator[Answer]:
        assert isinstance(self.wrapped, Compares)
        for answer in in_places(self.wrapped, self.wrapped.compare, items):
            prompt, *responses = items[answer.at]
            turned = answer.value in MIRRORED and self._turns(prompt, *sorted(r.text for r in responses))
            yield answer._replace(value=MIRRORED[answer.value]) if turned else answer  # type: ignore[index]

    def _turns(self, prompt: Prompt, *texts: str) -> bool:
        said = [part for message in prompt.messages for part in (message.role, message.content)]
        coin = seed_of("noise", self.seed, prompt.text, len(said), *said, *texts)
        return coin < self.p * 2**63
