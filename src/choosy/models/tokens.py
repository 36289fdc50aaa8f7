"""Text to token ids, by the policy's tokenizer with its chat template."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from choosy.console import hide_progress_bars
from choosy.models.locate import ModelSource, why_not_loaded
from choosy.models.rows import Ids
from choosy.terminal import logger
from choosy.types import Message, Prompt

PROBE = "Mark4711"  # a text that stands for what somebody says
REFUSALS = (  # what a template raises for a conversation, and where it asks for too much
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)

THINKS = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")  # what a template may ask an answer to begin with

log = logger(__name__)


class Tokens:
    """The tokenizer of a policy: prompts and responses as it reads and ends them."""

    def __init__(
        self,
        source: ModelSource,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        own: str | None = None,
    ) -> None:
        self.source = source
        self.own = own  # the folder of an adapter that brings its own tokenizer
        self.chat_template = None if chat_template is None else template_text(chat_template)
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._rows = 1 << 31  # of the model's embeddings, from fit() on
        self._largest = 0  # of all ids so far
        self._model_stops: frozenset[int] = frozenset()
        self._encoded: dict[Prompt, array[int]] = {}  # four bytes a token; a tuple has 36

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        hide_progress_bars()
        source = self.source if self.own is None else replace(self.source, name=self.own, revision=None)
        try:
            tokenizer: PreTrainedTokenizerBase = source.load(AutoTokenizer)
        except OSError as error:
            option = "name" if self.own is None else "adapter"
            why = why_not_loaded(source.name, error)
            raise ValueError(f"model.{option}={source.name} does not load: {why}") from error
        if self.own is not None:
            log.info("model.adapter=%s brings its own tokenizer, which is used with its chat template.", self.own)
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {self.source.name} has no end-of-sequence token, so no response could end."
            )
        return tokenizer

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """The chat template, if there is one."""
        if not self.tokenizer.chat_template:
            return None
        given = "" if self.chat_template is None else ", given by model.chat_template,"
        return ChatTemplate(self.tokenizer, f"{self.source.name}{given}", self.chat_template_kwargs)

    @cached_property
    def window(self) -> int | None:
        """The longest sequence that the model can place; not every model has such a limit."""
        config = self.source.load(AutoConfig).get_text_config()
        longest: int | None = getattr(config, "max_position_embeddings", None)
        return longest

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        end = self.tokenizer(self.chat.end, add_special_tokens=False).input_ids[-1:] if self.chat else []
        return self._model_stops | {self.tokenizer.eos_token_id, *end}

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Encode a prompt, once in a run: a conversation through the chat template, other text unchanged.

        A beginning-of-sequence token appears at most once, an end-of-sequence token never at the end. A conversation
        without a chat template, or that the template refuses, raises a ValueError.
        """
        if prompt not in self._encoded:
            self._encoded[prompt] = array("i", self._known(self._tokenised(prompt)))
        return tuple(self._encoded[prompt])

    def _tokenised(self, prompt: Prompt) -> Sequence[int]:
        if prompt.messages:
            if self.chat is None:
                raise ValueError(
                    f"Prompt {prompt.id} is a conversation, but the tokenizer of {self.source.name} has no chat "
                    "template; give one as model.chat_template, or use plain prompts with data.reader.as_chat=false."
                )
            return self._begun_once(self.tokenizer(self.chat.text(prompt), add_special_tokens=False).input_ids)
        ids = self.tokenizer(prompt.text).input_ids
        return self._begun_once(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)

    def _begun_once(self, ids: Sequence[int]) -> Sequence[int]:
        bos = self.tokenizer.bos_token_id
        while len(ids) > 1 and bos is not None and bos != self.tokenizer.eos_token_id and ids[0] == ids[1] == bos:
            ids = ids[1:]
        return ids

    def _known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids; a ValueError if the model has no embedding for one of them."""
        self._largest = max(self._largest, max(ids, default=0))
        if self._largest >= self._rows:
            raise ValueError(
                f"The tokenizer of {self.source.name} has {len(self.tokenizer)} tokens and gives token {self._largest} "
                f"({self.tokenizer.convert_ids_to_tokens(self._largest)}), and the model's embeddings have "
                f"{self._rows} rows: resize them to the tokenizer, or take the tokenizer the model was trained with."
            )
        return tuple(ids)

    def fit(self, model: PreTrainedModel) -> None:
        """Refuse tokens, past ones too, that have no place in this model; end responses where the model ends them."""
        embeddings: nn.Module = model.get_input_embeddings()
        self._rows = next(embeddings.parameters()).shape[0]
        self._known(())
        ends: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
        self._model_stops = frozenset([ends] if isinstance(ends, int) else ends or [])
        self.__dict__.pop("stop_ids", None)

    def refuse_long_answers(
        self, prompts: Iterable[Prompt], new_tokens: int, *, option: str = "sampler.max_new_tokens"
    ) -> None:
        """Raise a ValueError if a prompt with an answer of so many tokens is longer than the context window."""
        longest = max((len(self.encode_prompt(p)) for p in prompts), default=0)
        self.refuse_beyond_window(longest + new_tokens, option=option)

    def refuse_beyond_window(self, tokens: int, *, option: str = "sampler.max_new_tokens") -> None:
        """Raise a ValueError for a sequence that is longer than the context window; `option` limits its response."""
        if self.window is not None and tokens > self.window:
            raise ValueError(
                f"A prompt and its response may take {tokens} tokens, and the context window of {self.source.name} has "
                f"{self.window}; lower data.reader.max_prompt_tokens or {option}."
            )

    def encode_response(self, text: str, prompt: Prompt | None = None) -> tuple[int, ...]:
        """Encode a given response, ended as the policy would end it.

        Without its prompt it answers any conversation, or any text if there is no chat template.
        """
        chat = None if prompt is not None and not prompt.messages else self.chat
        if chat is None or not chat.end:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            eos = self.tokenizer.eos_token_id
            return self._known((*ids, eos) if not ids or ids[-1] != eos else tuple(ids))
        answer = chat.answer(prompt, text)
        if prompt is None:
            return self._known(self.tokenizer(answer, add_special_tokens=False).input_ids)
        return self._behind(chat.text(prompt), self.encode_prompt(prompt), answer)

    def encode_turns(self, turns: Sequence[Message], prompt: Prompt) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Encode a given answer of several turns, with a mask that is true where the assistant speaks.

        Raises:
            TemplateRefusal: The template refuses the turns, or does not write where a turn of the assistant ends, or
                writes its earlier turns in another way once later ones follow.
        """
        assert self.chat is not None, "a prompt with messages has been encoded"
        text, before = self.chat.text(prompt), self.encode_prompt(prompt)
        ids, mask = before, [False] * len(before)
        for part, said in self.chat.turns(prompt, turns):
            more = self._behind(text, ids, part)
            text, ids, mask = text + part, ids + more, mask + [said] * len(more)
        return ids[len(before) :], tuple(mask[len(before) :])

    def _behind(self, text: str, ids: tuple[int, ...], more: str) -> tuple[int, ...]:
        """Encode what follows a text, as it is tokenised behind it where that leaves the ids of the text."""
        whole = self._begun_once(self.tokenizer(text + more, add_special_tokens=False).input_ids)
        if tuple(whole[: len(ids)]) == ids:
            return self._known(whole[len(ids) :])
        return self._known(self.tokenizer(more, add_special_tokens=False).input_ids)

    def decode(self, ids: Ids) -> str:
        """Decode a response, without special tokens and without the token that ended it."""
        ended = len(ids) > 0 and ids[-1] in self.stop_ids
        return str(self.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=True))


class TemplateRefusal(ValueError):
    """A chat template refuses a conversation, such as Gemma's one with a system turn."""


class ChatTemplate:
    """The chat template of the tokenizer of a model; a ValueError if it leaves out what the user says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, keywords: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._keywords = keywords
        self._warned: set[str] = set()
        if "strftime_now" in str(tokenizer.chat_template) and not any("date" in word for word in keywords):
            way = 'so that a run on another day differs: type model.chat_template_kwargs={date_string:"26 Jul 2024"}'
            self._warn("writes the date of today", way)
        if unread := [word for word in keywords if word not in str(tokenizer.chat_template)]:
            self._warn(f"does not read {', '.join(unread)}", "which model.chat_template_kwargs sets")
        for asked, role in ((PROBE, "user"), ("Hello?", "assistant")):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": PROBE}]
            try:
                text = self._text(turns[: 1 if role == "user" else 2], ask=role == "user")
            except TemplateSyntaxError as error:
                raise ValueError(f"The chat template of {name} is not Jinja: line {error.lineno}: {error}.") from error
            except REFUSALS:  # it wants other turns; its error names the prompts that it refuses
                continue
            if PROBE not in text:
                raise ValueError(
                    f"The chat template of {name} leaves out what the {role} says: {text!r:.200} has no {PROBE!r}."
                )

    def _text(self, turns: Sequence[dict[str, Any]], *, ask: bool, keywords: str = "") -> str:
        given = {**self._keywords, **json.loads(keywords or "{}")}
        text = self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask, **given)
        assert isinstance(text, str)
        return text

    def text(self, prompt: Prompt, answer: Sequence[Message] = (), *, ask: bool = True) -> str:
        """A conversation with its answer, if any, ready to be answered or not; a TemplateRefusal if there is none."""
        turns = [m.fields for m in (*prompt.messages, *answer)]
        if (end := self.end.strip()) and any(end in m.content for m in prompt.messages if m.role == "user"):
            way = (
                f"as prompt {prompt.id} has it: one that went through a template before wants data.reader.as_chat=false"
            )
            self._warn(f"is given a text with its own {end}", way)
        try:
            text = self._text(turns, ask=ask, keywords=prompt.keywords)
        except REFUSALS as error:
            raise TemplateRefusal(f"The chat template of {self._name} refuses prompt {prompt.id}: {error}") from error
        for what, words in parts(prompt, answer):
            if words not in text:
                self._warn(f"leaves out {what}", f"as of prompt {prompt.id}: {words!r:.80}")
        return text

    def _warn(self, what: str, where: str) -> None:
        """Warn of something the first time."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning(f"The chat template of {self._name} {what}, {where}.")

    @cached_property
    def end(self) -> str:
        """What follows an assistant's words, up to the token that ends the turn; empty if no special token follows.

        Read off a conversation: `<|im_end|>` in ChatML, `<end_of_turn>` for Gemma, ` </s>` for Llama 2.
        """
        turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": PROBE}]
        try:
            _, said, after = self._text(turns, ask=False).rpartition(PROBE)
        except REFUSALS:  # it takes no assistant's turn
            return ""
        specials = (str(token) for token in self._tokenizer.added_tokens_decoder.values() if str(token).strip())
        ends = [after.index(token) + len(token) for token in specials if said and token in after]
        return after[: min(ends)] if ends else ""

    def answer(self, prompt: Prompt | None, text: str) -> str:
        """A given answer as the template continues this conversation, or any one, with it, ended once."""
        said = text.removesuffix(self.end.lstrip())
        asked = "" if prompt is None else self.text(prompt)
        if prompt is not None:
            try:
                whole = self.text(prompt, [Message("assistant", said)], ask=False)
            except TemplateRefusal:
                whole = ""
            if whole.startswith(asked) and said.strip() in whole and self.end in whole[len(asked) :]:
                answered, _, _ = whole[len(asked) :].rpartition(self.end)
                return answered + self.end
        return without_doubled_thinking(asked, said) + self.end

    def turns(self, prompt: Prompt, answer: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """The parts of an answer of several turns behind its prompt, each with whether the assistant says it.

        What the assistant says begins where the template asks for it, and ends with the token that ends its turns.
        """
        answer = [replace(turn, content=turn.content.removesuffix(self.end.lstrip())) for turn in answer]
        asked, whole = self.text(prompt), self.text(prompt, answer, ask=False)
        at = 0
        for k, turn in enumerate(answer):
            if turn.role != "assistant":
                continue
            before = self.text(prompt, answer[:k])
            start = shared(before, whole)
            end = whole.find(self.end, start) + len(self.end)
            if start < at or not THINKS.fullmatch(before[start:]):
                raise self._untold(prompt, "writes earlier turns in another way once later ones follow")
            if not self.end or end < start + len(self.end) or end > self._next(prompt, answer, k + 1, whole):
                raise self._untold(prompt, "does not write where a turn of the assistant ends")
            calls = [call["function"]["name"] for call in turn.fields.get("tool_calls", ())]
            if not all(name in whole[start:end] for name in calls):
                raise self._untold(prompt, "leaves out calls of tools")
            if k:
                yield whole[at:start], False
                yield whole[start:end], True
            else:
                yield without_doubled_thinking(asked, whole[start:end]) if asked[start:] else whole[start:end], True
            at = end

    def _next(self, prompt: Prompt, answer: Sequence[Message], k: int, whole: str) -> int:
        """Where the words of the k-th turn begin in the text of the whole."""
        if k == len(answer):
            return len(whole)
        other = [*answer[:k], replace(answer[k], content=PROBE + answer[k].content), *answer[k + 1 :]]
        return shared(whole, self.text(prompt, other, ask=False))

    def _untold(self, prompt: Prompt, why: str) -> TemplateRefusal:
        return TemplateRefusal(f"the chat template of {self._name} {why}, as of prompt {prompt.id}")


def parts(prompt: Prompt, answer: Sequence[Message] = ()) -> Iterator[tuple[str, str]]:
    """What a chat template should write of a conversation, each with words that its text then holds.

    Example:
        >>> from choosy.types import Message
        >>> list(parts(Prompt("p", "", (Message("system", "Be short."),), '{"tools": [{"name": "clock"}]}')))
        [('system turns', 'Be short.'), ('tools', 'clock')]
    """
    for turn in (*prompt.messages, *answer):
        if turn.role in ("system", "user"):
            yield f"{turn.role} turns", turn.content.strip()
        for call in turn.fields.get("tool_calls", ()):
            yield "calls of tools", call["function"]["name"]
    for tool in json.loads(prompt.keywords or "{}").get("tools", ()):
        yield "tools", tool.get("function", tool)["name"]


def shared(one: str, other: str) -> int:
    """How many characters both texts begin with."""
    characters = enumerate(zip(one, other, strict=False))
    return next((at for at, (x, y) in characters if x != y), min(len(one), len(other)))


def without_doubled_thinking(asked: str, answer: str) -> str:
    """The answer as it continues a generation prompt that has opened, or closed, its block of thoughts.

    Example:
        >>> without_doubled_thinking("Ask. <think>", "<think>Hm.</think>Yes.")
        'Hm.</think>Yes.'
        >>> without_doubled_thinking("Ask. <think></think>", "<think>Hm.</think>Yes.")
        'Yes.'
        >>> without_doubled_thinking("Ask. <think>", "Yes.")
        '</think>Yes.'
    """
    begins, thinks = answer.lstrip().startswith("<think>"), "</think>" in answer
    before, space = asked.rstrip(), asked[len(asked.rstrip()) :]
    if before.endswith("<think>"):
        if begins:
            return answer.lstrip().removeprefix("<think>").removeprefix(space)
        return answer if thinks else f"{space}</think>{2 * space}{answer}"
    if before.endswith("</think>") and begins and thinks:
        return answer.partition("</think>")[2].lstrip()
    return answer


def template_text(template: str) -> str:
    """Return the text of a chat template that is given as a text or as a file; a ValueError if it is neither."""
    if "{{" in template or "{%" in template:
        return template
    file = Path(template).expanduser()
    if not file.is_file():
        raise ValueError(f"model.chat_template={template} is neither a file (looked in {Path.cwd()}) nor Jinja text.")
    text = file.read_text(encoding="utf-8-sig")
    try:
        said = json.loads(text)  # a tokenizer_config.json or chat_template.json holds it beside other settings
    except ValueError:
        return text
    return str(said.get("chat_template", text)) if isinstance(said, dict) else text
