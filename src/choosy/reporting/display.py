"""Shows a run on the terminal while it happens."""

from __future__ import annotations

import logging
import sys
import warnings

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bars(console: Console) -> Progress:
    """Return a bar for each open phase, with the fields `round` and `amount`; shown on terminals only."""
    return Progress(
        TextColumn("[bold]{task.fields[round]}"),
        TextColumn("[cyan]{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what is printed to a file must not land on the terminal
        disable=console.quiet or not console.is_terminal,
    )


def amount(done: int, total: int | None, unit: str) -> str:
    """Return what was handled: `128 prompts`, or `40/128 prompts` if not all of them."""
    if not done and not total:
        return ""
    whole = "" if total in (None, done) else f"/{total}"
    return f"{done}{whole} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    Example:
        >>> duration(9.14), duration(70), duration(3725)
        ('9.1 s', '1 min 10 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def quiet() -> None:
    """Mute banners of libraries, and their advice that does not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*You have overridden `transfer_batch_to_device`.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*`lr_scheduler.step.*",
        ".*Found .* module.s. in eval mode.*",
    ):
        warnings.filterwarnings("ignore", message=message)
