"""What stands in a cell of a data row: a text, the turns of a conversation, or a number."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from choosy.types import Message

Asked = str | tuple[Message, ...]

ROLE_FIELDS, CONTENT_FIELDS = ("role", "from", "speaker"), ("content", "value", "text")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "ai", "function_call"), "assistant"),
    "response": "assistant",
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
}
SPEAKERS = "(Human|User|Assistant|System)"
TRANSCRIPTS = (  # what a turn begins with in a text of several, and what may end it
    (rf"(?:^|\n\n){SPEAKERS}:", ""),  # HH-RLHF
    (rf"(?:^|\n){SPEAKERS}:", ""),
    (rf"\s*### ?{SPEAKERS}:", ""),  # Guanaco
    (r"\s*### ?(Instruction|Response):", ""),  # Alpaca
    (r"(?:^|\s+|</?s>\s*)(USER|ASSISTANT|SYSTEM):", "</s>"),  # Vicuna
    (r"\s*<\|im_start\|>(user|assistant|system)(?:\n|$)", r"<\|im_end\|>"),  # ChatML
    (r"\s*<\|start_header_id\|>(user|assistant|system)<\|end_header_id\|>", r"<\|eot_id\|>"),  # Llama 3
    (r"\s*<start_of_turn>(user|model)(?:\n|$)", "<end_of_turn>"),  # Gemma
    (r"\s*<\|(user|assistant|system)\|>", r"</s>|<\|end\|>"),  # Zephyr, Phi
)
BEGINNINGS = ("", "<s>", "<bos>", "<|begin_of_text|>")
LIKE_TURNS = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def parsed(value: Any) -> Any:
    """Return what the text of a list or an object says, in JSON or as Python writes it; else the value itself.

    Example:
        >>> parsed("[{'role': 'user'}]"), parsed('{"a": null}'), parsed("[sic]")
        ([{'role': 'user'}], {'a': None}, '[sic]')
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def text_or_turns(value: Any, column: str) -> Asked:
    """Return a cell's text, or its turns, which may be written as JSON."""
    found = parsed(value)
    if isinstance(value, str) and not _are_turns(found):
        if LIKE_TURNS.match(value):
            raise ValueError(f"{column} looks like messages, but is no JSON; write it as JSON.")
        return value
    return turns(found, column)


def _are_turns(value: Any) -> bool:
    """Whether a value that was parsed from text is a conversation, not a text about JSON."""
    some = value if isinstance(value, list) else [value]
    return bool(some) and all(
        isinstance(turn, dict) and turn.keys() & {*ROLE_FIELDS} and turn.keys() & {*CONTENT_FIELDS, "tool_calls"}
        for turn in some
    )


def transcript(text: str) -> tuple[Message, ...]:
    """Return the turns of a text that begins with a person's turn and has one of the assistant; else none.

    Example:
        >>> [m.role for m in transcript("Human: Hi\\n\\nAssistant: Hello.\\n\\nHuman: Bye\\n\\nAssistant:")]
        ['user', 'assistant', 'user', 'assistant']
    """
    for mark, end in TRANSCRIPTS:
        before, *parts = re.split(mark, text.strip())
        roles = [ROLES[speaker.lower()] for speaker in parts[::2]]
        if before in BEGINNINGS and roles and roles[0] != "assistant" and {"user", "assistant"} <= {*roles}:
            said = (re.sub(rf"\s*(?:{end})$", "", part.strip()) for part in parts[1::2])
            return tuple(map(Message, roles, said))
    return ()


def turns(value: Any, column: str) -> tuple[Message, ...]:
    """Return the messages of a cell, of role and content or as ShareGPT has them; a single one needs no list."""
    if isinstance(value, dict) and any(isinstance(value.get(field), list) for field in ROLE_FIELDS):
        filled = {name: cells for name, cells in value.items() if isinstance(cells, list)}  # a column for each field
        value = [dict(zip(filled, cells, strict=False)) for cells in zip(*filled.values(), strict=False)]
    found = [value] if isinstance(value, dict) else value
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else type(value).__name__
        raise ValueError(f"{column} must be a string or a list of messages, found {what}.")
    return tuple(_message(turn, column) for turn in found)


def _message(turn: Any, column: str) -> Message:
    turn = without_nulls(turn) if isinstance(turn, dict) else {}
    by, what = (next((field for field in fields if field in turn), "") for fields in (ROLE_FIELDS, CONTENT_FIELDS))
    role, content = turn.get(by), turn.get(what)
    more = {name: cell for name, cell in turn.items() if name not in (by, what)}
    if role == "function_call":  # LLaMA-Factory's
        called = parsed(content)
        more["tool_calls"], content = called if isinstance(called, list) else [called], None
    if calls := parsed(more.pop("tool_calls", None)):
        more["tool_calls"] = [_call(call, column) for call in (calls if isinstance(calls, list) else [calls])]
        content = content or ""
    thought = more.pop("reasoning_content", None)
    if not isinstance(role, str) or content is None:
        raise ValueError(f"a message in {column} must have role and content, both strings.")
    said = _content(content, column)
    said = f"<think>\n{str(thought).strip()}\n</think>\n\n{said}" if thought else said
    return Message(ROLES.get(role.lower(), role), said, as_json(more) if more else "")


def _content(value: Any, column: str) -> str:
    """Return a message's text, which may be in parts; a part that is no text is refused."""
    texts = []
    for part in value if isinstance(value, list) else [value]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
            raise ValueError(
                f"a message in {column} must have role and content, both strings or parts of text, and one has a part "
                f"of type {kind}; the policy reads text alone: leave such rows out."
            )
        texts.append(text)
    return "".join(texts)


def _call(call: Any, column: str) -> dict[str, Any]:
    """Return a tool call as chat templates take it, its arguments as an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool call in {column} must be an object with a name and arguments.")
    more = {name: cell for name, cell in call.items() if name in ("id", "type")}
    said = {"name": function["name"], "arguments": parsed(function.get("arguments", {}))}
    return {"type": "function", **more, "function": said}


def tools(value: Any) -> list[dict[str, Any]]:
    """Return the tools of a cell as chat templates take them: a list of JSON schemas, or their JSON text."""
    found = parsed(value) or []
    listed = [parsed(tool) for tool in (found if isinstance(found, list) else [found])]
    functions = [tool.get("function", tool) if isinstance(tool, dict) else None for tool in listed]
    if not all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
        raise ValueError("tools must be a list of objects, each with a name or a function that has one, or its JSON.")
    return [without_nulls(tool if "function" in tool else {"type": "function", "function": tool}) for tool in listed]


def without_nulls(value: Any) -> Any:
    """Return a value without the nulls in its objects, which Parquet has for the fields of other rows."""
    if isinstance(value, dict):
        return {name: without_nulls(cell) for name, cell in value.items() if cell is not None}
    return [without_nulls(cell) for cell in value] if isinstance(value, list) else value


def as_json(value: Any) -> str:
    """Write JSON with letters as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)


def as_number(value: Any, column: str) -> float:
    """Return a cell's finite number, which may be written as text, as in CSV."""
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        found = f"{value!r:.20}" if isinstance(value, str | float) else type(value).__name__
        raise ValueError(f"{column} must be a finite number, found {found}.")
    return number


def as_weight(value: Any) -> float:
    """Return a cell's positive number, the weight of a pair."""
    try:
        weight = as_number(value, "weight")
    except ValueError as error:
        raise ValueError(
            f"{error} If it is not the weight of a pair, type data.reader.columns={{weight:other}}."
        ) from None
    if weight <= 0:
        raise ValueError(f"weight must be positive, found {weight}; correct it or remove the row.")
    return weight


def shown(asked: Sequence[Message], available: Sequence[Any] = ()) -> str:
    """Return what a person or a labeler reads of a conversation: of a lone user turn its content, else every turn."""
    lines = [f"tools: {as_json(available)}"] if available else []
    for turn in asked:
        calls = json.loads(turn.more).get("tool_calls", []) if turn.more else []
        said = [turn.content] if turn.content or not calls else []
        said += [as_json(call["function"]) for call in calls]
        lines.append(f"{turn.role}: " + " ".join(said))
    return asked[0].content if len(lines) == 1 and asked[0].role == "user" else "\n".join(lines)
