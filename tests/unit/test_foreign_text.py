"""Text of others, such as of a model, a server or a file, is shown as text: it steers no terminal and is no code."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import files
from rich.table import Table
from rich.text import Text

from choosy.console import Terminal
from choosy.foreign import csv_text, visible
from choosy.labeling.exchange.command import stats_table
from choosy.terminal import exit_with, logger, say

ROOT = Path(__file__).resolve().parents[2]
STEERING = "[/old] :warning: \x1b[2J\x1b]0;title\x07\x9b2J\r\u202e"
SHOWN = r"[/old] :warning: \x1b[2J\x1b]0;title\x07\x9b2J\r\u202e"

MODULES = {  # of what writes to the terminal or writes CSV, the one module that may name it
    **dict.fromkeys(("print", "sys.exit", "sys.stdout.write", "sys.stderr.write"), "choosy.terminal"),
    **dict.fromkeys(("logging.getLogger", "warnings.warn", "rank_zero_warn", "rank_zero_info"), "choosy.terminal"),
    "Text.from_markup": "choosy.console",
    **dict.fromkeys(("csv.writer", "csv.DictWriter"), "choosy.foreign"),
}
TYPES = {"SystemExit": "choosy.terminal", "Console": "choosy.console"}  # which others may name, but not call
INNOCENT = {
    "sys.exit(130 if by_hand else status)": "a number",
    "sys.exit(Postponed.exit_code)": "a number",
    "SystemExit(128 + signum)": "a number",
    "logging.getLogger('matplotlib').setLevel(logging.WARNING)": "sets a level",
    "logging.getLogger(name).setLevel(logging.WARNING)": "sets a level",
    "logging.getLogger('alembic').setLevel(logging.WARNING)": "sets a level",
}


def ways_around(module: str, source: str) -> Iterator[str]:
    """Yield what a source names that only another module may, and what it calls so, unless it is in `INNOCENT`.

    Example:
        >>> list(ways_around("choosy.module", "rank_zero_only(print)(prompt)"))
        ['choosy.module: print']
    """
    tree = ast.parse(source)
    innocent = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node) in INNOCENT
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in innocent:
            continue
        if isinstance(node, ast.Name | ast.Attribute) and MODULES.get(name := ast.unparse(node), module) != module:
            yield f"{module}: {name}"
        if isinstance(node, ast.Call) and TYPES.get(ast.unparse(node.func), module) != module:
            yield f"{module}: {ast.unparse(node)}"


def test_no_text_goes_around_the_functions_that_make_it_safe() -> None:
    found = [way for module, path in files(ROOT).items() for way in ways_around(module, path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "print(prompt)",
        "rank_zero_only(print)(prompt)",
        "sys.exit(str(error))",
        "raise SystemExit(str(error))",
        "log = logging.getLogger(__name__)",
        "out = Console(file=file)",
        "csv.writer(file).writerow(row)",
    ],
)
def test_a_way_around_them_is_found(line: str) -> None:
    assert len([*ways_around("choosy.module", line)]) == 1


def test_every_page_is_escaped() -> None:
    """Every template of Jinja escapes what is put in, and none takes a text for HTML."""
    made = [
        {given.arg: ast.unparse(given.value) for given in node.keywords}
        for path in files(ROOT).values()
        if "from jinja2 import" in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Template", "Environment")
    ]
    assert [given.get("autoescape") for given in made] == ["True", "True"]
    pages = [path for kind in ("*.j2", "*.js") for path in (ROOT / "src").rglob(kind)]
    assert len(pages) > 4
    unescaped = re.compile(r"\|\s*safe|autoescape|Markup|innerHTML|outerHTML|insertAdjacentHTML|document\.write")
    assert [path.name for path in pages if unescaped.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "text", ["plain", "línea – “ok”\n\tnext", "日本\u3000語", "👩\u200d🔬", "می\u200cخواهم", "a\xa0b"]
)
def test_what_people_write_stays(text: str) -> None:
    assert visible(text) == text


def test_every_control_character_is_written_as_its_escape() -> None:
    for code in (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066, 0xD800, 0xFEFF):
        assert visible(f"a{chr(code)}") == "a" + chr(code).encode("unicode_escape").decode()


def test_what_is_printed_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(STEERING)
    say(STEERING, file=sys.stderr, end="")
    assert capsys.readouterr() == (f"{SHOWN}\n", SHOWN)


def test_the_sentence_that_ends_a_process_steers_nothing() -> None:
    with pytest.raises(SystemExit) as stop:
        exit_with(STEERING)
    assert stop.value.code == SHOWN


def test_what_is_logged_steers_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = logger("choosy.of_this_test")
    log.warning("said %s", STEERING)
    log.warning(STEERING)
    assert caplog.messages == [f"said {SHOWN}", SHOWN]


@pytest.mark.parametrize("shown", [STEERING, Text(STEERING)], ids=["text", "rich text"])
def test_what_rich_prints_steers_nothing(shown: str | Text) -> None:
    out = Terminal(file=io.StringIO(), width=100)
    out.print(shown)
    table = Table("name", "count")
    table.add_row(shown, "1")
    out.print(table)
    printed = out.file.getvalue()  # type: ignore[attr-defined]
    assert printed == visible(printed)
    assert printed.count(r"[/old] :warning: \x1b[2J\x1b]0") == 2


def test_a_column_is_as_wide_as_what_is_shown() -> None:
    out = Terminal(file=io.StringIO(), width=100)
    table = Table("name", "count")
    table.add_row("\x1b" * 5, "17")
    shown = r"\x1b" * 5
    out.print(table)
    assert f"{shown} │ 17" in out.file.getvalue()  # type: ignore[attr-defined]


def test_the_name_of_a_labeler_is_shown_in_statistics() -> None:
    out = Terminal(file=io.StringIO(), width=200)
    row = {"labeler": STEERING, "fingerprint": "f", "verdict": "first", "judgements": 1, "cost": 0.0, "annotator": None}
    out.print(stats_table("Labelers", ("labeler", "fingerprint"), [row | {"kind": "compare", "score": None}]))
    assert SHOWN in out.file.getvalue()  # type: ignore[attr-defined]


def test_no_cell_of_csv_is_a_formula() -> None:
    assert csv_text(["=a"], [{"=a": "@b"}, {"=a": -1.5}, {"=a": "c\rd"}]) == "'=a\n'@b\n-1.5\n\"c\rd\"\n"


def test_a_terminal_of_few_letters_shows_the_others_as_escapes() -> None:
    few = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = r"from choosy.terminal import say, show_any_letter; show_any_letter(); say('a \u2013 b')"
    done = subprocess.run([sys.executable, "-c", code], env=few, capture_output=True, text=True, check=True)
    assert done.stdout == "a \\u2013 b\n"
