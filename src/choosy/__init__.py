"""Choosy: online preference tuning that pays only for what teaches."""

import os

__version__ = "0.1.0"

# A CPU thread that waits for another one spins briefly and then sleeps: where another program is busy, longer spinning
# makes a forward pass four times slower (docs/log.md). OpenMP reads this once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
