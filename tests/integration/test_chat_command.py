"""`choosy chat`: answers appear while they are made, and Ctrl-C ends one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextStreamer

from choosy import chat
from choosy.foreign import visible
from choosy.models.tokens import Tokens
from choosy.tuned_model import merge

Talk = Callable[..., list[str]]


class Screen:
    """A terminal that keeps each piece that is written to it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def write(self, text: str) -> None:
        self.pieces.append(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The turns that each answer was made for."""
    turns: list[list[tuple[str, str]]] = []
    encode = Tokens.encode_prompt

    def kept(self: Any, prompt: Any) -> Any:
        turns.append([(turn.role, turn.content) for turn in prompt.messages])
        return encode(self, prompt)

    monkeypatch.setattr(Tokens, "encode_prompt", kept)
    return turns


@pytest.fixture
def run_dir(play: Any) -> Path:
    """The folder of a tiny run."""
    folder: Path = play("rounds=1", "data.heldout=null").run_dir
    return folder


@pytest.fixture
def talk(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A chat with a tiny model, of lines that are typed; returns the pieces that were written."""
    monkeypatch.setattr(chat, "LONGEST", 60)

    def talked(*lines: str, to: Path = run_dir, alone: bool = True) -> list[str]:
        typed: Iterator[str] = iter([*lines, ""])
        monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        torch.manual_seed(0)
        chat.chat([str(to), *(["--alone"] if alone else [])])
        return screen.pieces

    return talked


def test_an_answer_is_written_while_it_is_made_and_is_a_turn_of_the_next(talk, asked, monkeypatch):
    written: list[int] = []  # pieces at each token
    put = TextStreamer.put

    def counted(self: Any, value: Any) -> None:
        put(self, value)
        written.append(len(sys.stdout.pieces))  # type: ignore[attr-defined]

    monkeypatch.setattr(TextStreamer, "put", counted)
    pieces = talk("Hello!", "And then?")
    assert len(set(written[: len(written) // 2])) > 2, "all was written at the end"
    first, second = asked
    assert first == [("user", "Hello!")]
    assert [role for role, _ in second] == ["user", "assistant", "user"]
    assert second[1][1]
    assert visible(second[1][1]) in "".join(pieces)


def test_ctrl_c_ends_an_answer_and_what_was_said_stays(talk, asked, monkeypatch):
    put, calls = TextStreamer.put, [0]

    def stops(self: Any, value: Any) -> None:
        put(self, value)
        calls[0] += 1
        if calls[0] == 5:  # the prompt, then four tokens
            raise KeyboardInterrupt

    monkeypatch.setattr(TextStreamer, "put", stops)
    talk("Hello!", "And then?")
    assert [role for role, _ in asked[1]] == ["user", "assistant", "user"]
    assert 1 <= len(asked[1][1][1]) <= 4


def test_words_are_taken_back_and_the_model_instructed(talk, asked):
    pieces = talk("One", "/undo", "/system Be brief.", "Two", "/clear", "Three", "/what")
    assert asked == [[("user", "One")], *([("system", "Be brief."), ("user", n)] for n in ("Two", "Three"))]
    assert chat.HELP in pieces


def test_without_a_chat_template_nothing_is_remembered_and_that_is_said(talk, asked, monkeypatch):
    monkeypatch.setattr(Tokens, "chat", None)
    pieces = "".join(talk("One", "/system Be brief.", "Two"))
    assert asked == [[], []]
    assert f"an empty line ends it, {chat.ALONE}." in pieces
    assert f"It is not done: {chat.ALONE}." in pieces


def test_a_full_window_is_named_and_the_chat_goes_on(talk, asked):
    pieces = talk("x" * 2000, "Hello!")
    assert "The conversation fills the context window of 1024 tokens; type /undo or /clear." in pieces
    assert asked[1] == [("user", "Hello!")]


def test_the_model_that_merge_wrote_is_talked_to(talk, asked, run_dir, tmp_path):
    merge([str(run_dir), str(tmp_path / "the whole model")])
    talk("Hello!", "And then?", to=tmp_path / "the whole model")
    assert asked[0] == [("user", "Hello!")]
    assert [role for role, _ in asked[1]] == ["user", "assistant", "user"]


def test_the_start_answers_beside_the_tuned_model(talk, asked, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = "".join(talk("Hello!", "And then?", alone=False))
    assert len(asked) == 4, "both are asked each time"
    assert asked[0] == asked[1] == [("user", "Hello!")]
    assert asked[2] == asked[3], "the conversation goes on with the tuned model's answer"
    assert shown.startswith("Type to the tuned model and the start;")
    assert [line.split() for line in shown.splitlines()].count(["start", "tuned"]) == 2
    assert all(visible(line)[:4] in shown for line in asked[2][1][1].splitlines())
