"""Reward functions in the forms that people bring them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choosy.data.formats import to_prompt
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.function import Function
from choosy.labeling.noisy import Noisy
from choosy.types import Candidates, Message, Prompt, Response

REWARDS = """
import math

number = 7

def longer(prompt, response):
    return len(response) - len(prompt)

def length(text):
    return len(text)

def both(*texts):
    return len(texts)

def named(prompt, response, answer):
    return float(answer in response)

def anything(prompt, response, **columns):
    return len(columns)

def trl(prompts, completions, **kwargs):
    return [len(c) - len(p) for p, c in zip(prompts, completions)]

def trl_short(completions, **kwargs):
    return [float(len(c)) for c in completions]

def trl_columns(completions, answer, **kwargs):
    return [float(a in c) for c, a in zip(completions, answer)]

def trl_messages(completions, **kwargs):
    return [len(c[0]["content"]) if isinstance(c, list) else -1 for c in completions]

def trl_ids(completion_ids, responses):
    return [len(ids) for ids in completion_ids]

def trl_few(completions):
    return [1.0]

def trl_one_number(completions):
    return 1.0

def sometimes(completions, **kwargs):
    return [None if "?" in c else 1.0 for c in completions]

def nothing(prompt, response):
    pass

def words(prompt, response):
    return "good"

def three(prompt, response, reference):
    return 1.0

def none_at_all(*, answer):
    return 1.0

async def later(prompt, response):
    return float(len(response))

async def later_lists(completions, **kwargs):
    return [float(len(c)) for c in completions]

class Later:
    async def __call__(self, response):
        return float(len(response))

class Counts:
    def __call__(self, prompt, response):
        return float(len(response))

class NeedsSomething:
    def __init__(self, what):
        pass

class Labeler:
    name = "labeler"
    def score(self, items):
        return [1.0 for _ in items]
"""

ITEMS = [
    (Prompt("p", "ab", columns={"answer": "c"}), Response("abcde", ids=(1, 2))),
    (Prompt("q", "ab", columns={"answer": "z"}), Response("?", ids=(1,))),
]


@pytest.fixture(autouse=True)
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "my_broken.py").write_text("import a_module_that_is_missing\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("from my_sibling import two\n\ndef f(response):\n    return two\n")
    (tmp_path / "sub" / "my_sibling.py").write_text("two = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    for name in ("my_rewards", "beside", "my_sibling"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("function", "values"),
    [
        ("longer", [3, -1]),
        ("length", [5, 1]),
        ("both", [2, 2]),
        ("named", [1, 0]),
        ("anything", [1, 1]),
        ("trl", [3, -1]),
        ("trl_short", [5, 1]),
        ("trl_columns", [1, 0]),
        ("trl_messages", [-1, -1]),
        ("trl_ids", [2, 1]),
        ("Counts", [5, 1]),
    ],
)
@pytest.mark.parametrize("path", ["my_rewards.{}", "my_rewards.py:{}", "./my_rewards.py:{}"])
def test_every_form_is_called_as_its_arguments_say(path: str, function: str, values: list[float]) -> None:
    """The current folder is importable, though it is not on the path."""
    scores = Function(path.format(function)).score(ITEMS)
    assert scores == values
    assert all(type(score) is float for score in scores)


def test_a_file_may_import_what_lies_beside_it() -> None:
    assert Function("sub/beside.py:f").score(ITEMS) == [2.0, 2.0]


def test_functions_without_a_path_and_functions_of_other_libraries() -> None:
    assert Function(lambda prompt, response: len(response)).score(ITEMS) == [5.0, 1.0]
    assert Function("builtins.len").score(ITEMS) == [5.0, 1.0]


def test_a_conversation_is_given_as_messages_to_a_function_of_lists() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Why?"))
    items = [(Prompt("p", "system: Be brief.\nuser: Why?", turns, conversation=True), Response("Because."))]
    assert Function("my_rewards.trl_messages").score(items) == [8.0]
    assert Function("my_rewards.length").score(items) == [8.0]


@pytest.mark.parametrize(
    ("row", "length"),
    [({"prompt": "Why?"}, -1), ({"prompt": [{"role": "user", "content": "Why?"}]}, 8), ({"question": "Why?"}, -1)],
)
def test_a_row_decides_whether_a_function_of_lists_gets_messages(row: dict[str, Any], length: float) -> None:
    assert Function("my_rewards.trl_messages").score([(to_prompt(row), Response("Because."))]) == [length]


def test_several_functions_are_summed_by_weight_and_none_leaves_it_to_the_others() -> None:
    two = Function(["my_rewards.length", "my_rewards.py:sometimes"], weights=[2.0, 10.0])
    answers = two.score(ITEMS)
    assert [answer.value for answer in answers] == [20.0, 2.0]
    assert [two.parts_in(answer.raw) for answer in answers] == [{"length": 5.0, "sometimes": 1.0}, {"length": 1.0}]
    alike = Function(["my_rewards.length", "my_rewards.py:length"])
    assert alike.parts_in(alike.score(ITEMS)[0].raw) == {"my_rewards.length": 5.0, "my_rewards.py:length": 5.0}
    twice = Function(["my_rewards.length", "my_rewards.length"], weights=[1.0, 2.0])
    (answer, _) = twice.score(ITEMS)
    assert answer.value == 15.0
    assert twice.parts_in(answer.raw) == {"my_rewards.length": 5.0, "my_rewards.length 2": 5.0}
    assert two.name == "function:my_rewards.length+my_rewards.py:sometimes"
    assert two.terms.fingerprint != Function(["my_rewards.length", "my_rewards.sometimes"]).terms.fingerprint
    with pytest.raises(ValueError, match=r"labeler\.weights=\[1\.0\]: give one weight to each of 2 functions"):
        Function(["my_rewards.length", "my_rewards.trl"], weights=[1.0])


def test_what_a_function_receives_of_a_row_is_part_of_the_question() -> None:
    def stamps(path: str) -> list[str]:
        function = Function(path)
        return [function.stamp(prompt, [response]) for prompt, response in ITEMS]

    assert len(set(stamps("my_rewards.trl_columns"))) == 2
    assert stamps("my_rewards.longer") == ["", ""]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "returned None; a reward is a number"),
        ("words", "returned 'good'; a reward is a number"),
        ("trl_few", "returned 1 rewards for 2 completions"),
        ("trl_one_number", "returned float; a function of lists returns a list"),
    ],
)
def test_what_is_no_reward_is_an_error(function: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Function(f"my_rewards.{function}").score(ITEMS)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("my_rewards.shorter", r"names no function \(.*no attribute 'shorter'\); type file.py:function"),
        ("my_rewards.py:shorter", r"names no function \(.*no attribute 'shorter'\)"),
        ("your_rewards.py:f", r"names no function \(.*No such file"),
        ("no_such_module.f", r"names no function \(No module named 'no_such_module'\); type file.py:function"),
        ("my_broken.f", r"names no function \(No module named 'a_module_that_is_missing'\)"),
        ("my_broken.py:f", r"names no function \(No module named 'a_module_that_is_missing'\)"),
        ("bare", r"names no function \(No module named 'bare'\)"),
        ("my_rewards.number", r"is a int, which cannot be called; name f\(prompt, response\)"),
        ("my_rewards.none_at_all", r"is my_rewards.none_at_all\(\*, answer\); wanted f\(prompt, response\)"),
        ("my_rewards.NeedsSomething", r"is a class that needs arguments \(.*'what'"),
        ("my_rewards.Labeler", r"is a labeler of its own; type labeler=mine labeler\._target_=my_rewards\.Labeler"),
    ],
)
def test_a_path_that_names_no_reward_says_what_to_type(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"labeler\.path='{path}' {words}"):
        Function(path)


@pytest.mark.parametrize(("function", "lacks"), [("three", "reference"), ("trl_columns", None), ("named", None)])
def test_a_column_that_the_data_lack_is_named_before_anything_is_sampled(function: str, lacks: str | None) -> None:
    prompts = [prompt for prompt, _ in ITEMS]
    labeler = Function(f"my_rewards.{function}")
    if lacks is None:
        labeler.check_prompts(prompts)
    with pytest.raises(ValueError, match=rf"wants {lacks or 'answer'}, and the row of prompt 'r' has no such column"):
        labeler.check_prompts([Prompt("r", "ab", columns={"other": 1})])
    with pytest.raises(ValueError, match=rf"wants {lacks or 'answer'}, and that cell is empty in the row .*'r'; fill"):
        labeler.check_prompts([to_prompt({"id": "r", "prompt": "ab", "other": 1, lacks or "answer": None})])


@pytest.mark.parametrize("function", ["later", "later_lists", "Later"])
def test_async_functions_are_awaited_also_where_an_event_loop_runs(function: str) -> None:
    async def notebook() -> list[float]:
        return Function(f"my_rewards.{function}").score(ITEMS)

    assert asyncio.run(notebook()) == [float(len(response.text)) for _, response in ITEMS]


def test_a_column_is_read_if_a_function_names_it_or_takes_any(tmp_path: Path) -> None:
    by_name, any_name, none = (Function(f"my_rewards.{f}") for f in ("named", "anything", "length"))
    assert [labeler.reads("answer") for labeler in (by_name, any_name, none)] == [True, True, False]
    assert not by_name.reads("other")
    assert Noisy(by_name).reads("answer")
    assert LabelBuyer(by_name, ledger=str(tmp_path / "ledger.sqlite")).reads("answer")


def test_a_function_of_a_module_that_was_edited_since_its_import_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Function("my_rewards.length").score(ITEMS) == [5.0, 1.0]
    file = tmp_path / "my_rewards.py"
    file.write_text(file.read_text().replace("return len(text)", "return 2 * len(text)"))
    with caplog.at_level(logging.WARNING):
        assert Function("my_rewards.longer").score(ITEMS) == [3.0, -1.0]
        assert not caplog.text, "this function is as it was"
        assert Function("my_rewards.length").score(ITEMS) == [5.0, 1.0]
    assert (
        "my_rewards.length is used as it was imported; its file has been edited since. Type file.py:function, or start"
        in caplog.text
    )


OWN_LABELER = """
class Mine:
    name = "mine"

    def __init__(self, factor=1):
        self.factor = factor

    def score(self, items):
        return [self.factor * float(len(response.text)) for _, response in items]
"""


def _mine(**given: Any) -> Any:
    sys.modules.pop("my_labelers", None)
    importlib.invalidate_caches()
    return importlib.import_module("my_labelers").Mine(**given)


@pytest.mark.parametrize("kind", ["function", "class"])
def test_edited_code_buys_anew_says_so_once_and_a_stated_fingerprint_keeps_the_old_labels(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / ("my_rewards.py" if kind == "function" else "my_labelers.py")
    file.write_text(REWARDS if kind == "function" else OWN_LABELER)
    name = "function:my_rewards.py:length" if kind == "function" else "mine"
    runs = iter("abcdefg")

    def rewards(**given: Any) -> list[float | None]:
        labeler = Function("my_rewards.py:length", **given) if kind == "function" else _mine(**given)
        buyer = LabelBuyer(labeler, ledger=str(tmp_path / "ledger.sqlite"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            buyer.open(next(runs))
        (scored,) = buyer.score([Candidates(ITEMS[0][0], (ITEMS[0][1],))])
        return [response.reward for response in scored.responses]

    assert rewards() == [5.0]
    assert not caplog.text
    old, new = ("len(text)", "2 * len(text)") if kind == "function" else ("self.factor *", "2 * self.factor *")
    file.write_text(file.read_text().replace(old, new))
    assert rewards() == [10.0]
    assert f"labeler {name} has changed since 2" in caplog.text
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        ((before,), _) = db.execute("SELECT fingerprint FROM labels ORDER BY rowid").fetchall()
    words = f"labeler.fingerprint={before}" if kind == "function" else f"terms = Terms(fingerprint={before!r})"
    assert (
        f"its labels in {tmp_path / 'ledger.sqlite'} (1) are not used. Where it judges as then, {words}" in caplog.text
    )
    assert rewards() == [10.0]
    assert not caplog.text, "once"
    if kind == "function":
        assert rewards(fingerprint=before) == [5.0]
    else:
        assert rewards(factor=3) == [30.0], "a setting"


def test_labels_from_before_functions_had_a_fingerprint_can_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [Candidates(ITEMS[0][0], (ITEMS[0][1],))]
    for run, given in (("a", {"fingerprint": ""}), ("b", {}), ("c", {"fingerprint": ""})):
        buyer = LabelBuyer(Function(len_of, name="length", **given), ledger=str(tmp_path / "ledger.sqlite"))
        with caplog.at_level(logging.WARNING):
            buyer.open(run)
        buyer.score(asked)
    assert "labeler.fingerprint='' uses the last of them" in caplog.text
    assert (buyer.counts.spent, buyer.counts.reused) == (0, 1)


def len_of(response: str) -> int:
    return len(response)


class Counting:
    """Keeps its argument under another name, so that all attributes are settings, and counts its calls."""

    name = "counting"

    def __init__(self, words: str) -> None:
        self.kept, self.calls = words, 0

    def score(self, items: Any) -> list[float]:
        self.calls += 1
        return [1.0] * len(items)


def test_what_a_class_counts_meanwhile_buys_no_label_twice(tmp_path: Path) -> None:
    labeler, asked = Counting("tea"), [Candidates(ITEMS[0][0], (ITEMS[0][1],))]
    for wrapped in (labeler, Noisy(Counting("cup"))):
        buyer = LabelBuyer(wrapped, ledger=str(tmp_path / "ledger.sqlite"))
        buyer.open("run")
        buyer.score(asked)
        buyer.score(asked)
    assert labeler.calls == 1
    assert buyer.counts.spent == 2
