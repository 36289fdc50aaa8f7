"""Chat templates of many families: what they are given, what they leave out, what they refuse."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from choosy.data.cells import turns as as_turns
from choosy.data.formats import to_prompt
from choosy.models.locate import ModelSource
from choosy.models.tokens import TemplateRefusal, Tokens
from choosy.types import Message, Prompt

QWEN3 = """{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}\
{{ messages[0].content + '\n' }}\
{% endif %}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}\
{{ '<|im_end|>\n' }}{% elif messages[0].role == 'system' %}\
{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}{% for m in messages %}\
{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}\
{% elif m.role == 'assistant' %}\
{{ '<|im_start|>assistant\n' }}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}\
{% if loop.last %}\
{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content \
else '' %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}{% for c in m.tool_calls %}\
{{ '<tool_call>\n{"name": "' + c.function.name + '", ' }}\
{{ '"arguments": ' + c.function.arguments | tojson + '}\n</tool_call>' }}\
{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'user' %}\
{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}\
{% endif %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}\
{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}\
{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}\
{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}\
{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"""
LLAMA3 = """{{ bos_token }}{{ '<|header|>system<|/header|>\n\nToday: ' + (date_string or '26 Jul 2024') + '\n' }}\
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|eot|>' }}{% for m in messages %}\
{% if m.role == 'user' %}{{ '<|header|>user<|/header|>\n\n' + m.content | trim + '<|eot|>' }}{% elif m.tool_calls %}\
{{ '<|header|>assistant<|/header|>\n\n' + m.tool_calls[0].function | tojson + '<|eot|>' }}\
{% elif m.role == 'assistant' %}\
{{ '<|header|>assistant<|/header|>\n\n' + m.content | trim + '<|eot|>' }}{% elif m.role == 'tool' %}\
{{ '<|header|>ipython<|/header|>\n\n' + m.content | tojson + '<|eot|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\n\n' }}{% endif %}"""
PHI = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
FAMILIES = {"qwen3": QWEN3, "gemma": GEMMA, "mistral": MISTRAL, "llama3": LLAMA3, "phi": PHI}
ENDS = {"qwen3": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "<eos>", "llama3": "<|eot|>", "phi": "<|end|>"}
TOKENS = [*("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|header|>", "<|/header|>", "<|eot|>")]

ASK, BEFORE = {"role": "user", "content": "Is it?"}, [{"role": "user", "content": "Hi"}]
BEFORE.append({"role": "assistant", "content": "Hello."})
CALL = {"name": "weather", "arguments": {"city": "Bergen"}}
CALLING = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "rain"},
]


@pytest.fixture
def load(tiny_policy_dir: Path, tmp_path: Path) -> Any:
    """The tiny policy's tokens with another template; its end of sequence, `<eos>`, ends few turns."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    tokenizer.save_pretrained(tmp_path)

    def loaded(template: str, **keywords: Any) -> Tokens:
        return Tokens(ModelSource(str(tmp_path)), template, keywords)

    return loaded


def text_of(tokens: Tokens, ids: tuple[int, ...]) -> str:
    return str(tokens.tokenizer.decode(list(ids)))


def asked(**row: Any) -> Prompt:
    return to_prompt(row)


@pytest.mark.parametrize("turns", [[ASK], [*BEFORE, ASK]], ids=["one turn", "three turns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_answer_ends_as_the_template_ends_it_once(family: str, turns: list[Any], load: Any) -> None:
    tokens, prompt = load(FAMILIES[family]), asked(prompt=turns)
    whole = tokens.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Yes."}], tokenize=False)
    for said in ("Yes.", f"Yes.{ENDS[family]}"):
        text = text_of(tokens, tokens.encode_prompt(prompt) + tokens.encode_response(said, prompt))
        assert whole.startswith(text)
        assert text.endswith(f"Yes.{ENDS[family]}")
        assert whole[len(text) :].strip() in ("", "<eos>")


@pytest.mark.parametrize("family", ["qwen3", "mistral", "llama3", "phi"])
def test_a_system_column_reaches_the_template(family: str, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokens = load(FAMILIES[family])
    assert "Be short." in text_of(tokens, tokens.encode_prompt(asked(system="Be short.", question="Is it?")))
    assert caplog.messages == []


def test_a_refusal_has_the_templates_words(load: Any) -> None:
    tokens = load(GEMMA)
    for row, words in (({"system": "Be short."}, "System role not supported"), ({"history": [["a", "b"]]}, None)):
        prompt = asked(prompt="Is it?", id="p7", **row)
        if words is None:
            tokens.encode_prompt(prompt)
            continue
        with pytest.raises(TemplateRefusal, match=rf"The chat template of .* refuses prompt p7: {words}"):
            tokens.encode_prompt(prompt)
    with pytest.raises(TemplateRefusal, match="Roles must alternate"):
        tokens.encode_prompt(asked(prompt=[ASK, ASK]))


@pytest.mark.parametrize(
    "asks", ["{% for i in range(10**9) %}x{% endfor %}", "{{ 1 / 0 }}", "{{ messages.__class__.__mro__ }}"]
)
def test_a_template_that_asks_for_too_much_is_refused(load: Any, asks: str) -> None:
    template = "{% for m in messages %}{{ m.content }}{% if 'tea' in m.content %}" + asks + "{% endif %}{% endfor %}"
    with pytest.raises(TemplateRefusal, match=r"The chat template of .* refuses prompt p7: "):
        load(template).encode_prompt(asked(prompt="Is it tea?", id="p7"))


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_tools_and_their_calls_are_written(family: str, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokens = load(FAMILIES[family])
    tools = json.dumps([{"name": "weather", "description": "Of a city."}] if family == "qwen3" else [])
    text = text_of(tokens, tokens.encode_prompt(asked(tools=tools, prompt=CALLING)))
    assert '"arguments": {"city": "Bergen"}' in text
    assert "rain" in text
    assert "None" not in text
    assert ("Of a city." in text) == (family == "qwen3")
    assert caplog.messages == []


def test_what_a_template_leaves_out_is_named_once(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokens = load(PHI.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"))
    rows = [
        {"system": "Be short.", "tools": [{"name": "weather"}], "prompt": [*CALLING, {**ASK, "content": f"{n}?"}]}
        for n in "ab"
    ]
    with caplog.at_level(logging.WARNING):
        for n, row in enumerate(rows):
            tokens.encode_prompt(asked(id=n, **row))
    found = [message.partition(" leaves out ")[2] for message in caplog.messages]
    assert found == [
        "system turns, as of prompt 0: 'Be short.'.",
        "calls of tools, as of prompt 0: 'weather'.",
        "tools, as of prompt 0: 'weather'.",
    ]


def test_a_text_that_went_through_the_template_is_named(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokens = load(FAMILIES["llama3"])
    tokens.encode_prompt(asked(id=1, prompt="<|header|>user<|/header|>\n\nIs it?<|eot|>"))
    assert "is given a text with its own <|eot|>, as prompt 1 has it" in caplog.text
    assert "data.reader.as_chat=false" in caplog.text


# ---- answers of several turns


YES, WHY, SO = (
    {"role": role, "content": said}
    for role, said in zip(["assistant", "user"] * 2, ["Yes.", "Why?", "So."], strict=False)
)
THOUGHT = {"qwen3": "<think>\n\n</think>\n\n"}  # which the template writes before the last answer


def parts_of(tokens: Tokens, prompt: Prompt, turns: tuple[Message, ...]) -> tuple[str, list[str]]:
    """The text of an answer behind its prompt, and what of it the assistant says."""
    ids, mask = tokens.encode_turns(turns, prompt)
    assert len(ids) == len(mask)
    starts = [at for at, said in enumerate(mask) if said and not (at and mask[at - 1])]
    ends = [at + 1 for at, said in enumerate(mask) if said and not (at + 1 < len(mask) and mask[at + 1])]
    spoken = [text_of(tokens, ids[start:end]) for start, end in zip(starts, ends, strict=True)]
    return text_of(tokens, tokens.encode_prompt(prompt) + ids), spoken


@pytest.mark.parametrize("before", [[], BEFORE], ids=["one turn", "three turns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_turns_of_the_assistant_are_spoken_by_it(family: str, before: list[Any], load: Any) -> None:
    tokens, asking, end = load(FAMILIES[family]), [*before, ASK], ENDS[family]
    whole = tokens.tokenizer.apply_chat_template([*asking, YES, WHY, SO], tokenize=False)
    text, spoken = parts_of(tokens, asked(prompt=asking), as_turns([YES, WHY, SO], "chosen"))
    assert whole.startswith(text)
    assert [said.strip() for said in spoken] == [f"Yes.{end}", f"{THOUGHT.get(family, '')}So.{end}"]


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_calls_of_tools_are_spoken_and_their_results_are_not(family: str, load: Any) -> None:
    tokens = load(FAMILIES[family])
    text, spoken = parts_of(tokens, asked(prompt=CALLING[:1]), as_turns([*CALLING[1:], SO], "chosen"))
    assert "rain" in text
    assert [(CALL["name"] in said, "rain" in said, said.count(ENDS[family])) for said in spoken] == [
        (True, False, 1),
        (False, False, 1),
    ]
    _, (alone,) = parts_of(tokens, asked(prompt=CALLING[:1]), as_turns(CALLING[1:2], "chosen"))
    assert CALL["name"] in alone


def test_turns_in_a_row_are_spoken_without_what_begins_them(load: Any) -> None:
    _, spoken = parts_of(load(PHI), asked(prompt="Is it?"), as_turns([YES, SO], "chosen"))
    assert spoken == ["Yes.<|end|>", "So.<|end|>"]


def test_thinking_that_is_off_is_not_spoken(load: Any) -> None:
    tokens = load(QWEN3, enable_thinking=False)
    text, spoken = parts_of(tokens, asked(prompt="Is it?"), as_turns([YES, WHY, SO], "chosen"))
    assert spoken == ["Yes.<|im_end|>", "So.<|im_end|>"]
    assert text.count("<think>") == 2


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (MISTRAL, {"system": "Be short."}, "writes earlier turns in another way once later ones follow"),
        (
            PHI.replace("'<|end|>\n'", "('<|end|>' if m.role == 'user' or loop.last else '') + '\n'"),
            {},
            "does not write where a turn",
        ),
        (GEMMA, {"system": "Be short."}, "System role not supported"),
    ],
)
def test_turns_that_a_template_does_not_tell_apart_are_refused(
    template: str, row: dict[str, Any], words: str, load: Any
) -> None:
    with pytest.raises(TemplateRefusal, match=words):
        load(template).encode_turns(as_turns([YES, WHY, SO], "chosen"), asked(prompt="Is it?", **row))


def test_a_call_that_the_template_leaves_out_is_no_answer(load: Any) -> None:
    with pytest.raises(TemplateRefusal, match="leaves out calls of tools"):
        load(PHI).encode_turns(as_turns([*CALLING[1:], SO], "chosen"), asked(prompt="Is it?"))


# ---- keywords


def test_a_keyword_that_the_template_does_not_read_is_named(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load(QWEN3, enable_thinking=False, enable_thought=True).chat
    assert [record.message.partition(" does not read ")[2] for record in caplog.records] == [
        "enable_thought, which model.chat_template_kwargs sets."
    ]


@pytest.mark.parametrize(
    ("keywords", "answer", "written"),
    [
        ({}, "Yes.", "<think>\n\n</think>\n\nYes."),
        ({}, "<think>\nHm.\n</think>\n\nYes.", "<think>\nHm.\n</think>\n\nYes."),
        ({"enable_thinking": False}, "Yes.", "Yes."),
        ({"enable_thinking": False}, "<think>\nHm.\n</think>\n\nYes.", "Yes."),
    ],
)
@pytest.mark.parametrize("by_row", [False, True], ids=["model", "row"])
def test_thinking_is_switched_off(keywords: Any, answer: str, written: str, by_row: bool, load: Any) -> None:
    tokens = load(QWEN3, **({"enable_thinking": True} if by_row else keywords))
    prompt = asked(prompt="Is it?", **({"chat_template_kwargs": keywords} if by_row else {}))
    ids = tokens.encode_response(answer, prompt)
    assert text_of(tokens, ids) == f"{written}<|im_end|>"
    whole = text_of(tokens, tokens.encode_prompt(prompt) + ids)
    assert (whole.count("<think>"), whole.count("</think>")) == (1, 1)


def test_the_date_of_today_is_named(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    today = LLAMA3.replace("'26 Jul 2024'", "strftime_now('%d %b %Y')")
    load(today, date_string="1 Jan 2030").encode_prompt(asked(prompt="a"))
    assert caplog.messages == []
    load(today).encode_prompt(asked(prompt="a"))
    assert "writes the date of today, so that a run on another day differs: type model.chat" in caplog.text


def test_a_date_is_set(load: Any) -> None:
    assert "Today: 1 Jan 2030" in text_of(
        *((t := load(LLAMA3, date_string="1 Jan 2030")), t.encode_prompt(asked(prompt="a")))
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'x' }}", "leaves out what the user says"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "what the assistant says",
        ),
        ("{% for m in messages %}{{ m.content }}", "is not Jinja: line 1"),
    ],
)
def test_a_template_that_carries_no_prompt_or_answer_is_refused(template: str, words: str, load: Any) -> None:
    with pytest.raises(ValueError, match=words):
        load(template).encode_prompt(asked(prompt="Is it?"))


@pytest.mark.parametrize(
    "template", ["{{ messages[0].nosuch.more }}", "{{ messages[0].content + 3 }}", "{{ nosuch() }}"]
)
def test_a_template_with_a_mistake_is_named(template: str, load: Any) -> None:
    with pytest.raises(ValueError, match=r"The chat template of .* refuses prompt"):
        load(template).encode_prompt(asked(prompt="Is it?"))
