"""Score responses with a reward model from Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from choosy.console import hide_progress_bars
from choosy.labeling.protocols import Terms
from choosy.models.damaged import refusing_damaged
from choosy.models.locate import contents_id, resolve_model
from choosy.models.trust import loaded
from choosy.types import Prompt, Response


@dataclass(eq=False)
class RewardModel:
    """Scores a response with a sequence classifier, its own tokenizer and chat template.

    The reward is the logit of a model with one output, or the difference of the two logits (bad, good). A text that is
    too long loses its beginning, because the response is at its end. The model is loaded when first used.
    """

    model: str  # a Hugging Face id or a directory
    _: KW_ONLY
    batch_size: int = 16  # responses of one forward pass
    max_length: int = 1024  # most tokens of prompt and response together, within the model's own limit
    dtype: str = "auto"  # of the weights, for instance bfloat16; auto takes the stored one
    device: str = "auto"  # where it runs, for instance cuda:1; auto takes a GPU if there is one

    def __post_init__(self) -> None:
        self.name = f"reward_model:{self.model}@{self.max_length}"  # the length changes the scores
        resolve_model(self.model)  # refuses a folder that is not there
        at_once = 16 * self.batch_size  # enough that items of similar length share a batch
        self.terms = Terms(price=0.0, at_once=at_once, fingerprint=contents_id(self.model))

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """Return the reward of each response; items of similar length share a batch."""
        rows = [self._tokens(prompt, response) for prompt, response in items]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, self._rewards([rows[i] for i in batch]).tolist(), strict=True):
                scores[i] = score
        return scores

    def _tokens(self, prompt: Prompt, response: Response) -> list[int]:
        _, tokenizer, limit = self._loaded
        plain = tokenizer.chat_template is None  # a template writes the special tokens itself
        if plain:
            text = f"{prompt.text}\n{response.text}"
        else:
            asked = [turn.fields for turn in prompt.messages] or [{"role": "user", "content": prompt.text}]
            answered = [turn.fields for turn in response.messages]
            text = tokenizer.apply_chat_template([*asked, *answered], tokenize=False)
        ids: list[int] = tokenizer(text, add_special_tokens=plain, truncation=True, max_length=limit)["input_ids"]
        return ids

    @torch.inference_mode()
    def _rewards(self, rows: list[list[int]]) -> Tensor:
        model, tokenizer, _ = self._loaded
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
        logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """The model, its tokenizer and the most tokens that it reads."""
        hide_progress_bars()
        tokenizer = loaded(AutoTokenizer.from_pretrained, self.model, padding_side="right", truncation_side="left")
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise ValueError(
                f"reward model {self.model}: its tokenizer has neither a pad token nor an end-of-sequence "
                "token, so responses cannot share a batch; add a pad_token to its tokenizer_config.json"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        with refusing_damaged(self.model):
            model, report = loaded(
                AutoModelForSequenceClassification.from_pretrained,
                self.model,
                dtype=self.dtype,
                output_loading_info=True,
            )
        if report["missing_keys"]:  # transformers would use a random head
            raise ValueError(
                f"reward model {self.model}: its weights lack {sorted(report['missing_keys'])}, so its "
                "scores would be noise; name a model trained for sequence classification"
            )
        if model.config.num_labels not in (1, 2):
            raise ValueError(
                f"reward model {self.model} has {model.config.num_labels} outputs; "
                "wanted one (the reward) or two (bad, good)"
            )
        config = model.config.get_text_config()
        config.pad_token_id = tokenizer.pad_token_id  # with which the model finds the last token of each row
        limits = (self.max_length, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        gpu = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(gpu if self.device == "auto" else self.device).eval()
        return model, tokenizer, min(limit for limit in limits if limit)
