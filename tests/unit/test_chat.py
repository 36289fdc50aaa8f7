"""Given responses begin, think and end as the chat template has it; sampling ends at the same token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from choosy.data.encode import Reader
from choosy.models.policy import Policy
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Message, Prompt, Response

PROMPT = Prompt("p1", "Is tea hot?", (Message("user", "Is tea hot?"),))
LONGER = Prompt("p2", "And ice?", (Message("user", "Tea?"), Message("assistant", "Hot."), Message("user", "And ice?")))

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% for m in messages %}\
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
PHI = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end_of|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
LLAMA2 = """{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}\
{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"""
NOT_ENDED = """{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"""
# as Qwen3's: the last turn of the assistant always has a block of thoughts
THINKING = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}\
{% if '</think>' in m.content %}{{ m.content }}{% else %}{{ '<think>\n\n</think>\n\n' + m.content }}{% endif %}\
{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# as DeepSeek-R1's: the generation prompt opens the block, and turns of the past have none
OPENED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}\
{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
# as Qwen3's without thinking
CLOSED = OPENED.replace("<think>\n'", "<think>\n\n</think>\n\n'")
TOKENS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end_of|>"]

Load = Callable[[str], Policy]


@pytest.fixture
def load(tiny_policy_dir: Path, tmp_path: Path) -> Load:
    """Load the tiny policy with another chat template; its end-of-sequence token is `<|end|>`."""

    def loaded(template: str) -> Policy:
        tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)
        tokenizer.add_tokens(TOKENS)  # not special, so that decoding would show them
        model = AutoModelForCausalLM.from_pretrained(tiny_policy_dir)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        torch.nn.init.normal_(model.get_input_embeddings().weight, 0, 0.2, torch.Generator().manual_seed(0))
        torch.nn.init.normal_(model.get_output_embeddings().weight, 0, 0.2, torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        policy = Policy(str(tmp_path / "model"), dtype="float32", chat_template=template)
        policy.load(device=torch.device("cpu"), seed=0)
        return policy

    return loaded


def text_of(policy: Policy, ids: tuple[int, ...]) -> str:
    return str(policy.tokens.tokenizer.decode(list(ids)))


@pytest.mark.parametrize("prompt", [PROMPT, LONGER], ids=["one turn", "three turns"])
@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (GEMMA, "<end_of_turn>"), (PHI, "<|end_of|>"), (LLAMA2, " <|end|>")],
    ids=["chatml", "gemma", "phi", "llama2"],
)
def test_an_answer_is_encoded_as_in_the_conversation(template: str, end: str, prompt: Prompt, load: Load) -> None:
    policy = load(template)
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    turns.append({"role": "assistant", "content": "Mostly."})
    whole = policy.tokens.tokenizer.apply_chat_template(turns, return_dict=False)
    ids = policy.tokens.encode_prompt(prompt) + policy.tokens.encode_response("Mostly.", prompt)
    assert list(ids) == whole[: len(ids)]
    assert text_of(policy, ids).endswith(f"Mostly.{end}")
    assert text_of(policy, tuple(whole[len(ids) :])) in ("", "\n", "\n<|end|>")


@pytest.mark.parametrize("template", [CHATML, GEMMA, PHI, LLAMA2], ids=["chatml", "gemma", "phi", "llama2"])
def test_an_answer_that_has_its_end_is_ended_once(template: str, load: Load) -> None:
    policy = load(template)
    end = policy.tokens.chat.end.strip()
    ended = [policy.tokens.encode_response(text, p) for p in (PROMPT, None) for text in ("Mostly.", f"Mostly.{end}")]
    assert len({ids[-1] for ids in ended}) == 1
    assert ended[0] == ended[1]
    assert ended[2] == ended[3]


def test_a_template_without_an_end_takes_the_tokenizers(load: Load) -> None:
    policy = load(NOT_ENDED)
    assert text_of(policy, policy.tokens.encode_response("Mostly.", PROMPT)) == "Mostly.<|end|>"
    assert policy.tokens.stop_ids == {policy.tokens.tokenizer.eos_token_id}


def test_a_text_that_is_no_conversation_ends_with_the_tokenizers_end(load: Load) -> None:
    policy = load(CHATML)
    assert text_of(policy, policy.tokens.encode_response(" mostly.", Prompt("p", "Tea is"))) == " mostly.<|end|>"


@pytest.mark.parametrize(
    ("template", "answer", "encoded"),
    [
        (THINKING, "Hot.", "<think>\n\n</think>\n\nHot."),
        (THINKING, "<think>\nHm.\n</think>\n\nHot.", "<think>\nHm.\n</think>\n\nHot."),
        (OPENED, "<think>\nHm.\n</think>\n\nHot.", "Hm.\n</think>\n\nHot."),
        (OPENED, "Hm.\n</think>\n\nHot.", "Hm.\n</think>\n\nHot."),
        (OPENED, "Hot.", "\n</think>\n\nHot."),
        (CLOSED, "<think>\nHm.\n</think>\n\nHot.", "Hot."),
        (CLOSED, "Hot.", "Hot."),
    ],
)
def test_thoughts_open_and_close_once(template: str, answer: str, encoded: str, load: Load) -> None:
    policy = load(template)
    ids = policy.tokens.encode_response(answer, PROMPT)
    assert text_of(policy, ids) == f"{encoded}<|im_end|>"
    whole = text_of(policy, policy.tokens.encode_prompt(PROMPT) + ids)
    assert whole.count("<think>") == whole.count("</think>") <= 1


@pytest.mark.parametrize("template", [CHATML, GEMMA, PHI], ids=["chatml", "gemma", "phi"])
def test_sampling_ends_where_the_template_ends_a_turn(template: str, load: Load) -> None:
    policy = load(template)
    (end,) = policy.tokens.tokenizer(policy.tokens.chat.end, add_special_tokens=False).input_ids
    assert end != policy.tokens.tokenizer.eos_token_id
    ids = policy.tokens.encode_prompt(PROMPT)
    (responses,) = Generate(max_new_tokens=256).sample(policy, [ids], [list(range(64))])
    ended = [r for r in responses if r.ids[-1] == end]
    assert ended
    assert all(r.finished and end not in r.ids[:-1] for r in ended)
    assert not any(policy.tokens.chat.end in r.text for r in responses)


# -- templates that do not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.jinja", "tokenizer_config.json"])
def test_a_template_can_be_a_file(name: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"chat_template": CHATML}) if name.endswith(".json") else CHATML)
    policy = load(str(tmp_path / name))
    assert (
        text_of(policy, policy.tokens.encode_prompt(PROMPT))
        == "<|im_start|>user\nIs tea hot?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("mine.jinja", r"model\.chat_template=mine\.jinja is neither a file .*nor Jinja text"),
        ("{{ 'Hello.' }}", r"chat template of .* leaves out what the user says: 'Hello\.' has no"),
    ],
)
def test_a_template_that_carries_no_prompt_is_refused(template: str, message: str, tiny_policy_dir: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(str(tiny_policy_dir), chat_template=template).tokens.encode_prompt(PROMPT)


def test_a_prompt_that_the_template_refuses_is_named(load: Load, tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn') }}{% endif %}" + CHATML
    policy = load(strict)
    system = Prompt("sys", "Be short.", (Message("system", "Be short."), Message("user", "Tea?")))
    message = r"mine\.jsonl, line 2: The chat template of .* refuses prompt sys: No system turn"
    with pytest.raises(ValueError, match=message):
        Reader().within_limit({"mine.jsonl, line 1": PROMPT, "mine.jsonl, line 2": system}, policy, "mine.jsonl")


def test_tokens_without_embeddings_are_named(tiny_policy_dir: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_policy_dir)
    known = len(tokenizer)
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path)
    message = rf"has {known + len(TOKENS)} tokens and gives token {known + 1} \(<\|im_end\|>\), .* have {known} rows"
    early = Policy(str(tmp_path), chat_template=CHATML)
    early.tokens.encode_prompt(PROMPT)
    with pytest.raises(ValueError, match=message):
        early.load(device=torch.device("cpu"), seed=0)
    late = Policy(str(tmp_path), chat_template=CHATML)
    late.load(device=torch.device("cpu"), seed=0)
    with pytest.raises(ValueError, match=message):
        late.tokens.encode_prompt(PROMPT)


def test_sequences_beyond_the_context_window_are_named(tiny_policy_dir: Path) -> None:
    policy = Policy(str(tiny_policy_dir), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    message = r"may take 1030 tokens, and the context window of .* has 1024; lower data\.reader\.max_prompt_tokens"
    with pytest.raises(ValueError, match=message):
        Generate(max_new_tokens=30).sample(policy, [(5,) * 1000], [[0]])
    with pytest.raises(ValueError, match=message):
        policy.score([Candidates(PROMPT, (Response("", (5,) * 30),), (5,) * 1000)])
