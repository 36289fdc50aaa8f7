"""Extract preferences from labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from choosy.labeling.ledger import Label
from choosy.types import Verdict


class Preference(NamedTuple):
    """A verdict on two responses, as texts."""

    prompt: str
    better: str
    worse: str


def preferences_in(prompt: str, first: str, second: str, verdict: Verdict) -> list[Preference]:
    """Return the preference in a verdict; a tie or an invalid verdict holds none.

    Example:
        >>> preferences_in("2+2?", "5", "4", "second")
        [Preference(prompt='2+2?', better='4', worse='5')]
    """
    if verdict not in ("first", "second"):
        return []
    return [Preference(prompt, first, second) if verdict == "first" else Preference(prompt, second, first)]


def earlier_preferences(labels: Sequence[Label], run: str) -> list[Preference]:
    """Return the preferences in labels, oldest first, from before a run bought its first.

    The scores of one prompt are paired: the best over the worst, the second best over the second worst.
    """
    runs = [label.run for label in labels]
    earlier = labels[: runs.index(run)] if run in runs else labels
    found: list[Preference] = []
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for label in earlier:
        if label.second is not None and label.verdict:
            found += preferences_in(label.prompt, label.first, label.second, label.verdict)
        elif label.score is not None:
            scores[label.prompt][label.first] = label.score
    for prompt, score_of in scores.items():
        texts = sorted(score_of, key=lambda text: (-score_of[text], text))
        pairs = zip(texts[: len(texts) // 2], reversed(texts), strict=False)
        found += [Preference(prompt, best, worst) for best, worst in pairs if score_of[best] > score_of[worst]]
    return found
