"""Statistics of verdicts: ties, invalid verdicts, position bias, agreement with the policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from choosy.types import Candidates, Verdict

COUNTED = ("decided", "ties", "invalid", "shown", "first_shown", "comparable", "agreed")

CLEAR = 1.0  # nats; log-probs of the merged weights, which sample, are up to one nat off (docs/log.md)


def count(judged: Sequence[Verdict | None], *, shown: bool) -> Counter[str]:
    """Count verdicts on pairs.

    Args:
        judged: The verdict on each pair, in the order in which it was shown; None = not bought, not counted.
        shown: Whether the labeler saw both at once, so that it may favour a position.

    Returns:
        Numbers of decided verdicts, ties and invalid ones; of the decided, how many were `shown` and favour the first
        response.

    Example:
        >>> counts = count(["first", "second", "tie", None], shown=True)
        >>> counts["decided"], counts["ties"], counts["shown"], counts["first_shown"]
        (2, 1, 2, 1)
    """
    counts: Counter[str] = Counter()
    for verdict in judged:
        if verdict is None:
            continue
        counts[{"tie": "ties", "invalid": "invalid"}.get(verdict, "decided")] += 1
        if verdict in ("first", "second"):
            counts["shown"] += shown
            counts["first_shown"] += shown and verdict == "first"
    return counts


def agreement(c: Candidates, *, round: int) -> Counter[str]:
    """Count the pairs of a round on which labeler and policy can be compared, and those on which they agree.

    Returns:
        How many pairs are `comparable` (implicit rewards clearly apart), and how many `agreed` with the policy.

    Example:
        >>> from choosy.types import Pair, Prompt, Response
        >>> a, b = Response("a", logp=-1.0, logp_ref=-4.0), Response("b", logp=-3.0, logp_ref=-3.0)
        >>> pairs = (Pair(0, 1), Pair(1, 0), Pair(0, 1, round=1))
        >>> sorted(agreement(Candidates(Prompt("p", ""), (a, b), pairs=pairs), round=0).items())
        [('agreed', 1), ('comparable', 2)]
    """
    counts: Counter[str] = Counter()
    for pair in c.pairs:
        chosen, rejected = c.responses[pair.chosen], c.responses[pair.rejected]
        gap = (chosen.logp - chosen.logp_ref) - (rejected.logp - rejected.logp_ref)
        if pair.round == round and math.isfinite(gap) and abs(gap) > CLEAR:
            counts["comparable"] += 1
            counts["agreed"] += gap > 0
    return counts


def shares(counts: Mapping[str, int]) -> dict[str, float | None]:
    """Turn counts into numbers of verdicts and shares; None where the whole is 0.

    Example:
        >>> shares({"decided": 3, "ties": 1, "shown": 3, "first_shown": 2})["tie_rate"]
        0.25
    """
    number = {name: counts.get(name, 0) for name in COUNTED}
    verdicts = {name: number[name] for name in ("decided", "ties", "invalid")}
    judged = sum(verdicts.values())
    return {
        **verdicts,
        "tie_rate": _share(number["ties"], judged),
        "invalid_rate": _share(number["invalid"], judged),
        "first_shown": _share(number["first_shown"], number["shown"]),  # 0.5 = no position bias
        "agreement": _share(number["agreed"], number["comparable"]),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def as_money(amount: float) -> str:
    """Return an amount of money with as many digits as tell it from nothing.

    Example:
        >>> as_money(12.5), as_money(0.000768), as_money(0.0)
        ('12.50', '0.00077', '0.00')
    """
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"
