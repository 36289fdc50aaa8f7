"""Labelers and questions that several tests of buying use."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from choosy.types import Candidates, Prompt, Response, Verdict


class Lengths:
    """Scores a response by its length, and records its questions."""

    name = "lengths"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        self.asked += [response.text for _, response in items]
        return [float(len(response.text)) for _, response in items]


class Longer:
    """Prefers the longer response, and records its questions."""

    name = "longer"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        self.asked += [(first.text, second.text) for _, first, second in items]
        return [_longer(first.text, second.text) for _, first, second in items]


def _longer(first: str, second: str) -> Verdict:
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


class Scripted:
    """Scores a response with a function of its text."""

    name = "scripted"

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        return [self.answer(response.text) for _, response in items]


def given(prompt: str, *responses: str) -> Candidates:
    return Candidates(Prompt(prompt, f"What about {prompt}?"), tuple(map(Response, responses)))


def rewards(candidates: Sequence[Candidates]) -> list[list[float | None]]:
    return [[response.reward for response in c.responses] for c in candidates]


def rows(path: Path, query: str = "SELECT * FROM labels") -> list[Any]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


FIVE = [(Prompt(f"p{i}", "Which?"), Response(f"a{i}"), Response(f"b{i}")) for i in range(5)]
