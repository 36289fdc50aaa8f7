"""The key phrases of a text by RAKE, and the text without some of them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
STOP_WORDS = frozenset(
    re.findall(
        r"\S+",
        """
    a about above after again all also am an and any are as at be because been before being below between both but
    by can can't could did do does doing don't down during each few for from further had has have having he her here
    hers him his how i i'm if in into is it it's its itself just me more most my no nor not now of off on once only
    or other our ours out over own same she should so some such than that the their theirs them then there these
    they this those through to too under until up us very was we were what when where which while who whom why will
    with would you your yours
    """,
    )
)


class Phrase(NamedTuple):
    """Words between stop words or marks, and where they stand in the text."""

    words: tuple[str, ...]
    start: int
    end: int


def phrases(text: str) -> list[Phrase]:
    """The candidates of RAKE: longest runs of words with nothing but spaces between them and no stop word among them.

    Example:
        >>> [" ".join(phrase.words) for phrase in phrases("The red fox jumps over a dog, lazy dogs sleep.")]
        ['red fox jumps', 'dog', 'lazy dogs sleep']
    """
    found: list[Phrase] = []
    for match in WORD.finditer(text):
        word = match[0].lower()
        if word in STOP_WORDS:
            continue
        if found and text[found[-1].end : match.start()].strip(" ") == "" and found[-1].end < match.start():
            found[-1] = Phrase((*found[-1].words, word), found[-1].start, match.end())
        else:
            found.append(Phrase((word,), match.start(), match.end()))
    return found


def ranked_phrases(candidates: list[Phrase]) -> list[tuple[str, ...]]:
    """Different phrases, the most important first, by RAKE's score (Rose et al. 2010).

    It sums degree / frequency of a phrase's words; a word's degree is how many words the phrases with it have. Of equal
    scores the first in the text leads.

    Example:
        >>> ranked_phrases(phrases("A fox. The red fox jumps. Dogs sleep."))
        [('red', 'fox', 'jumps'), ('dogs', 'sleep'), ('fox',)]
    """
    frequency: Counter[str] = Counter()
    degree: dict[str, int] = defaultdict(int)
    for phrase in candidates:
        for word in phrase.words:
            frequency[word] += 1
            degree[word] += len(phrase.words)
    different = dict.fromkeys(phrase.words for phrase in candidates)
    return sorted(different, key=lambda words: -sum(degree[word] / frequency[word] for word in words))


def without_keywords(text: str, share: float) -> str:
    """The text without this share of its key phrases, the most important ones first; rounded down.

    Example:
        >>> [without_keywords("The red fox jumps. Dogs sleep.", share) for share in (0, 0.5, 1)]
        ['The red fox jumps. Dogs sleep.', 'The . Dogs sleep.', 'The . .']
    """
    candidates = phrases(text)
    ranked = ranked_phrases(candidates)
    removed = set(ranked[: math.floor(share * len(ranked) + 1e-9)])
    for phrase in reversed(candidates):
        if phrase.words in removed:
            text = text[: phrase.start] + text[phrase.end :]
    return re.sub(r"(?<=[^\s]) {2,}", " ", text).strip() if removed else text
