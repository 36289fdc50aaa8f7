"""Where tables are printed."""

import os

from rich.console import Console

PAGE = 1000  # columns of a file or a pipe, whose reader can scroll


def console() -> Console:
    """Return the terminal; in place of a file or a pipe, a page so wide that no row of a table is cut.

    If the environment has COLUMNS, they are the width.
    """
    out = Console(highlight=False, markup=False)  # names may have brackets
    return out if out.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, markup=False, width=PAGE)
