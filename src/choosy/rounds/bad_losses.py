"""What happens to a loss or a gradient that is nan or infinite: it never reaches the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from choosy.data.batches import ItemKey
from choosy.errors import refuse_unknown
from choosy.terminal import logger

log = logger(__name__)

OnBadLoss = Literal["stop", "skip"]
REMEDY = "Lower lr, or raise loss.beta, or check those prompts' responses; on_bad_loss=skip continues without them."


class BadLosses:
    """Ends the run (`stop`), or warns and leaves what is not finite out of the step (`skip`)."""

    def __init__(self, on_bad_loss: OnBadLoss) -> None:
        refuse_unknown("on_bad_loss", on_bad_loss, get_args(OnBadLoss))
        self.on_bad_loss = on_bad_loss

    def report_items(self, bad: Sequence[ItemKey]) -> None:
        """Raise or warn about items whose loss is not finite; the step is then computed without them."""
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        names = ", ".join(prompt_id for prompt_id, *_ in bad[:5])
        what = f"The loss of {len(bad)} items is not finite (prompts {names}{more});"
        self._report(what, "they are left out of this step.")

    def report_gradient(self, step: int, norm: float) -> None:
        """Raise or warn about a gradient that is not finite though its losses are; the step is then skipped."""
        self._report(f"The gradient of step {step} is {norm}, though its losses are finite;", "the step is skipped.")

    def _report(self, what: str, consequence: str) -> None:
        if self.on_bad_loss == "stop":
            raise ValueError(f"{what} the last checkpoint is good. {REMEDY}")
        log.warning("%s %s", what, consequence)
