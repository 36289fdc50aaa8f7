"""Which labelers of `conf/labeler/` score and which compare, for error messages."""

from __future__ import annotations

from typing import Literal

# A test compares them with the classes that the files name. `noisy` can do what the labeler inside it can.
SCORE = ("contrastive", "dataset", "function", "reward_model", "vader")
COMPARE = ("crowd", "human", "judge", "predictor", "queue")


def labelers_able_to(method: Literal["score", "compare"]) -> str:
    """The labelers of the menu that have this method, as they are typed.

    Example:
        >>> labelers_able_to("score")
        'labeler=contrastive, labeler=dataset, labeler=function, labeler=reward_model, labeler=vader'
    """
    return ", ".join(f"labeler={name}" for name in (SCORE if method == "score" else COMPARE))
