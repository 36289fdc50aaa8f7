"""How the figures of a comparison are written."""

from __future__ import annotations

import math
from collections.abc import Callable

from choosy.reporting.courses import Interval


def as_share(ratio: float) -> str:
    """A ratio as a percentage; infinity is what an arm needs that never reaches the quality, nan is not known.

    Example:
        >>> as_share(0.456), as_share(math.inf), as_share(math.nan)
        ('46%', 'never', '–')
    """
    return "–" if math.isnan(ratio) else f"{ratio:.0%}" if math.isfinite(ratio) else "never"


def as_amount(amount: float, cost: str) -> str:
    """An amount of a cost.

    Example:
        >>> as_amount(1234.5, "labels"), as_amount(1234.5, "money"), as_amount(0.0123, "money"), as_amount(math.inf, "")
        ('1,234', '1,234.50', '0.012', 'never')
        >>> as_amount(1.34, "seconds")
        '1.3'
    """
    if not math.isfinite(amount):
        return as_share(amount)
    if cost == "seconds" and amount < 100:
        return f"{amount:.1f}"
    return f"{amount:,.0f}" if cost != "money" else f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def as_difference(difference: float) -> str:
    """A difference with its sign, a dash where it is not known."""
    return "–" if math.isnan(difference) else f"{difference:+.2f}"


def as_p(p: float) -> str:
    """A p value with its sign, as in "p = 0.062".

    Example:
        >>> as_p(0.0625), as_p(0.00002)
        ('= 0.062', '< 0.001')
    """
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def as_range(found: Interval, text: Callable[[float], str]) -> str:
    """The ends of an interval, or both in one where they read alike; a dash where they are not known.

    Example:
        >>> [as_range(found, as_share) for found in (Interval(0.5, 0.25, math.inf), Interval(1, 1, 1), Interval(0.5))]
        ['25% to never', '100%', '–']
    """
    low, high = text(found.low), text(found.high)
    return low if low == high else f"{low} to {high}"
