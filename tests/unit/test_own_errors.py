"""Errors in code of the user's: each message names the file, the line and its text, without Choosy's stack."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_labelers import given

from choosy.api import in_a_sentence
from choosy.errors import raised_at
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.function import Function
from choosy.labeling.protocols import Postponed
from choosy.main import built, in_sentences, sentence_on

MINE = """import asyncio


def reward(response):
    return 1 / len(response.split("#")[1:])


async def later(response):
    return reward(response)


class Labeler:
    name = "mine"

    def __init__(self, factor):
        self.factor = factor["factor"]


class Selector:
    def pair_utilities(self, candidates, at):
        import torch
        return torch.zeros(2) @ torch.zeros(3)


def waits():
    from choosy.labeling.protocols import Postponed
    raise Postponed("tomorrow")


def forbids():
    raise PermissionError("ask first")
"""
REWARD = '\n  mine.py, line 5, in reward\n    return 1 / len(response.split("#")[1:])'
CONSTRUCTOR = '\n  mine.py, line 16, in __init__\n    self.factor = factor["factor"]'
SELECTOR = "\n  mine.py, line 22, in pair_utilities\n    return torch.zeros(2) @ torch.zeros(3)"


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def reward(response:\n    return 1\n")
    (tmp_path / "fails.py").write_text("words = {}\n\nlimit = words['limit']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "broken", "fails"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return pytest.importorskip("mine")


@pytest.mark.parametrize("function", ["reward", "later"])
def test_a_reward_function_that_raises(function: str, buyer: Callable[..., LabelBuyer]) -> None:
    with pytest.raises(SystemExit) as stop, in_sentences(lambda: "choosy train again"):
        buyer(Function(f"mine.py:{function}")).score([given("p", "tea")])
    assert str(stop.value).endswith(
        "gave no label for prompt 'p' ('What about p?'), response 0: 'tea': "
        f"ZeroDivisionError: division by zero{REWARD}\n"
        "The labels bought before it are in the ledger; mend the labeler and resume the run; type\n  choosy train again"
    )


def test_a_selector_that_raises_within_a_library_is_named_where_it_calls_it(mine: Any) -> None:
    with pytest.raises(SystemExit) as stop, in_sentences(lambda: ""):
        mine.Selector().pair_utilities([], None)
    assert str(stop.value).startswith("\nRuntimeError: ")
    assert str(stop.value).endswith(SELECTOR)


def test_an_error_of_the_kind_that_paths_cause_is_named_too_where_it_has_no_path(mine: Any) -> None:
    with pytest.raises(SystemExit) as stop, in_sentences(lambda: ""):
        mine.forbids()
    assert str(stop.value).startswith("\nPermissionError: ask first\n  mine.py, line ")


def test_a_constructor_and_a_module_that_raise_are_named_with_what_they_were_to_build() -> None:
    with pytest.raises(Exception, match="factor") as raised:
        built({"labeler": {"_target_": "mine.Labeler", "factor": {}}})
    assert sentence_on(raised.value).startswith("labeler cannot be built: KeyError: 'factor'. ")
    assert sentence_on(raised.value).endswith(CONSTRUCTOR)
    with pytest.raises(Exception, match="fails") as raised:
        built({"_target_": "fails.Labeler"})
    assert sentence_on(raised.value).endswith("\n  fails.py, line 3\n    limit = words['limit']")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("fails.py:f", "labeler cannot be built: KeyError: 'limit'. "),
        ("fails.f", "labeler cannot be built: KeyError: 'limit'. "),
        (
            "broken.py:reward",
            "labeler.path='broken.py:reward' names no function ('(' was never closed (broken.py, line 1",
        ),
    ],
)
def test_a_file_of_functions_that_cannot_be_imported(path: str, words: str) -> None:
    node = {"labeler": {"_target_": "choosy.labeling.function.Function", "path": path}}
    with pytest.raises(Exception) as raised:  # noqa: PT011
        built(node)
    assert sentence_on(raised.value).startswith(words)
    in_fails, in_broken = "fails.py, line 3\n    limit = words['limit']", "broken.py, line 1\n    def reward(response:"
    assert sentence_on(raised.value).endswith(f"\n  {in_fails if 'fails' in path else in_broken}")


def test_a_call_of_tune_raises_a_sentence_and_lets_what_is_postponed_pass(mine: Any) -> None:
    with pytest.raises(ValueError, match="ZeroDivisionError: division by zero") as raised:
        in_a_sentence(mine.reward)("tea")
    assert str(raised.value).endswith(REWARD)
    assert raised.value.__cause__ is None
    with pytest.raises(Postponed):
        in_a_sentence(mine.waits)()


def test_a_secret_in_the_line_is_struck_out(mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")
    (tmp_path / "leaks.py").write_text("def f():\n    raise KeyError('sk-0123456789')\n")
    with pytest.raises(KeyError) as raised:
        pytest.importorskip("leaks").f()
    assert raised_at(raised.value) == "\n  leaks.py, line 2, in f\n    raise KeyError('[MY_API_KEY]')"
    assert "sk-" not in sentence_on(raised.value)
