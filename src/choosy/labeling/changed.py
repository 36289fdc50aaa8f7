"""Says that a labeler has changed since it gave the labels of a ledger."""

from __future__ import annotations

import time

from choosy.labeling.function import Function
from choosy.labeling.ledger import Ledger
from choosy.labeling.protocols import Changes, Labeler, is_own_labeler, terms_of
from choosy.terminal import logger

log = logger(__name__)


def report_change(ledger: Ledger, labeler: Labeler) -> None:
    """Log how many labels a ledger has of a labeler as it was before, unless it has some of it as it is now.

    A labeler that has a state changes in the course of a run, and nothing is said of it.
    """
    if isinstance(labeler, Changes):
        return
    count, last, before = ledger.labels_before(labeler.name, terms_of(labeler).fingerprint)
    if not count:
        return
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
    log.warning(
        f"labeler {labeler.name} has changed since {when}, its source code or its settings: its labels in "
        f"{ledger.path} ({count}) are not used.{_remedy(labeler, before)}"
    )


def _remedy(labeler: Labeler, fingerprint: str) -> str:
    """Return how to use the labels under an earlier fingerprint; "" for labelers that cannot be given one."""
    if isinstance(labeler, Function):
        stated = fingerprint or "''"
        return f" Where it judges as then, labeler.fingerprint={stated} uses the last of them."
    if is_own_labeler(labeler) and fingerprint:  # a class cannot state that of labels from before there were any
        return (
            f" Where it judges as then, terms = Terms(fingerprint={fingerprint!r}) in its class uses the last of them."
        )
    return ""
