"""Names of code: they follow what a function, a class or an object does, and nothing else."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from choosy.own_code import code_id

MODULE = '''
import functools
import math

import beside
from beside import cut

WORDS = ["good", "kind"]
MORE = [*WORDS, "calm"]
CACHE = {}

def clean(text):
    return text.lower()

def unused(text):
    return 0

def reward(prompt, response, scale=2):
    """Counts words."""
    CACHE[response] = 1
    return scale * sum(word in clean(response) for word in MORE)

def by_module(response):
    return beside.half(response)

def by_import(response):
    return cut(response)

@functools.lru_cache
def cached(response):
    return clean(response)

lone = lambda response: len(response)

class Base:
    def helps(self):
        return 1

class Counts(Base):
    weight = 3

    def __init__(self, power, *, name="counts"):
        self.power, self._name = power, name
        self.calls = 0

    def __call__(self, response):
        self.calls += 1
        return clean(response)

class Loads:
    def __init__(self, path):
        self.words = [path]

def enclosed(words):
    return lambda response: sum(word in response for word in words)
'''
BESIDE = "def half(text):\n    return len(text) / 2\n\ndef cut(text):\n    return text[:9]\n"
MADE = {  # what is named of the module
    **{name: lambda m, name=name: getattr(m, name) for name in ("reward", "by_module", "by_import", "cached", "lone")},
    "class": lambda m: m.Counts,
    "object": lambda m: m.Counts(2),
    "method": lambda m: m.Counts(2).__call__,
    "partial": lambda m: functools.partial(m.reward, scale=3),
    "enclosed": lambda m: m.enclosed(["a"]),
}


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module with some text replaced, and return the names of all that is named of it."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(old: str = "", new: str = "") -> dict[str, str]:
        assert old in MODULE + BESIDE
        for name, text in (("judges", MODULE), ("beside", BESIDE)):
            (tmp_path / f"{name}.py").write_text(text.replace(old, new) if old else text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        module = importlib.import_module("judges")
        return {name: code_id(make(module)) for name, make in MADE.items()}

    return of


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("def unused(text):\n    return 0", "def unused(text):\n    return 1", ""),
        ("    return scale *", "    # twice\n\n    return  scale  *", ""),
        ("    return scale *", "    return -scale *", "reward partial"),
        ("scale=2", "scale=4", "reward partial"),
        ('"good"', '"nice"', "reward partial"),
        (".lower()", ".upper()", "reward partial cached class object method"),
        ("len(text) / 2", "len(text) / 3", "by_module"),
        ("text[:9]", "text[:8]", "by_import by_module"),  # a module counts as a whole
        ("@functools.lru_cache\n", "@functools.lru_cache(maxsize=2)\n", "cached"),
        ("len(response)\n", "-len(response)\n", "lone"),
        ("weight = 3", "weight = 4", "class object method"),
        ("        return 1\n", "        return 2\n", "class object method"),
        ("word in response for", "word not in response for", "enclosed"),
    ],
)
def test_a_name_follows_the_code_that_is_used_and_no_other(ids: Any, old: str, new: str, changed: str) -> None:
    before, after = ids(), ids(old, new)
    assert {name for name in MADE if before[name] != after[name]} == {*changed.split()}
    assert len({*before.values()}) == len(before)


def test_a_name_follows_settings_and_not_what_is_counted_or_kept_meanwhile(ids: Any) -> None:
    ids()
    module = sys.modules["judges"]
    counts, again = module.Counts(2), module.Counts(2)
    before = code_id(module.reward), code_id(counts)
    counts("Why?")
    module.reward("a", "b")
    assert (code_id(module.reward), code_id(counts)) == before == (code_id(module.reward), code_id(again))
    assert len({code_id(module.Counts(2)), code_id(module.Counts(3)), code_id(module.Counts(2, name="other"))}) == 3
    assert code_id(module.Loads("one")) != code_id(module.Loads("two")), "the argument is kept under another name"
    assert code_id(module.enclosed(["a"])) != code_id(module.enclosed(["b"]))
    assert code_id(functools.partial(module.reward, scale=3)) != code_id(functools.partial(module.reward, scale=4))


def test_without_a_source_the_bytecode_counts_and_of_c_the_name() -> None:
    def typed(text: str) -> Any:
        given: dict[str, Any] = {}
        exec(text, given)
        return given["f"]

    one = "f = lambda text: text in {'a', 'b'}"
    assert code_id(typed(one)) == code_id(typed(one)) != code_id(typed(one.replace("'b'", "'c'")))
    assert code_id(typed("two = 2\nf = lambda text: two")) != code_id(typed("two = 3\nf = lambda text: two"))
    assert code_id(len) == code_id(len) != code_id(max)


def test_a_file_that_was_edited_after_its_import_does_not_lend_its_new_source(ids: Any, tmp_path: Path) -> None:
    ids()
    old = sys.modules["judges"].lone
    new_source = MODULE.replace("len(response)\n", "-len(response)\n")
    (tmp_path / "judges.py").write_text(new_source)
    stale = code_id(old)
    assert stale != ids("len(response)\n", "-len(response)\n")["lone"]
