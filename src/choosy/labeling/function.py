"""A labeler that calls Python functions, in the forms that people bring them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from choosy.current_folder import see_current_folder
from choosy.errors import raised_at
from choosy.labeling.protocols import Answer, Terms
from choosy.own_code import code_id, is_edited
from choosy.terminal import logger
from choosy.types import Prompt, Response, content_id

log = logger(__name__)

FORMS = (
    "f(prompt, response) or f(response), which return a number; or, as in TRL, f(completions, **kwargs) or "
    "f(prompts, completions, **kwargs), which return a list of numbers; other columns of the data by name"
)
LISTS = ("completions", "responses")  # names of an argument that takes several answers at once
OF_TRL = frozenset({"prompts", "completions", "completion_ids", *LISTS})  # what a function of lists is given
ONE_FORM = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Function:
    """Scores responses with your own functions.

    A function has one of these forms: `f(prompt, response)` or `f(response)`, which return a number; or, as in TRL,
    `f(prompts, completions, **kwargs)`, which returns a list of numbers. Arguments with the names of other columns of
    the data receive their values. What stands in the data as a list of messages is given to a function of lists as
    messages, as TRL does, and as text to the others. Async functions are awaited.

    Args:
        path: The function, as `package.module.callable` or `file.py:callable`, or several of them. The current folder
            is importable. A class is called without arguments, and what it returns is called as a function.
        weights: Of several functions; the reward is the weighted sum. None = each weighs 1. A function that returns
            None for a response leaves it to the others.
        name: Name of the labels in the ledger; None = `function:` and the path. Labels of other source code are not
            reused; give a new name when something else changes, such as a model that is called.
        fingerprint: Of the labels in the ledger; None = it follows the functions' source code (see `code_id`). That of
            earlier labels, which the run names, states that the functions judge as they did then: these are reused.
        price: Money that one call costs, for `labels.budget_money`; None = calls are free.
    """

    def __init__(
        self,
        path: str | list[str] | Callable[..., Any],
        *,
        weights: list[float] | None = None,
        name: str | None = None,
        fingerprint: str | None = None,
        price: float | None = None,
    ) -> None:
        if price is not None and price < 0:
            raise ValueError(f"labeler.price={price} is no price; type 0 or more, or null for free calls")
        self._rewards = [reward_of(one) for one in ([path] if isinstance(path, str) or callable(path) else path)]
        self._weights = weights or [1.0] * len(self._rewards)
        if not self._rewards or len(self._weights) != len(self._rewards):
            raise ValueError(f"labeler.weights={weights}: give one weight to each of {len(self._rewards)} functions")
        last = [reward.shown.rpartition(":")[2].rpartition(".")[2] for reward in self._rewards]
        self._names = last if len({*last}) == len(last) else numbered([reward.shown for reward in self._rewards])
        self.name = name or "function:" + "+".join(reward.shown for reward in self._rewards)
        self.terms = Terms(
            fingerprint=content_id(*(reward.code for reward in self._rewards), *map(str, weights or []))
            if fingerprint is None
            else fingerprint,
            price=price or 0.0,
            # each call may cost money: its label is written before the next
            at_once=None if all(reward.takes_lists for reward in self._rewards) else 1,
        )

    def stamp(self, prompt: Prompt, responses: Sequence[Response]) -> str:
        """What of the prompt's row the functions receive beside the texts."""
        received = {k: v for reward in self._rewards for k, v in reward.accepted(prompt.columns).items()}
        return content_id(*(f"{name}={value!r}" for name, value in sorted(received.items()))) if received else ""

    def reads(self, column: str) -> bool:
        """Whether a function takes this column of the data."""
        return any(reward.accepted({column: None}) for reward in self._rewards)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts whose rows lack a column that a function cannot be called without."""
        for reward in self._rewards:
            wanted = reward.required - (OF_TRL if reward.takes_lists else frozenset())
            for prompt in prompts:
                lacks = sorted(wanted - prompt.columns.keys())
                if lacks and lacks[0] in prompt.blank:
                    raise ValueError(
                        f"labeler.path={reward.shown!r} wants {lacks[0]}, and that cell is empty in the row of prompt "
                        f"{prompt.id!r}; fill it in, remove the row, or give the argument a default"
                    )
                if lacks:
                    raise ValueError(
                        f"labeler.path={reward.shown!r} wants {lacks[0]}, and the row of prompt {prompt.id!r} has no "
                        f"such column (it has {', '.join(prompt.columns) or 'none'} beside what is trained on); add "
                        "the column, or give the argument a default"
                    )

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float | Answer]:
        """The weighted sum of the functions' values for each item, with the values of several functions."""
        of_functions = [reward(items) for reward in self._rewards]
        answers: list[float | Answer] = []
        for at, values in enumerate(zip(*of_functions, strict=True)):
            parts = {name: value for name, value in zip(self._names, values, strict=True) if value is not None}
            if not parts:
                raise ValueError(f"{self.name} returned None; a reward is a number")
            weighed = zip(self._weights, values, strict=True)
            total = sum(weight * value for weight, value in weighed if value is not None)
            several = len(self._names) > 1
            answers.append(Answer(at, total, json.dumps(parts, ensure_ascii=False)) if several else total)
        return answers

    def parts_in(self, raw: str) -> Mapping[str, float]:
        """Read the value of each of several functions from what was written with a label."""
        parts: dict[str, float] = json.loads(raw or "{}")
        return parts


def numbered(names: Sequence[str]) -> list[str]:
    """The names, of which those that occur again have a number.

    Example:
        >>> numbered(["a:f", "b:f", "a:f"])
        ['a:f', 'b:f', 'a:f 2']
    """
    times = [names[: n + 1].count(name) for n, name in enumerate(names)]
    return [name if time == 1 else f"{name} {time}" for name, time in zip(names, times, strict=True)]


@dataclass(frozen=True)
class Reward:
    """A function of the user's, called in its own form.

    Attributes:
        call: The function.
        shown: Its name in messages and in the ledger.
        code: The name of its source code.
        names: The arguments that it takes by name.
        required: Those of them that it cannot be called without.
        more: Whether it takes any other argument by name.
        takes_lists: Whether it takes several responses at once.
        positions: How many arguments it takes by position, if it takes one response at a time: the response, and the
            prompt before it.
    """

    call: Callable[..., Any]
    shown: str
    code: str
    names: frozenset[str]
    required: frozenset[str]
    more: bool
    takes_lists: bool
    positions: int = 2

    def __call__(self, items: Sequence[tuple[Prompt, Response]]) -> list[float | None]:
        """The function's value for each item; None where it has none."""
        if not self.takes_lists:
            texts = [(p, (p.text, r.text)[-self.positions :]) for p, r in items]
            return [self._number(self.call(*both, **self.accepted(p.columns))) for p, both in texts]
        values = self.call(**self._lists(items))
        if not isinstance(values, Sequence) and not hasattr(values, "tolist"):
            raise ValueError(f"{self.shown} returned {type(values).__name__}; a function of lists returns a list")
        found = [self._number(value) for value in values]
        if len(found) != len(items):
            raise ValueError(f"{self.shown} returned {len(found)} rewards for {len(items)} completions")
        return found

    def accepted(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the columns that the function takes by name."""
        return {name: value for name, value in columns.items() if self.more or name in self.names}

    def _lists(self, items: Sequence[tuple[Prompt, Response]]) -> dict[str, list[Any]]:
        """The arguments of a function of lists, under TRL's names."""
        chats = [[turn.fields for turn in p.messages] if p.conversation else None for p, _ in items]
        answers = [
            r.text if chat is None else [turn.fields for turn in r.messages]
            for (_, r), chat in zip(items, chats, strict=True)
        ]
        offered: dict[str, list[Any]] = {
            **{name: [p.columns.get(name) for p, _ in items] for other, _ in items for name in other.columns},
            "prompts": [p.text if chat is None else chat for (p, _), chat in zip(items, chats, strict=True)],
            "completions": answers,
            "completion_ids": [list(r.ids) for _, r in items],
        }
        if "responses" in self.names:
            offered["responses"] = answers
        return self.accepted(offered)

    def _number(self, value: Any) -> float | None:
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.shown} returned {value!r:.80}; a reward is a number") from None


def reward_of(function: str | Callable[..., Any]) -> Reward:
    """Return a function, or the one that a path names, in the form that its arguments have.

    Raises:
        ValueError: The path names no function, or the function cannot be called in any of the forms.
    """
    shown = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)
    call = _function_at(function) if isinstance(function, str) else function
    if isinstance(function, str) and is_edited(call):
        log.warning(
            "%s is used as it was imported; its file has been edited since. Type file.py:function, or start a new "
            "process, to use it as it is now.",
            shown,
        )
    if inspect.isclass(call):
        call = _built(call, shown)
    if not callable(call):
        raise ValueError(f"labeler.path={shown!r} is a {type(call).__name__}, which cannot be called; name {FORMS}")
    code = code_id(call)
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
        call = _awaited(call)
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:  # written in C
        return Reward(call, shown, code, frozenset(), frozenset(), more=False, takes_lists=False)
    lists = any(name in parameters for name in LISTS)
    places = [one for one in parameters.values() if one.kind in ONE_FORM]
    positions = 0 if lists else 1 if sum(one.default is Parameter.empty for one in places) == 1 else 2
    any_number = any(one.kind is Parameter.VAR_POSITIONAL for one in parameters.values())
    if len(places) < positions and not any_number:
        raise ValueError(f"labeler.path={shown!r} is {shown}{inspect.signature(call)}; wanted {FORMS}")
    by_place = {one.name for one in places[:positions]}
    by_name = [one for one in parameters.values() if one.name not in by_place and one.kind in BY_NAME]
    return Reward(
        call,
        shown,
        code,
        names=frozenset(one.name for one in by_name),
        required=frozenset(one.name for one in by_name if one.default is Parameter.empty),
        more=any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values()),
        takes_lists=lists,
        positions=positions,
    )


def _awaited(call: Callable[..., Any]) -> Callable[..., Any]:
    """The async function as a plain one, run in another thread, as the thread of a notebook has an event loop."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(call(*args, **kwargs))).result()

    plain.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]  # inspect reads it
    return plain


def _built(kind: type, shown: str) -> Any:
    if hasattr(kind, "score") or hasattr(kind, "compare"):
        dotted = shown.removesuffix(".py").replace(".py:", ".").replace("/", ".").lstrip(".")
        raise ValueError(f"labeler.path={shown!r} is a labeler of its own; type labeler=mine labeler._target_={dotted}")
    try:
        return kind()
    except TypeError as error:
        raise ValueError(f"labeler.path={shown!r} is a class that needs arguments ({error}); name {FORMS}") from error


def _function_at(path: str) -> Any:
    see_current_folder()
    file, colon, name = path.rpartition(":")
    try:
        return _in_file(Path(file), name) if colon and file.endswith(".py") else resolve_name(path)
    except (ImportError, AttributeError, ValueError, OSError, SyntaxError) as error:
        raise ValueError(
            f"labeler.path={path!r} names no function ({error}); type file.py:function, or package.module.function "
            f"with the package in the current folder, installed or on PYTHONPATH{raised_at(error)}"
        ) from error


def _in_file(file: Path, name: str) -> Any:
    """The object of this name in a Python file, which may import what lies beside it."""
    if str(file.resolve().parent) not in sys.path:
        sys.path.append(str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)
