"""Any Python function of two strings as a labeler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from choosy.types import Prompt, Response

Reward = Callable[[str, str], float]


class Function:
    """Scores a response with your own function, called as `f(prompt_text, response_text)`.

    Args:
        path: Where the function is: `package.module.callable`.
        name: The name its labels are kept under. Give a new one when the function changes: labels bought
            under the old name are then no longer reused.
        price: Money that one call costs, for `labels.budget_money`; None if calls are free.

    Raises:
        ValueError: There is no such function.

    Example:
        >>> Function("difflib.get_close_matches").name
        'function:difflib.get_close_matches'
    """

    at_once = 1  # each call may cost money: its answer is in the ledger before the next is asked

    def __init__(self, path: str, *, name: str | None = None, price: float | None = None) -> None:
        if price is not None and price < 0:
            raise ValueError(f"labeler.price={price} is no price; type 0 or more, or null for free calls")
        self.name = name or f"function:{path}"
        self.price = price
        self._reward = _found(path)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """The function's value for each item."""
        return [float(self._reward(prompt.text, response.text)) for prompt, response in items]


def _found(path: str) -> Reward:
    module, _, attribute = path.rpartition(".")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"labeler.path={path!r} names no function ({error}); type package.module.callable, "
            "e.g. labeler.path=my_rewards.length, with the folder of my_rewards.py on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(
            f"labeler.path={path!r} is a {type(function).__name__}, which cannot be called; "
            "name a function of (prompt_text, response_text) that returns a number"
        )
    return cast(Reward, function)
