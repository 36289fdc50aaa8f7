"""VADER, a lexicon that scores how positive a text sounds: free, instant, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from choosy.labeling.protocols import Terms
from choosy.types import Prompt, Response


class Vader:
    """Scores a response by its sentiment, from -1 (negative) to 1 (positive); the prompt is not read.

    Example:
        >>> hello = Prompt("p", "How was it?")
        >>> good, bad = Vader().score([(hello, Response("A wonderful film!")), (hello, Response("Awful."))])
        >>> good > 0 > bad
        True
    """

    terms: ClassVar[Terms] = Terms(price=0.0)

    def __init__(self) -> None:
        self.name = f"vader-{version('vaderSentiment')}"
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """VADER's compound score of each response."""
        return [float(self._analyzer.polarity_scores(response.text)["compound"]) for _, response in items]
