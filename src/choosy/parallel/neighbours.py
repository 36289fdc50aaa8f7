"""Which of some items in their order are a rank's: neighbours."""

from __future__ import annotations


def share_of(n: int, rank: int, size: int) -> slice:
    """Which of n items a rank of so many takes; shares differ by at most one.

    Example:
        >>> ["abcde"[share_of(5, rank, 2)] for rank in (0, 1)]
        ['ab', 'cde']
    """
    return slice(n * rank // size, n * (rank + 1) // size)
