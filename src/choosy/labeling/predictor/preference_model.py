"""Train a small model of preferences: an encoder with a LoRA adapter under one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from choosy.models.locate import resolve_model


class Preference(NamedTuple):
    """A verdict on two responses, as texts."""

    prompt: str
    better: str
    worse: str


@dataclass(eq=False)
class PreferenceModel:
    """Rates a response to a prompt; P(one is preferred) = sigmoid(difference of the ratings).

    Ratings do not depend on the order in which two responses are shown, and apply to any two responses.
    """

    encoder: str = "demo:minilm"  # a folder or hub id of a transformer with a tokenizer
    _: KW_ONLY
    seed: int = 0  # of the adapter's first weights and of the order of the examples
    r: int = 8  # rank of the adapter
    lr: float = 1e-3
    epochs: int = 4  # passes over the examples
    batch_size: int = 16  # preferences of a step
    max_length: int = 256  # most tokens of prompt and response together; the beginning is cut
    device: str = "auto"  # a GPU if there is one

    def __post_init__(self) -> None:
        self._tokenizer: Any = None
        self._model: Any = None

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """All settings that its ratings depend on."""
        return tuple(str(getattr(self, one.name)) for one in fields(self) if one.name != "device")

    def fit(self, examples: Sequence[Preference]) -> None:
        """Train from the encoder's weights on the mean of -log sigmoid(rating of better - rating of worse)."""
        self._load()
        trained = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.01)
        generator = torch.Generator().manual_seed(self.seed)
        steps = self.epochs * -(-len(examples) // self.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # dropout
            self._model.train()
            for _ in range(self.epochs):
                for rows_B in torch.split(torch.randperm(len(examples), generator=generator), self.batch_size):
                    batch = [examples[i] for i in rows_B]
                    texts = [(e.prompt, e.better) for e in batch] + [(e.prompt, e.worse) for e in batch]
                    better_B, worse_B = self._forward(texts).chunk(2)
                    loss = -F.logsigmoid(better_B - worse_B).mean()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    schedule.step()
            self._model.eval()

    def gaps(self, pairs: Sequence[tuple[str, str, str]]) -> list[float]:
        """Return how much higher the first response is rated than the second, for each (prompt, first, second)."""
        ratings = self.ratings([(prompt, response) for prompt, *both in pairs for response in both])
        return [first - second for first, second in zip(ratings[::2], ratings[1::2], strict=True)]

    @torch.inference_mode()
    def ratings(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """Return the rating of each (prompt, response); items of similar length share a batch."""
        order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + len(items[i][1]))
        ratings = [0.0] * len(items)
        for start in range(0, len(order), 4 * self.batch_size):
            batch = order[start : start + 4 * self.batch_size]
            for i, rating in zip(batch, self._forward([items[i] for i in batch]).tolist(), strict=True):
                ratings[i] = rating
        return ratings

    def _load(self) -> None:
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        where = resolve_model(self.encoder, demo="demo:minilm")
        self._tokenizer = AutoTokenizer.from_pretrained(where, padding_side="right", truncation_side="left")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the output layer is new, as intended
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=1, dtype=torch.float32)
                model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
                config = LoraConfig(
                    r=self.r,
                    lora_alpha=2 * self.r,
                    target_modules="all-linear",
                    fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's layers
                    task_type="SEQ_CLS",
                )
                adapted = get_peft_model(model, config)
        finally:
            hf_logging.set_verbosity(verbosity)
        gpu = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = adapted.to(gpu if self.device == "auto" else self.device)

    def _forward(self, items: Sequence[tuple[str, str]]) -> Tensor:
        config = self._model.config.get_text_config()
        limits = (self.max_length, self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        rows = self._tokenizer(
            [f"{prompt}\n{response}" for prompt, response in items],
            truncation=True,
            max_length=min(limit for limit in limits if limit),
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        logits: Tensor = self._model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        return logits[:, 0].float()
