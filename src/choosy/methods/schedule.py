"""How the learning rate changes over a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def share_of_lr(schedule: Schedule, *, step: int, warmup_steps: float, progress: float, after: float) -> float:
    """Return the share of the learning rate that a step has.

    A run's steps are not known before its last round, so that the decay goes by rounds; the warm-up goes by steps.

    Args:
        schedule: What follows the warm-up: `constant` stays, `linear` and `cosine` fall to 0 at the end of the run.
        step: Of the optimiser, from 0.
        warmup_steps: Steps before the first that has the full share; below 1 the progress at whose end it has that.
        progress: Share of the run's rounds that are trained on before the step, in [0, 1]; of the round's steps where
            each round has a schedule of its own.
        after: The same after the step.

    Example:
        >>> [share_of_lr("constant", step=step, warmup_steps=3, progress=0, after=0) for step in (0, 3, 9)]
        [0.25, 1.0, 1.0]
        >>> [share_of_lr("linear", step=9, warmup_steps=0, progress=progress, after=1) for progress in (0.0, 0.75, 1.0)]
        [1.0, 0.25, 0.0]
        >>> [round(share_of_lr("cosine", step=9, warmup_steps=0, progress=p, after=1), 3) for p in (0, 0.25, 0.5, 1)]
        [1.0, 0.854, 0.5, 0.0]
        >>> [share_of_lr("constant", step=9, warmup_steps=0.5, progress=0, after=end) for end in (0.25, 0.5, 1.0)]
        [0.5, 1.0, 1.0]
    """
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    is_share = 0 < warmup_steps < 1
    return min(1.0, after / warmup_steps if is_share else (step + 1) / (warmup_steps + 1)) * decay[schedule]
