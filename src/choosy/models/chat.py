"""A tokenizer's chat template: conversations as text, and how it ends an assistant's turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from choosy.types import Prompt

PROBE = "Mark4711"  # a text that stands for what somebody says


class TemplateRefusal(ValueError):
    """A chat template refuses a conversation, such as Gemma's one with a system turn."""


class ChatTemplate:
    """The chat template of the tokenizer of a model; a ValueError if it leaves out what the user says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        try:
            asked = self._text([{"role": "user", "content": PROBE}], ask=True)
        except TemplateError:  # it wants other turns; its error names the prompts that it refuses
            return
        if PROBE not in asked:
            raise ValueError(f"The chat template of {name} leaves out what the user says: {asked!r} has no {PROBE!r}.")

    def _text(self, turns: Sequence[dict[str, str]], *, ask: bool) -> str:
        text = self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask)
        assert isinstance(text, str)
        return text

    def text(self, prompt: Prompt, answer: str | None = None) -> str:
        """A conversation, ready to be answered, or with its answer; a TemplateRefusal if there is no such text."""
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            return self._text(turns, ask=answer is None)
        except TemplateError as error:
            raise TemplateRefusal(f"The chat template of {self._name} refuses prompt {prompt.id}: {error}") from error

    @cached_property
    def end(self) -> str:
        """What follows an assistant's words, up to the token that ends the turn; empty if no special token follows.

        Read off a conversation: `<|im_end|>` in ChatML, `<end_of_turn>` for Gemma, ` </s>` for Llama 2.
        """
        turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": PROBE}]
        try:
            _, said, after = self._text(turns, ask=False).rpartition(PROBE)
        except TemplateError:  # it takes no assistant's turn
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
                whole = self.text(prompt, said)
            except TemplateRefusal:
                whole = ""
            if whole.startswith(asked) and said.strip() in whole and self.end in whole[len(asked) :]:
                answered, _, _ = whole[len(asked) :].rpartition(self.end)
                return answered + self.end
        return without_doubled_thinking(asked, said) + self.end


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
    return file.read_text(encoding="utf-8")
