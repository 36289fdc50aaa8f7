"""Every dialect of conversations, tools and columns that a row may speak; nothing of it is lost in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from choosy.data.formats import (
    FORMATS,
    LISTED_SCORES,
    MEDIA,
    PROMPTS,
    RATINGS,
    SYSTEMS,
    Cells,
    to_candidates,
    to_prompt,
)
from choosy.data.reading import read_candidates, read_prompts
from choosy.types import Message

ASK = Message("user", "Is it?")
ask, yes, no = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}, {"role": "assistant"}
no = no | {"content": "No."}
TURNS = (Message("system", "Be short."), Message("user", "Hi"), Message("assistant", "Hello."), ASK)
SAID = [("system", "Be short."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Is it?")]


def split(row: dict[str, Any]) -> tuple[tuple[Message, ...], list[tuple[str, float | None]]]:
    candidates = to_candidates(row)
    return candidates.prompt.messages, [(each.text, each.gold) for each in candidates.responses]


PAIR = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
LISTED = {"prompt": "Is it?", "responses": ["Yes.", "No."], "scores": [4, 2]}

# ---- conversations

OPENAI = [{"role": role, "content": text} for role, text in SAID]
CONVERSATIONS: dict[str, Any] = {
    "openai": OPENAI,
    "json": json.dumps(OPENAI),
    "python": str(OPENAI),
    "both dialects, as Parquet has them": [turn | {"from": None, "value": None} for turn in OPENAI],
    "sharegpt beside nulls": [{"role": None, "content": None, "from": r, "value": t} for r, t in SAID],
    "human and gpt": [
        {"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": t, "weight": None} for r, t in SAID
    ],
    "capitals": [{"role": r.title(), "content": t} for r, t in SAID],
    "model": [{"role": {"assistant": "model"}.get(r, r), "content": t} for r, t in SAID],
    "parts": [
        {"role": r, "content": [{"type": "text", "text": t[:2]}, {"type": "text", "text": t[2:]}]} for r, t in SAID
    ],
    "a dict of lists": {"role": [r for r, _ in SAID], "content": [t for _, t in SAID]},
    "chatml": "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in SAID) + "<|im_start|>assistant\n",
    "hh": "\n\nSystem: Be short.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Is it?\n\nAssistant:",
    "hh without blank lines": "System: Be short.\nHuman: Hi\nAssistant: Hello.\nHuman: Is it?\nAssistant:",
    "vicuna": "SYSTEM: Be short. USER: Hi ASSISTANT: Hello.</s>USER: Is it? ASSISTANT:",
    "llama 3": "<|begin_of_text|>"
    + "".join(f"<|start_header_id|>{r}<|end_header_id|>\n\n{t}<|eot_id|>" for r, t in SAID)
    + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "zephyr": "".join(f"<|{r}|>\n{t}</s>\n" for r, t in SAID) + "<|assistant|>\n",
    "phi": "".join(f"<|{r}|>\n{t}<|end|>\n" for r, t in SAID) + "<|assistant|>\n",
    "guanaco": "### System: Be short.### Human: Hi### Assistant: Hello.### Human: Is it?### Assistant:",
}


@pytest.mark.parametrize("column", ["prompt", "messages", "conversations", "trajectory", "question", "context"])
@pytest.mark.parametrize("value", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation_in_any_dialect_and_column(value: Any, column: str) -> None:
    assert to_prompt({column: value}).messages == TURNS
    assert split({column: value, "chosen": "Yes.", "rejected": "No."}) == (TURNS, [("Yes.", 1.0), ("No.", 0.0)])


@pytest.mark.parametrize("text", ["[INST] Hi [/INST]", '{"a": 1}', "[1, 2]", "Human: alone", "{x} and [y]", "Q: a\nA:"])
def test_a_text_that_is_no_conversation_stays(text: str) -> None:
    assert to_prompt({"prompt": text}).messages == (Message("user", text),)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("<bos><start_of_turn>user\nIs it?<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n"),
        ("### Instruction:\nIs it?\n\n### Response:\n", ""),
        ("<s>USER: Is it? ASSISTANT: ", "</s>"),
    ],
)
def test_whole_conversations_in_other_markup(text: str, end: str) -> None:
    row = {"chosen": f"{text}Yes.{end}", "rejected": f"{text}No.{end}"}
    assert split(row) == ((ASK,), [("Yes.", 1.0), ("No.", 0.0)])


def test_a_transcript_stays_a_text_where_it_is_continued() -> None:
    assert to_prompt({"prompt": CONVERSATIONS["hh"]}, as_chat=False).text == CONVERSATIONS["hh"]


def test_words_after_a_transcript_begin_without_its_space() -> None:
    row = {"prompt": "\n\nHuman: Is it?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."}
    assert split(row) == ((ASK,), [("Yes.", 1.0), ("No.", 0.0)])
    assert [r.text for r in to_candidates(row, as_chat=False).responses] == [" Yes.", " No."]


def test_transcripts_with_their_prompt() -> None:
    asked = "\n\nHuman: Is it?\n\nAssistant:"
    row = {"prompt": asked, "chosen": f"{asked} Yes.", "rejected": f"{asked} No."}
    assert split(row) == ((ASK,), [("Yes.", 1.0), ("No.", 0.0)])
    cells = Cells(row | {"context": "The sky."})
    to_candidates(cells)
    assert cells.unread() == {"context": "The sky."}


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            {"role": "user", "content": [{"type": "image", "image": "x.png"}]},
            "a part of type image; .* leave such rows out",
        ),
        ({"role": "user", "content": [{"type": "image_url", "text": None}]}, "a part of type image_url"),
        ({"role": "user", "content": [3]}, "a part of type int"),
        ({"role": "user", "content": None}, "must have role and content"),
        (
            {"role": "assistant", "content": None, "tool_calls": ["x"]},
            "a tool call in prompt must be an object with a n",
        ),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_prompt({"prompt": [turn, ask]})


def test_messages_that_are_no_json_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt looks like messages, but is no JSON; write it as JSON"):
        to_prompt({"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user'}]"})  # as numpy prints it


def test_the_last_answer_of_a_whole_conversation_is_left_out_and_named(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": [ask, yes]}) + "\n")
    (prompt,) = read_prompts(str(tmp_path / "d.jsonl"))
    assert prompt.messages == (ASK,)
    assert "d.jsonl: not used: the last answer in messages (a prompt ends before it)." in caplog.text


# ---- tools

CALL = {"name": "weather", "arguments": {"city": "Bergen"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
ASKED = {"role": "user", "content": "Weather?"}
SPELLINGS: dict[str, dict[str, Any]] = {
    "openai": {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
    "arguments as text": {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": CALL | {"arguments": '{"city": "Bergen"}'}}],
    },
    "nulls of other rows": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": None, "function": CALL | {"arguments": {"city": "Bergen", "unit": None}}}],
    },
    "as text": {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
    "llama factory": {"from": "function_call", "value": json.dumps(CALL)},
}


@pytest.mark.parametrize("turn", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]], TOOL])
def test_tools_and_their_calls_reach_the_template(turn: dict[str, Any], tools: Any) -> None:
    prompt = to_prompt(
        {"tools": tools, "prompt": [ASKED, turn, {"role": "tool", "content": "rain", "name": "weather"}]}
    )
    called = prompt.messages[1].fields
    assert (called["role"], called["content"]) == ("assistant", "")
    assert called["tool_calls"] == [{"type": "function", "function": CALL}]
    assert prompt.messages[2].fields == {"role": "tool", "content": "rain", "name": "weather"}
    assert json.loads(prompt.keywords) == {"tools": [TOOL]}
    assert prompt.text.splitlines()[0].startswith("tools: [")
    assert 'assistant: {"name": "weather", "arguments": {"city": "Bergen"}}' in prompt.text


@pytest.mark.parametrize("tools", ["[]", [], None, ""])
def test_no_tools_are_none(tools: Any) -> None:
    assert to_prompt({"tools": tools, "prompt": "Is it?"}) == to_prompt({"prompt": "Is it?"})


def test_tools_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="tools must be a list of objects, each with a name"):
        to_prompt({"tools": "weather", "prompt": "Is it?"})


def test_prompts_that_differ_in_their_tools_differ() -> None:
    plain = to_prompt({"prompt": "Is it?"})
    assert len({plain.id, to_prompt({"prompt": "Is it?", "tools": [TOOL]}).id}) == 2


def test_keywords_of_a_row_reach_the_template() -> None:
    assert (
        to_prompt({"prompt": "Is it?", "chat_template_kwargs": {"thinking": False}}).keywords == '{"thinking": false}'
    )


def test_an_answer_that_calls_a_tool_keeps_its_turn() -> None:
    found = to_candidates({"prompt": "Weather?", "chosen": [SPELLINGS["openai"]], "rejected": [no]})
    calling, plain = found.responses
    assert calling.text == 'assistant: {"name": "weather", "arguments": {"city": "Bergen"}}'
    assert [turn.fields["tool_calls"][0]["function"] for turn in calling.turns] == [CALL]
    assert (plain.text, plain.turns) == ("No.", ())


def test_an_answer_with_an_empty_list_of_calls_is_an_answer() -> None:
    rows = {"prompt": "Is it?", "chosen": [yes | {"tool_calls": []}], "rejected": [no]}
    assert split(rows) == ((ASK,), [("Yes.", 1.0), ("No.", 0.0)])


def test_thoughts_beside_an_answer_are_written_before_it() -> None:
    thought = yes | {"reasoning_content": "Hm."}
    assert split({"prompt": [ask], "chosen": [thought], "rejected": [no]})[1][0][0] == "<think>\nHm.\n</think>\n\nYes."


# ---- columns

ASKED_BY: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    **{name: ({name: "Is it?"}, (ASK,)) for name in ("prompt", "question", "instruction", "query", "problem", "input")},
    "instruction and input": ({"instruction": "Is it?", "input": "The sky."}, (Message("user", "Is it?\nThe sky."),)),
    "no input": ({"instruction": "Is it?", "input": ""}, (ASK,)),
    "system": ({"system": "Be short.", "question": "Is it?"}, (TURNS[0], ASK)),
    "system_prompt": (
        {"system_prompt": "Be short.", "conversations": [{"from": "human", "value": "Is it?"}]},
        (TURNS[0], ASK),
    ),
    "no system": ({"system": "", "prompt": "Is it?"}, (ASK,)),
    "history": ({"system": "Be short.", "instruction": "Is it?", "history": [["Hi", "Hello."]]}, TURNS),
    "the same system": ({"system": "Be short.", "prompt": OPENAI}, TURNS),
}


@pytest.mark.parametrize(("row", "messages"), ASKED_BY.values(), ids=ASKED_BY)
@pytest.mark.parametrize(("better", "worse"), [("chosen", "rejected"), ("chosen_response", "rejected_response")])
def test_prompts_go_by_their_usual_names(row: dict[str, Any], messages: Any, better: str, worse: str) -> None:
    assert to_prompt(row).messages == messages
    pair = {better: "The sky is blue.", worse: "The sky is green."}
    assert split(row | pair) == (messages, [("The sky is blue.", 1.0), ("The sky is green.", 0.0)])


@pytest.mark.parametrize("more", [{"steps": "Name it."}, {"topic": [ask]}, {"source": "web"}])
def test_shared_words_are_no_prompt_where_the_row_holds_more(more: dict[str, Any]) -> None:
    words = rf"no prompt; .*data\.reader\.columns=\{{NAME:prompt\}}, if {next(iter(more))} holds the prompt"
    with pytest.raises(ValueError, match=words):
        to_candidates({"chosen": "The sky is blue.", "rejected": "The sky is green.", **more})


def test_numbers_beside_two_strings_hold_no_prompt() -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "id": "a", "margin": 0.5}
    assert to_candidates(row).prompt.text == "The sky is"


@pytest.mark.parametrize("column", ["image", "images", "videos", "audio"])
def test_pictures_and_sounds_are_refused(column: str) -> None:
    row = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", column: ["cat.png"]}
    for convert in (to_prompt, to_candidates):
        with pytest.raises(
            ValueError, match=f"{column} is filled, and the policy reads text alone; leave such rows out"
        ):
            convert(row)
        convert(row | {column: []})


def test_a_system_column_that_differs_from_the_turn_is_refused() -> None:
    with pytest.raises(ValueError, match="system differs from the system turn of the conversation; drop one"):
        to_prompt({"system": "Be long.", "prompt": OPENAI})


def test_columns_that_are_not_used_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"prompt": "Is it?", "question": "What?", "chosen": "Yes.", "rejected": "No.", "source": "web", "note": None}
    rows = [row, row | {"prompt": "Was it?", "domain": "sky"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    file = str(tmp_path / "d.jsonl")
    with caplog.at_level(logging.WARNING):
        prompts = read_prompts(file)
        read_candidates(file)
    assert caplog.messages == [
        f"{file}: not used: question (the prompt is in prompt); chosen, rejected, source, domain "
        "(only reward functions that name them read them).",
        f"{file}: not used: question (the prompt is in prompt); source, domain (of no known meaning).",
    ]
    assert prompts[0].columns == {"question": "What?", "chosen": "Yes.", "rejected": "No.", "source": "web"}


# ---- two answers and a verdict, lists of answers

VERDICTS: list[tuple[dict[str, Any], list[float]]] = [
    ({"prompt": "Is it?", "response_0": "Yes.", "response_1": "No.", "better_response_id": 0}, [1.0, 0.0]),
    ({"prompt": "Is it?", "response_0": "Yes.", "response_1": "No.", "better_response_id": 1.0}, [0.0, 1.0]),
    ({"context": [ask], "response1": "Yes.", "response2": "No.", "overall_preference": -2}, [1.0, 0.0]),
    ({"context": [ask], "response1": "Yes.", "response2": "No.", "overall_preference": "3"}, [0.0, 1.0]),
    ({"context": [ask], "response1": "Yes.", "response2": "No.", "overall_preference": 0}, [0.5, 0.5]),
    ({"conversation_a": [ask, yes], "conversation_b": [ask, no], "winner": "model_a"}, [1.0, 0.0]),
    ({"conversation_a": [ask, yes], "conversation_b": [ask, no], "winner": "tie (bothbad)"}, [0.5, 0.5]),
    ({"prompt": "Is it?", "response_a": "Yes.", "response_b": "No.", "winner": "B"}, [0.0, 1.0]),
    ({"prompt": "Is it?", "answers": [{"answer": "Yes.", "rank": 1}, {"answer": "No.", "rank": 2}]}, [-1.0, -2.0]),
    ({"prompt": "Is it?", "responses": ["Yes.", "No."], "scores": [4, 2]}, [4.0, 2.0]),
    ({"instruction": "Is it?", "generations": ["Yes.", "No."], "ratings": [4, None]}, []),
    ({"prompt": "Is it?", "responses": '["Yes.", "No."]', "ranks": "[0, 1]"}, [0.0, -1.0]),
    (
        {"prompt": "Is it?", "completions": json.dumps([{"text": "Yes.", "score": 2}, {"text": "No.", "score": 1}])},
        [2.0, 1.0],
    ),
]


@pytest.mark.parametrize(("row", "golds"), VERDICTS)
def test_other_peoples_verdicts(row: dict[str, Any], golds: list[float]) -> None:
    if golds:
        assert split(row) == ((ASK,), list(zip(["Yes.", "No."], golds, strict=True)))
    else:
        with pytest.raises(ValueError, match=r"generations\[1\]: score must be a finite number, found NoneType"):
            split(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (VERDICTS[0][0] | {"better_response_id": 2}, "better_response_id must be one of 0, 1, found 2"),
        (VERDICTS[5][0] | {"winner": "me"}, "winner must be one of model_a, .*, found 'me'"),
        ({"prompt": "Is it?", "responses": ["Yes."], "scores": [1, 2]}, "scores must be a list of 1 numbers"),
    ],
)
def test_a_verdict_that_says_nothing_is_named(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_candidates(row)


@pytest.mark.parametrize(("column", "label"), [("messages", "label"), ("conversations", "kto_tag")])
def test_the_last_turn_of_a_conversation_is_good_or_bad(column: str, label: str) -> None:
    assert split({column: [ask, yes], label: "True"}) == ((ASK,), [("Yes.", 1.0)])


@pytest.mark.parametrize(("given", "used"), [(1.0, "1"), (float("nan"), None)])
def test_ids_that_pandas_made_numbers(given: float, used: str | None) -> None:
    assert to_prompt({"id": given, "prompt": "Is it?"}).id == (used or to_prompt({"prompt": "Is it?"}).id)


# ---- whatever stands in a cell

CELLS: list[Any] = [
    *(
        None,
        "",
        " ",
        0,
        -1.5,
        float("nan"),
        float("inf"),
        10**400,
        "1e999",
        True,
        b"x",
        ("a",),
        object(),
        "\x00",
        "[",
        "{",
    ),
    *(
        [],
        {},
        [None],
        [[]],
        [{}],
        [3],
        ["a"],
        [["a"]],
        [["a", "b"]],
        {"a": 1},
        "[[[",
        "[\x00]",
        '{"role": 1, "content": 2}',
    ),
    *(
        {"role": "user"},
        {"role": None, "content": "x"},
        {"role": [], "content": []},
        {"role": ["user"], "content": "x"},
    ),
    *([{"role": "user", "content": cell}] for cell in (None, [], {}, [None], 3)),
    *(
        [{"role": "assistant", "content": None, "tool_calls": calls}]
        for calls in (None, [], 3, "x", [3], [{"function": 3}])
    ),
    *({"from": "function_call", "value": cell} for cell in (None, "x", "[1]")),
    *("Human: a\n\nAssistant:", "Human:\n\nAssistant: b", "<|im_start|>user\n<|im_start|>assistant\n"),
    *([{"function": cell}] for cell in (None, "x", {}, {"name": 3})),
    *([{"text": cell, "score": 1}, {"text": "b", "score": None}] for cell in (None, ["a"], {})),
]
COLUMNS = dict.fromkeys(
    ["id", "weight", "tools", "chat_template_kwargs", *SYSTEMS, *MEDIA, *PROMPTS, *LISTED_SCORES, *RATINGS[0]]
    + [column for columns, _ in FORMATS for column in columns]
)
ROWS = [{}, PAIR, LISTED, {"response_a": "Yes.", "response_b": "No.", "winner": "a", "instruction": "Is it?"}]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", COLUMNS)
def test_whatever_stands_in_a_cell_is_read_or_refused(column: str, row: dict[str, Any]) -> None:
    said = []
    for cell in CELLS:
        for convert in (to_prompt, to_candidates):
            for as_chat in (True, False):
                try:
                    convert({**row, column: cell}, as_chat=as_chat)
                except ValueError as error:
                    said.append(str(error))
    assert not [words for words in said if "sequence" in words or "unpack" in words], "words of Python's own"
