"""Convert rows of the known data formats to prompts or candidates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from choosy.data.cells import (
    Asked,
    as_json,
    as_number,
    as_weight,
    parsed,
    shown,
    text_or_turns,
    tools,
    transcript,
    turns,
)
from choosy.types import Candidates, Message, Prompt, Response, content_id

Row = dict[str, Any]
Split = tuple[Asked, list[tuple[Asked, float]]]  # what is asked, and the answers, a text or turns, with gold scores

WHOLE = ("messages", "conversations", "conversation", "trajectory")  # which may end with an answer
PROMPTS = ("prompt", *WHOLE, "instruction", "question", "query", "problem", "context", "history", "input")
SYSTEMS = ("system", "system_prompt")
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "pixel_values")
PAIRS = (
    *(("chosen", "rejected"), ("chosen_response", "rejected_response")),
    *(("preferred", "dispreferred"), ("response_j", "response_k")),
)
RATINGS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
TEXTS = ("text", "response", "completion", "answer", "content", "output")  # of a scored answer, in a list of objects
SCORES = ("score", "overall_score", "reward", "rating", "rank")
LISTS = ("responses", "completions", "answers", "generations")
LISTED_SCORES = ("scores", "ratings", "rating", "rewards", "ranks", "rank")

RENAME = "rename a column with data.reader.columns={NAME:prompt}"
SAME = "fewer than two different responses"
EMPTY = "an empty response"
TORN = "one response with two scores"


class Untrainable(ValueError):
    """A well-formed row that compares nothing, such as two equal responses; the readers count and skip it."""


class Cells(Row):
    """A row that remembers which of its columns were read: by `row[column]`, which `row.get(column)` is not."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read = {"id"}
        self.parts: dict[str, str] = {}  # what of a column that was read is not used, with the reason

    def __getitem__(self, column: str) -> Any:
        self.read.add(column)
        return super().__getitem__(column)

    def unread(self) -> Row:
        """Return the filled columns that were not read."""
        return {column: self.get(column) for column in _filled(self, self) if column not in self.read}


# -- the formats: each splits a row into what is asked and the scored answers -------------------------------------


def _pair(row: Row, better: str, worse: str) -> Split:
    """TRL, distilabel, Argilla, HH-RLHF: a preferred and another response, with or without their prompt."""
    if not row.keys() & {*PROMPTS} and all(isinstance(row[c], str) and not _turns(row[c], c) for c in (better, worse)):
        asked, texts = _shared_words(row, row[better], row[worse])
    else:
        asked, texts = _both(row, better, worse)
    return asked, list(zip(texts, _ratings(row), strict=True))


def _both(row: Row, first: str, second: str) -> tuple[Asked, list[Asked]]:
    """Two answers to the prompt, or two conversations that begin with the same turns."""
    whole = [_turns(row[column], column) for column in (first, second)]
    if all(whole) and not all(said[0].role == "assistant" for said in whole):
        return _shared_turns(row, *whole)
    return _asked(row), [_answer(row[column], column) for column in (first, second)]


def _ratings(row: Row) -> tuple[float, float]:
    columns = next((columns for columns in RATINGS if _filled(row, columns)), None)
    if columns is None:
        return 1.0, 0.0
    golds = _number(row, columns[0]), _number(row, columns[1])
    if golds[0] < golds[1]:
        raise ValueError(f"{columns[0]} is below {columns[1]}; correct it or drop both columns.")
    return golds


def _shared_turns(row: Row, first: tuple[Message, ...], second: tuple[Message, ...]) -> tuple[Asked, list[Asked]]:
    """Conversations: what both start with is the prompt; a prompt column that says the same is read."""
    shared = _shared(first[:-1], second[:-1])
    while shared and first[shared - 1].role == "assistant":  # of which all turns are trained on
        shared -= 1
    if not shared:
        raise Untrainable("conversations with different first turns")
    asked, answers = first[:shared], [_completion(first[shared:]), _completion(second[shared:])]
    for column in _filled(row, (*PROMPTS, *SYSTEMS)):
        said = _as_chat(text_or_turns(row.get(column), column))
        words = [said] if isinstance(said, str) else [turn.content for turn in said]
        known = {turn.content.strip() for turn in (*first, *second)}
        _ = row[column] if {word.strip() for word in words} <= known else None
    return asked, answers


def _shared_words(row: Row, chosen: str, rejected: str) -> tuple[Asked, list[Asked]]:
    """Plain strings alone: the words that both start with are the prompt; the responses keep the space after."""
    known = {*chain(*PAIRS, *RATINGS), "id"}
    if more := [c for c in _filled(row, row) if c not in known and not isinstance(row.get(c), int | float)]:
        raise ValueError(f"{_no_prompt(row)}, if {more[0]} holds the prompt.")
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


def _list(row: Row, column: str) -> Split:
    """UltraFeedback, Nectar, NeMo-RL, distilabel: a list of scored or ranked answers; rank counts down."""
    items, scores = parsed(row[column]), next(iter(_filled(row, LISTED_SCORES)), None)
    if scores is not None and isinstance(items, list) and not any(isinstance(item, dict) for item in items):
        numbers = parsed(row[scores])
        if not isinstance(numbers, list) or len(numbers) != len(items):
            raise ValueError(f"{scores} must be a list of {len(items)} numbers, one for each of {column}.")
        items = [{"text": text, scores.rstrip("s"): number} for text, number in zip(items, numbers, strict=True)]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{column} must be a list of objects with text and score.")
    scored = []
    for index, item in enumerate(items):
        text, score = (next(iter(_filled(item, names)), names[0]) for names in (TEXTS, SCORES))
        try:
            number = as_number(item.get(score), score)
            scored.append((_answer(item.get(text), text), 0.0 - number if score == "rank" else number))  # and not -0.0
        except Untrainable:
            raise
        except ValueError as error:
            raise ValueError(f"{column}[{index}]: {error}") from error
    return _asked(row, (*PROMPTS,)), scored


def _shp(row: Row, first: str, second: str, verdict: str) -> Split:
    """SHP: two answers to a post with their votes; labels is 1 where A is preferred."""
    label, golds = _number(row, verdict), [_number(row, "score_A"), _number(row, "score_B")]
    if label not in (0, 1) or (golds[0] > golds[1], golds[0] < golds[1]) != (label == 1, label == 0):
        raise ValueError("score_A and score_B contradict labels (1: A is better, 0: B); correct it.")
    return _asked(row, ("history",)), [(_answer(row[first], first), golds[0]), (_answer(row[second], second), golds[1])]


def _two(row: Row, first: str, second: str, verdict: str, *, words: dict[str, float]) -> Split:
    """PKU-SafeRLHF, HelpSteer3, Chatbot Arena: two answers, or two conversations, and which is better."""
    said = row[verdict]
    if verdict == "overall_preference":  # below 0 where the first is better
        share = 0.5 if (number := _number(row, verdict)) == 0 else float(number < 0)
    elif (word := str(said).strip().lower().removesuffix(".0")) in words:
        share = words[word]
    else:
        raise ValueError(f"{verdict} must be one of {', '.join(words)}, found {said!r:.20}.")
    golds = {1.0: (1.0, 0.0), 0.0: (0.0, 1.0), 0.5: (0.5, 0.5)}[share]
    asked, texts = _both(row, first, second)
    return asked, list(zip(texts, golds, strict=True))


def _unpaired(row: Row, answer: str, verdict: str) -> Split:
    """TRL's unpaired preferences: {prompt, completion, label}; label says whether the completion is good."""
    goods = {"true": 1.0, "1": 1.0, "false": -1.0, "0": -1.0}
    said = str(row[verdict]).strip().lower().removesuffix(".0")
    if said not in goods:
        raise ValueError(f"{verdict} must be true (a good completion) or false, found {row[verdict]!r:.20}.")
    if answer not in WHOLE:
        return _asked(row), [(_answer(row[answer], answer), goods[said])]
    *asked, last = turns(parsed(row[answer]), answer)
    return tuple(asked), [(_completion((last,)), goods[said])]


FIRST = {"0": 1.0, "1": 0.0}
NAMES = {"model_a": 1.0, "a": 1.0, "model_b": 0.0, "b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5}
FORMATS: tuple[tuple[tuple[str, ...], Callable[..., Split]], ...] = (
    *((columns, _pair) for columns in PAIRS),
    *(((column,), _list) for column in LISTS),
    (("human_ref_A", "human_ref_B", "labels"), _shp),
    (("response_0", "response_1", "better_response_id"), partial(_two, words=FIRST)),
    (("response1", "response2", "overall_preference"), partial(_two, words={})),
    (("conversation_a", "conversation_b", "winner"), partial(_two, words=NAMES)),
    (("response_a", "response_b", "winner"), partial(_two, words=NAMES)),
    (("completion", "label"), _unpaired),
    *(((column, label), _unpaired) for column in WHOLE for label in ("label", "kto_tag")),
)
Format = tuple[tuple[str, ...], Callable[..., Split]]


def format_of(row: Row) -> Format | None:
    """Return the preference format that a row has, if any."""
    return next((known for known in FORMATS if len(_filled(row, known[0])) == len(known[0])), None)


def _filled(row: Row, columns: Iterable[str]) -> list[str]:
    """Those of the columns that have a value: the columns of other rows come as None, pandas' as nan."""
    return [column for column in columns if (value := row.get(column)) is not None and value == value]


def _columns_found(row: Row) -> str:
    return "found " + (", ".join(map(str, row)) or "no columns")


def _no_prompt(row: Row, columns: Sequence[str] = PROMPTS) -> str:
    return f"no prompt; wanted a column {' or '.join(columns)}, {_columns_found(row)}; {RENAME}"


def _number(row: Row, column: str) -> float:
    return as_number(row[column], column) if column in row else as_number(None, column)


# -- what is asked, and what is answered -------------------------------------------------------------------------


def _asked(row: Row, columns: Sequence[str] = PROMPTS) -> Asked:
    if not (filled := _filled(row, columns)):
        if blank := [column for column in columns if column in row]:
            raise ValueError(f"the cell {blank[0]} is empty; fill it in or remove the row.")
        raise ValueError(f"{_no_prompt(row, columns)}.")
    asked = text_or_turns(row[filled[0]], filled[0])
    if isinstance(asked, str) and "input" in _filled(row, ("input",)) and filled[0] == "instruction":
        asked = "\n".join(part for part in (asked, str(row["input"])) if part.strip())  # as LLaMA-Factory has it
    if isinstance(asked, str) and isinstance(before := parsed(row.get("history")), list) and filled[0] != "history":
        pairs = [pair for pair in before if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) < len(before):
            raise ValueError("history must be a list of questions with their answers.")
        _ = row["history"]
        earlier = [
            Message(role, str(said)) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)
        ]
        return (*earlier, Message("user", asked)) if earlier else asked
    return asked


def _answer(value: Any, column: str) -> Asked:
    said = text_or_turns(value, column)
    return said if isinstance(said, str) else _completion(said)


def _turns(value: Any, column: str) -> tuple[Message, ...]:
    """The turns of a conversation, which may be a transcript; none of another text."""
    said = text_or_turns(value, column)
    return transcript(said) if isinstance(said, str) else said


def _as_chat(asked: Asked) -> Asked:
    """What is asked, a transcript as its turns, without the mark of the answer to come."""
    said = transcript(asked) if isinstance(asked, str) else ()
    return (said if said[-1].content or said[-1].role != "assistant" else said[:-1]) if said else asked


def _completion(said: tuple[Message, ...]) -> Asked:
    """An answer: the text of a single turn, or the turns where there are several or one calls a tool."""
    if len(said) == 1 and said[0].role != "assistant":
        raise ValueError(f"a response must be an assistant turn, found one of {said[0].role}.")
    if not said[0].role == said[-1].role == "assistant":
        raise Untrainable("an answer that does not begin and end with an assistant turn")
    plain = [turn.content for turn in said if turn.role == "assistant" and "tool_calls" not in turn.fields]
    if len(said) > 1 and not all(map(str.strip, plain)):
        raise Untrainable(EMPTY)
    return said if len(said) > 1 or not plain else plain[0]


def _prompt(asked: Asked, row: Row, as_chat: bool, texts: Iterable[str] = ()) -> Prompt:
    conversation = not isinstance(asked, str)
    asked = _as_chat(asked) if as_chat else asked
    if media := [column for column in _filled(row, MEDIA) if row.get(column) not in ([], "", {})]:
        raise ValueError(f"{media[0]} is filled, and the policy reads text alone; leave such rows out.")
    said = _with_system((Message("user", asked),) if isinstance(asked, str) else asked, asked, row, as_chat)
    if said[-1].role == "assistant":
        raise ValueError("the prompt ends with an assistant turn; end it with a user turn.")
    if not said[-1].content.strip():
        raise ValueError("the prompt is empty; fill it in or remove the row.")
    name = row["id"] if "id" in _filled(row, ("id",)) else None
    name = int(name) if isinstance(name, float) and name.is_integer() else name  # pandas' of a column with a gap
    if name is not None and not (type(name) is int or (isinstance(name, str) and name.strip())):
        raise ValueError(f"id must be a non-empty string or an integer, found {name!r:.20}.")
    messages = () if isinstance(asked, str) and not as_chat else said
    keywords = _keywords(row) if messages else {}
    text = shown(said, keywords.get("tools", ()))
    parts = [part for turn in messages for part in (turn.role, turn.content, *filter(None, [turn.more]))] or [text]
    known = as_json(keywords) if keywords else ""
    key = content_id(*parts, *texts, *filter(None, [known])) if name is None else str(name)
    columns = {column: row.get(column) for column in _filled(row, row) if column not in ("prompt", "completion", "id")}
    return Prompt(key, text, messages, known, columns, conversation, blank=row.keys() - {*_filled(row, row)})


def _keywords(row: Row) -> dict[str, Any]:
    """What the row gives the chat template beside the conversation."""
    found = parsed(row["chat_template_kwargs"]) if _filled(row, ("chat_template_kwargs",)) else {}
    if not isinstance(found, dict):
        raise ValueError(f"chat_template_kwargs must be an object, found {found!r:.20}.")
    available = tools(row["tools"]) if _filled(row, ("tools",)) else []
    return {**found, "tools": available} if available else dict(found)


def _with_system(said: tuple[Message, ...], asked: Asked, row: Row, as_chat: bool) -> tuple[Message, ...]:
    """The turns after the system turn that a column of the row holds; a text that is continued has none."""
    filled = _filled(row, SYSTEMS)
    if not filled or (isinstance(asked, str) and not as_chat):
        return said
    system = row[filled[0]]
    if not isinstance(system, str):
        raise ValueError(f"{filled[0]} must be a text, found {type(system).__name__}.")
    if said[0].role == "system" and said[0].content.strip() != system.strip():
        raise ValueError(f"{filled[0]} differs from the system turn of the conversation; drop one of them.")
    return said if said[0].role == "system" or not system.strip() else (Message("system", system), *said)


def to_prompt(row: Row, *, as_chat: bool = True) -> Prompt:
    """The prompt of a row: prompt-only, conversational, ShareGPT, or that of any known preference format.

    With `as_chat` a plain string becomes the user turn of a chat; else the policy continues it unchanged. Of a whole
    conversation the last answer is left out.

    Example:
        >>> to_prompt({"id": 7, "prompt": "Hello?"}, as_chat=False)
        Prompt(id='7', text='Hello?', messages=(), keywords='')
    """
    row = row if isinstance(row, Cells) else Cells(row)
    known = None if _filled(row, PROMPTS) else format_of(row)
    if known:
        asked, _ = known[1](row, *known[0])
    else:
        asked = _asked(row)
        if not isinstance(asked, str) and _filled(row, PROMPTS)[0] in WHOLE:
            while len(asked) > 1 and asked[-1].role == "assistant":
                asked = asked[:-1]
                row.parts[f"the last answer in {_filled(row, PROMPTS)[0]}"] = "a prompt ends before it"
    return _prompt(asked, row, as_chat)


def to_candidates(row: Row, *, as_chat: bool = True) -> Candidates:
    """The prompt of a preference row with its responses: empty ones left out, repeated ones once.

    An unpaired row has one response, whose gold score is 1 if it is good and -1 if it is bad.

    Raises:
        Untrainable: If nothing is left to compare, or one response has two scores.
        ValueError: If the row is malformed.
    """
    row = row if isinstance(row, Cells) else Cells(row)
    if (known := format_of(row)) is None:
        raise _unknown(row)
    columns, split = known
    weight = as_weight(row["weight"]) if _filled(row, ("weight",)) else None
    asked, answers = split(row, *columns)
    if as_chat and _as_chat(asked) is not asked:  # the words after a transcript's last mark begin with a space
        answers = [(said.strip() if isinstance(said, str) else said, gold) for said, gold in answers]
    responses: dict[str, Response] = {}
    for said, gold in answers:
        one = Response(said, gold=gold) if isinstance(said, str) else Response(shown(said), gold=gold, turns=said)
        text, first = one.text, responses.setdefault(one.text.strip(), one)
        if text.strip() and first.gold != gold and len(answers) > 2:
            raise Untrainable(TORN)
    empty = responses.pop("", None)
    if len(responses) < (1 if split is _unpaired else 2):
        raise Untrainable(EMPTY if empty and (responses or split is _unpaired) else SAME)
    kept = tuple(responses.values())
    if not as_chat and isinstance(asked, str) and any(r.turns for r in kept):
        raise Untrainable("an answer of several turns to a plain text")
    return Candidates(_prompt(asked, row, as_chat, [r.text for r in kept]), kept, weight=weight)


def _unknown(row: Row) -> ValueError:
    """The error of a row that is of no format: one of its columns is empty, or it has others."""
    for columns, _ in FORMATS:
        empty = [column for column in columns if column in row and not _filled(row, (column,))]
        if empty and all(column in row for column in columns):
            return Untrainable(f"{empty[0]} is null")
    ways = {split: columns for columns, split in reversed(FORMATS)}  # of columns with several names the usual ones
    wanted = "; ".join(map(" + ".join, reversed(ways.values())))
    lacks = [c for columns, _ in FORMATS if _filled(row, columns) for c in columns if c not in row]
    wanted = f"{lacks[0]} is missing" if lacks else f"wanted {wanted}, and prompts alone go without data=offline"
    return ValueError(
        f"no known preference format; {wanted}; {_columns_found(row)}; {RENAME.replace('prompt', 'chosen')}."
    )
