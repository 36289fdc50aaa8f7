"""What is shown on the terminal: tables, without progress bars of transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from choosy.foreign import visible

PAGE = 1000  # columns of a file or a pipe, whose reader can scroll


class Terminal(Console):
    """A console on which text of others steers nothing; it is not read as markup either.

    Example:
        >>> import io
        >>> out = Terminal(file=io.StringIO(), width=40)
        >>> out.print("[/old]\\x1b[2J")
        >>> out.file.getvalue()
        '[/old]\\\\x1b[2J\\n'
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text as it will be shown, so that columns are as wide as they must be."""
        return super().render_str(visible(text), **{**settings, "markup": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is shown of anything; only the controls of the console itself steer."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def console() -> Terminal:
    """Return the terminal; in place of a file or a pipe, a page so wide that no row of a table is cut.

    If the environment has COLUMNS, they are the width.
    """
    out = Terminal()
    return out if out.is_terminal or "COLUMNS" in os.environ else Terminal(width=PAGE)


def hide_progress_bars() -> None:
    """Keep transformers from drawing progress bars in this process."""
    from transformers.utils import logging  # takes seconds to import

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no type
