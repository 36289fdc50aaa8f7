"""What labels say about who gave them: ties, invalid ones, a liking for a place, agreement with the policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from choosy.types import Response, Verdict

COUNTED = ("decided", "ties", "invalid", "shown", "first_shown", "comparable", "agreed")

CLEAR = 1.0  # nats; the weights that sample are merged, and tell log-probs that are up to one off (docs/log.md)


def count(judged: Sequence[tuple[Response, Response, Verdict | None]], *, shown: bool) -> Counter[str]:
    """Count what the verdicts on pairs say; one that was not bought is None, and does not count.

    Args:
        judged: The two responses as they were shown, and the verdict.
        shown: Whether the labeler saw the two side by side, so that it may like a place.

    Returns:
        How many were decided, ties and invalid; of the decided, how many were `shown` and favour the first one,
        and how many are `comparable` (implicit rewards clearly apart) and agree with the policy's implicit rewards.

    Example:
        >>> a, b = Response("a", logp=-1.0, logp_ref=-4.0), Response("b", logp=-3.0, logp_ref=-3.0)
        >>> counts = count([(a, b, "first"), (b, a, "first"), (a, b, "tie")], shown=True)
        >>> counts["decided"], counts["ties"], counts["first_shown"], counts["agreed"]
        (2, 1, 2, 1)
    """
    counts: Counter[str] = Counter()
    for first, second, verdict in judged:
        if verdict is None:
            continue
        counts[{"tie": "ties", "invalid": "invalid"}.get(verdict, "decided")] += 1
        if verdict not in ("first", "second"):
            continue
        counts["shown"] += shown
        counts["first_shown"] += shown and verdict == "first"
        gap = (first.logp - first.logp_ref) - (second.logp - second.logp_ref)
        if math.isfinite(gap) and abs(gap) > CLEAR:
            counts["comparable"] += 1
            counts["agreed"] += (gap > 0) == (verdict == "first")
    return counts


def shares(counts: Mapping[str, int]) -> dict[str, float | None]:
    """What the counts come to: numbers of judgements, and shares where there is anything to have a share of.

    Example:
        >>> shares({"decided": 3, "ties": 1, "shown": 3, "first_shown": 2})["tie_rate"]
        0.25
    """
    number = {name: counts.get(name, 0) for name in COUNTED}
    judged = number["decided"] + number["ties"] + number["invalid"]
    return {
        **{name: number[name] for name in ("decided", "ties", "invalid")},
        "tie_rate": _share(number["ties"], judged),
        "invalid_rate": _share(number["invalid"], judged),
        "first_shown": _share(number["first_shown"], number["shown"]),  # 0.5 where places decide nothing
        "agreement": _share(number["agreed"], number["comparable"]),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
