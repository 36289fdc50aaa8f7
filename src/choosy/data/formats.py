"""Convert rows of the known data formats to prompts or candidates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from choosy.types import Candidates, Message, Prompt, Response, content_id

Row = dict[str, Any]
Asked = str | tuple[Message, ...]
Split = tuple[Asked, list[tuple[str, float]]]  # what is asked, and the answers with their gold scores

PROMPT_COLUMNS = ("prompt", "messages", "conversations")
RATINGS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
PARTED = "the conversations part before their last answer"
SAME = "fewer than two different responses"
EMPTY = "an empty response"
TORN = "one response with two scores"


class Untrainable(ValueError):
    """A well-formed row that compares nothing, such as two equal responses; the readers count and skip it."""


def _pair(row: Row) -> Split:
    """TRL, distilabel, Argilla, HH-RLHF: a preferred and another response, with or without their prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    asked: Asked
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        asked, texts = _shared_turns(row)
    elif _filled(row, PROMPT_COLUMNS):
        asked, texts = _asked(row), [chosen, rejected]
    elif all(re.match(r"\s*Human:", text) for text in (chosen, rejected)):
        asked, texts = _shared_transcript(chosen, rejected)
    else:
        asked, texts = _shared_words(chosen, rejected)
    return asked, list(zip(texts, _ratings(row), strict=True))


def _ratings(row: Row) -> tuple[float, float]:
    columns = next((columns for columns in RATINGS if _filled(row, columns)), None)
    if columns is None:
        return 1.0, 0.0
    golds = _number(row, columns[0]), _number(row, columns[1])
    if golds[0] < golds[1]:
        raise ValueError(f"{columns[0]} is below {columns[1]}; correct it or drop both columns.")
    return golds


def _shared_turns(row: Row) -> tuple[Asked, list[str]]:
    """Message lists: the turns that both start with are the prompt, unless they start with the answer."""
    chosen, rejected = (_messages(row[column], column) for column in ("chosen", "rejected"))
    if chosen[0].role == "assistant":
        return _asked(row), [_only_turn(chosen), _only_turn(rejected)]
    shared = _shared(chosen[:-1], rejected[:-1])
    if not shared:
        raise ValueError("chosen and rejected share no first turn; they must answer one prompt.")
    return chosen[:shared], [_only_turn(chosen[shared:]), _only_turn(rejected[shared:])]


def _shared_transcript(chosen: str, rejected: str) -> tuple[Asked, list[str]]:
    """HH-RLHF strings: the turns up to the last "Assistant:" that both have are the prompt."""
    start, mark, _ = chosen[: _shared(chosen, rejected)].rpartition("\n\nAssistant:")
    texts = [text[len(start + mark) :].strip() for text in (chosen, rejected)]
    if not mark or any(re.search(r"\n\n(Human|Assistant):", text) for text in texts):
        raise Untrainable(PARTED)
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + start.lstrip())[1:]
    roles = ({"Human": "user", "Assistant": "assistant"}[speaker] for speaker in parts[::2])
    turns = tuple(Message(role, text.strip()) for role, text in zip(roles, parts[1::2], strict=True))
    if turns[-1].role != "user" or not turns[-1].content:
        raise Untrainable("no human turn before the last answer")
    return turns, texts


def _shared_words(chosen: str, rejected: str) -> tuple[Asked, list[str]]:
    """Plain strings: the words that both start with are the prompt; the responses keep the space after."""
    common = chosen[: _shared(chosen, rejected)]
    if common in (chosen, rejected):
        raise Untrainable(SAME if chosen == rejected else EMPTY)
    words = re.match(r"(.*\S)(?=\s)", common, re.DOTALL)
    if words is None:
        raise ValueError("chosen and rejected share no first word; add a prompt column.")
    return words[0], [chosen[words.end() :], rejected[words.end() :]]


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items two sequences have in common from the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _responses(row: Row) -> Split:
    """Any number of scored responses: {prompt, responses: [{text, score}]}."""
    return _asked(row), _scored(row, "responses", "text", "score")


def _ultrafeedback(row: Row) -> Split:
    """UltraFeedback: {instruction, completions: [{response, overall_score}]}."""
    return _asked(row, "instruction"), _scored(row, "completions", "response", "overall_score")


def _nemo(row: Row) -> Split:
    """NeMo-RL: {context: messages, completions: [{rank, completion: messages}]}; rank 0 is the best."""
    ranked = _scored(row, "completions", "completion", "rank")
    return _asked(row, "context"), [(text, 0.0 - rank) for text, rank in ranked]  # and not -0.0


def _shp(row: Row) -> Split:
    """SHP: two answers to a post with their votes; labels is 1 where A is preferred."""
    label = _number(row, "labels")
    score_a, score_b = _number(row, "score_A"), _number(row, "score_B")
    if label not in (0, 1) or (score_a > score_b, score_a < score_b) != (label == 1, label == 0):
        raise ValueError("score_A and score_B contradict labels (1: A is better, 0: B); correct it.")
    texts = (_answer(row[column], column) for column in ("human_ref_A", "human_ref_B"))
    return _asked(row, "history"), list(zip(texts, (score_a, score_b), strict=True))


def _unpaired(row: Row) -> Split:
    """TRL's unpaired preferences: {prompt, completion, label}; label says whether the completion is good."""
    label = row["label"]
    if label not in (0, 1):
        raise ValueError(f"label must be true (a good completion) or false, found {label!r:.20}.")
    return _asked(row), [(_answer(row["completion"], "completion"), 1.0 if label else -1.0)]


FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row], Split]], ...] = (
    (("chosen", "rejected"), _pair),
    (("responses",), _responses),
    (("instruction", "completions"), _ultrafeedback),
    (("context", "completions"), _nemo),
    (("history", "human_ref_A", "human_ref_B"), _shp),
    (("completion", "label"), _unpaired),
)


def _format_of(row: Row) -> Callable[[Row], Split] | None:
    return next((split for columns, split in FORMATS if len(_filled(row, columns)) == len(columns)), None)


def _filled(row: Row, columns: Iterable[str]) -> list[str]:
    """Those of the columns that have a value: the columns of other rows come as None."""
    return [column for column in columns if row.get(column) is not None]


def _columns_found(row: Row) -> str:
    return "found " + (", ".join(map(str, row)) or "no columns")


def _asked(row: Row, *columns: str) -> Asked:
    columns = columns or PROMPT_COLUMNS
    filled = _filled(row, columns)
    if not filled:
        raise ValueError(f"no prompt; wanted a column {' or '.join(columns)}, {_columns_found(row)}.")
    value = row[filled[0]]
    return value if isinstance(value, str) else _messages(value, filled[0])


def _answer(value: Any, column: str) -> str:
    return value if isinstance(value, str) else _only_turn(_messages(value, column))


def _only_turn(turns: tuple[Message, ...]) -> str:
    if len(turns) > 1:
        raise Untrainable(PARTED)
    if turns[0].role != "assistant":
        raise ValueError(f"a response must be an assistant turn, found one of {turns[0].role}.")
    return turns[0].content


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    """Messages of role and content, or ShareGPT's from and value; a single one needs no list."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else type(value).__name__
        raise ValueError(f"{column} must be a string or a list of messages, found {found}.")
    messages = []
    for turn in turns:
        turn = turn if isinstance(turn, dict) else {}
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"a message in {column} must have role and content, both strings.")
        messages.append(Message({"human": "user", "gpt": "assistant"}.get(role, role), content))
    return tuple(messages)


def _scored(row: Row, column: str, text: str, score: str) -> list[tuple[str, float]]:
    items = row[column]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{column} must be a list of objects with {text} and {score}.")
    scored = []
    for index, item in enumerate(items):
        try:
            scored.append((_answer(item.get(text), text), _number(item, score)))
        except Untrainable:
            raise
        except ValueError as error:
            raise ValueError(f"{column}[{index}]: {error}") from error
    return scored


def _number(row: Row, column: str) -> float:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = value if isinstance(value, float) else type(value).__name__
        raise ValueError(f"{column} must be a finite number, found {found}.")
    return float(value)


def _prompt(asked: Asked, row: Row, as_chat: bool, texts: Iterable[str] = ()) -> Prompt:
    turns = (Message("user", asked),) if isinstance(asked, str) else asked
    if turns[-1].role == "assistant":
        raise ValueError("the prompt ends with an assistant turn; end it with a user turn.")
    if not turns[-1].content.strip():
        raise ValueError("the prompt is empty; fill it in or remove the row.")
    name = row.get("id")
    if name is not None and not (type(name) is int or (isinstance(name, str) and name.strip())):
        raise ValueError(f"id must be a non-empty string or an integer, found {name!r:.20}.")
    alone = [turn.role for turn in turns] == ["user"]
    text = turns[0].content if alone else "\n".join(f"{turn.role}: {turn.content}" for turn in turns)
    messages = () if isinstance(asked, str) and not as_chat else turns
    parts = [part for turn in messages for part in (turn.role, turn.content)] or [text]
    return Prompt(content_id(*parts, *texts) if name is None else str(name), text, messages)


def to_prompt(row: Row, *, as_chat: bool = True) -> Prompt:
    """The prompt of a row: prompt-only, conversational, ShareGPT, or that of any known preference format.

    With `as_chat` a plain string becomes the user turn of a chat; else the policy continues it unchanged.

    Example:
        >>> to_prompt({"id": 7, "prompt": "Hello?"}, as_chat=False)
        Prompt(id='7', text='Hello?', messages=())
    """
    split = None if _filled(row, PROMPT_COLUMNS) else _format_of(row)
    return _prompt(split(row)[0] if split else _asked(row), row, as_chat)


def to_candidates(row: Row, *, as_chat: bool = True) -> Candidates:
    """The prompt of a preference row with its responses: empty ones left out, repeated ones once.

    An unpaired row has one response, whose gold score is 1 if it is good and -1 if it is bad.

    Raises:
        Untrainable: If nothing is left to compare, or one response has two scores.
        ValueError: If the row is malformed.
    """
    if (split := _format_of(row)) is None:
        known = "; ".join(" + ".join(columns) for columns, _ in FORMATS)
        raise ValueError(f"no known preference format; wanted {known}; {_columns_found(row)}.")
    weight = None if row.get("weight") is None else _number(row, "weight")
    if weight is not None and weight <= 0:
        raise ValueError(f"weight must be positive, found {weight}; correct it or remove the row.")
    asked, answers = split(row)
    responses: dict[str, Response] = {}
    for text, gold in answers:
        first = responses.setdefault(text.strip(), Response(text=text, gold=gold))
        if text.strip() and first.gold != gold and len(answers) > 2:
            raise Untrainable(TORN)
    empty = responses.pop("", None)
    if len(responses) < (1 if split is _unpaired else 2):
        raise Untrainable(EMPTY if empty and (responses or split is _unpaired) else SAME)
    kept = tuple(responses.values())
    return Candidates(_prompt(asked, row, as_chat, [r.text for r in kept]), kept, weight=weight)
