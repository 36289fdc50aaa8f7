"""Choosy: online preference tuning that pays only for what teaches."""

import os
from typing import TYPE_CHECKING, Any

from choosy.version import __version__

if TYPE_CHECKING:
    from choosy.api import Tuned, tune

__all__ = ["Tuned", "__version__", "tune"]

# A CPU thread that waits for another one spins briefly and then sleeps: where another program is busy, longer spinning
# makes a forward pass four times slower (docs/log.md). OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    """Import what is used from a notebook when it is used: it takes seconds."""
    if name not in ("Tuned", "tune"):
        raise AttributeError(f"module 'choosy' has no attribute {name!r}")
    import choosy.api

    return getattr(choosy.api, name)
