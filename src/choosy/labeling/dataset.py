"""A labeler that gives the scores that came with the data."""

from __future__ import annotations

from collections.abc import Sequence

from choosy.labeling.protocols import ALL, ItemFailed, Terms
from choosy.types import Prompt, Response


class Dataset:
    """Scores a response with the score of its data row; it has none for responses that the run samples.

    A given pair is one label of the budget, as a verdict is; of more responses to a prompt each score is one.

    Example:
        >>> Dataset().score([(Prompt("p", "2+2?"), Response("4", gold=1.0))])
        [1.0]
    """

    name = "dataset"
    terms = Terms(price=0.0, given_only=True, at_once=ALL)

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """What identifies a row's label: the same texts may have other scores in another row."""
        return " ".join([prompt.id, *sorted(f"{response.text}={response.gold}" for response in responses)])

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """The gold score of each response; an error if a response has none."""
        scores = []
        for at, (prompt, response) in enumerate(items):
            if response.gold is None:
                raise ItemFailed(
                    f"a response of prompt {prompt.id!r} has no score: sampled responses have no gold; "
                    "a run labels them with labeler=vader, labeler=function or labeler=reward_model",
                    at,
                )
            scores.append(response.gold)
        return scores
