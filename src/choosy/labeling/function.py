"""A labeler that calls a Python function of two strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import cast

from choosy.labeling.protocols import Terms
from choosy.types import Prompt, Response

Reward = Callable[[str, str], float]


class Function:
    """Scores a response with your own function, called as `f(prompt_text, response_text)`.

    Args:
        path: The function, as `package.module.callable`.
        name: Name of the labels in the ledger; None = `function:` and the path. Give a new one when the function
            changes, so that labels under the old name are not reused.
        price: Money that one call costs, for `labels.budget_money`; None = calls are free.
    """

    def __init__(self, path: str, *, name: str | None = None, price: float | None = None) -> None:
        if price is not None and price < 0:
            raise ValueError(f"labeler.price={price} is no price; type 0 or more, or null for free calls")
        self.name = name or f"function:{path}"
        self.terms = Terms(price=price, at_once=1)  # each call may cost money: its label is written before the next
        self._reward = _function_at(path)

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """The function's value for each item."""
        return [float(self._reward(prompt.text, response.text)) for prompt, response in items]


def _function_at(path: str) -> Reward:
    try:
        function = resolve_name(path)
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
