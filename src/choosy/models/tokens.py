"""Text to token ids, by the policy's tokenizer with its chat template."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from choosy.models.locate import ModelSource
from choosy.models.rows import Ids
from choosy.types import Prompt


class Tokens:
    """The tokenizer of a policy: prompts and responses as it reads and ends them.

    Args:
        source: Where the tokenizer comes from.
        chat_template: Jinja text that replaces the tokenizer's chat template.
    """

    def __init__(self, source: ModelSource, chat_template: str | None = None) -> None:
        self.source = source
        self.chat_template = chat_template
        self._model_stops: frozenset[int] = frozenset()
        self._encoded: dict[Prompt, array[int]] = {}  # four bytes a token; a tuple has 36

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.source.resolved,
                revision=self.source.revision,
                trust_remote_code=self.source.trust_remote_code,
            )
        except OSError as error:
            raise ValueError(f"model.name={self.source.name} does not load: {error}") from error
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {self.source.name} has no end-of-sequence token, so no response could end."
            )
        return tokenizer

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        return self._model_stops | {self.tokenizer.eos_token_id}

    def stop_at(self, ids: Iterable[int]) -> None:
        """End responses at these tokens too, which the model's own settings name."""
        self._model_stops = frozenset(ids)
        self.__dict__.pop("stop_ids", None)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Encode a prompt: a conversation through the chat template, other text unchanged.

        A beginning-of-sequence token appears at most once, an end-of-sequence token never at the end. Each prompt is
        tokenised once in a run.

        Raises:
            ValueError: A conversation, but no chat template.
        """
        if prompt not in self._encoded:
            self._encoded[prompt] = array("i", self._tokenised(prompt))
        return tuple(self._encoded[prompt])

    def _tokenised(self, prompt: Prompt) -> Sequence[int]:
        if prompt.messages:
            if not self.tokenizer.chat_template:
                raise ValueError(
                    f"Prompt {prompt.id} is a conversation, but the tokenizer of {self.source.name} has no chat "
                    "template; give one as model.chat_template, or use plain prompts with data.reader.as_chat=false."
                )
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            ids: list[int] = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)  # type: ignore[assignment]
        else:
            ids = self.tokenizer(prompt.text).input_ids
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
        bos = self.tokenizer.bos_token_id
        while len(ids) > 1 and bos is not None and bos != self.tokenizer.eos_token_id and ids[0] == ids[1] == bos:
            ids = ids[1:]
        return ids

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Encode a given response, ended as the policy would end it."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return (*ids, self.tokenizer.eos_token_id) if not ids or ids[-1] != self.tokenizer.eos_token_id else tuple(ids)

    def decode(self, ids: Ids) -> str:
        """Decode a response, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
