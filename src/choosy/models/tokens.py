"""Text to token ids, by the policy's tokenizer with its chat template."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from choosy.models.chat import ChatTemplate, template_text
from choosy.models.locate import ModelSource
from choosy.models.rows import Ids
from choosy.types import Prompt


class Tokens:
    """The tokenizer of a policy: prompts and responses as it reads and ends them."""

    def __init__(self, source: ModelSource, chat_template: str | None = None) -> None:
        self.source = source
        self.chat_template = None if chat_template is None else template_text(chat_template)
        self._rows = 1 << 31  # of the model's embeddings, from fit() on
        self.window: int | None = None  # the longest sequence that the model can place, likewise
        self._largest = 0  # of all ids so far
        self._model_stops: frozenset[int] = frozenset()
        self._encoded: dict[Prompt, array[int]] = {}  # four bytes a token; a tuple has 36

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer: PreTrainedTokenizerBase = self.source.load(AutoTokenizer)
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
    def chat(self) -> ChatTemplate | None:
        """The chat template, if there is one."""
        return ChatTemplate(self.tokenizer, self.source.name) if self.tokenizer.chat_template else None

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
        self.window = getattr(model.config, "max_position_embeddings", None)  # not every model has one
        self._known(())
        ends: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
        self._model_stops = frozenset([ends] if isinstance(ends, int) else ends or [])
        self.__dict__.pop("stop_ids", None)

    def refuse_beyond_window(self, tokens: int) -> None:
        """Raise a ValueError for a sequence that is longer than the model's context window."""
        if self.window is not None and tokens > self.window:
            raise ValueError(
                f"A prompt and its response may take {tokens} tokens, and the context window of {self.source.name} has "
                f"{self.window}; lower data.reader.max_prompt_tokens, data.reader.max_response_tokens or "
                "sampler.max_new_tokens."
            )

    def encode_response(self, text: str, prompt: Prompt | None = None) -> tuple[int, ...]:
        """Encode a given response, ended as the policy would end it.

        Args:
            text: Of the response.
            prompt: What it answers; None = any conversation, or any text if there is no chat template.
        """
        chat = None if prompt is not None and not prompt.messages else self.chat
        if chat is None or not chat.end:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            eos = self.tokenizer.eos_token_id
            return self._known((*ids, eos) if not ids or ids[-1] != eos else tuple(ids))
        answer = chat.answer(prompt, text)
        if prompt is not None:  # as it is tokenised behind the prompt
            asked = self._begun_once(self.tokenizer(chat.text(prompt) + answer, add_special_tokens=False).input_ids)
            before = self.encode_prompt(prompt)
            if tuple(asked[: len(before)]) == before:
                return self._known(asked[len(before) :])
        return self._known(self.tokenizer(answer, add_special_tokens=False).input_ids)

    def decode(self, ids: Ids) -> str:
        """Decode a response, without special tokens and without the token that ended it."""
        ended = len(ids) > 0 and ids[-1] in self.stop_ids
        return str(self.tokenizer.decode(list(ids[:-1] if ended else ids), skip_special_tokens=True))
