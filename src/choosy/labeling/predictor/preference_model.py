"""A small model of somebody's preferences: a LoRA adapter and one output on an encoder, trained on their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hf_logging

from choosy.models.locate import resolve_embedder


class Preference(NamedTuple):
    """Somebody's verdict on two responses, as texts."""

    prompt: str
    better: str
    worse: str


class PreferenceModel:
    """Rates a response to a prompt; the chance that one is preferred is the sigmoid of the ratings' difference.

    So the order in which two are shown cannot matter, and what is learned of two helps with any two.

    Args:
        encoder: A folder or hub id of a transformer with a tokenizer, or `demo:minilm`.
        seed: Of the adapter's first weights and of the order of the examples.
        r: Rank of the adapter.
        lr: Learning rate.
        epochs: Passes over the examples.
        batch_size: Preferences of a step.
        max_length: Tokens of prompt and response together; the beginning is cut.
        device: Where it runs; auto takes a GPU if there is one.
    """

    def __init__(
        self,
        encoder: str,
        *,
        seed: int = 0,
        r: int = 8,
        lr: float = 1e-3,
        epochs: int = 4,
        batch_size: int = 16,
        max_length: int = 256,
        device: str = "auto",
    ) -> None:
        self.encoder = encoder
        self.seed = seed
        self.r = r
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._tokenizer, self._model = self._loaded()

    def _loaded(self) -> tuple[Any, Any]:
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        where = resolve_embedder(self.encoder)
        tokenizer = AutoTokenizer.from_pretrained(where, padding_side="right", truncation_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        before = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                # the output is new: transformers says so, and it is what is wanted
                model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=1, dtype=torch.float32)
                model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
                config = LoraConfig(r=self.r, lora_alpha=2 * self.r, target_modules="all-linear", task_type="SEQ_CLS")
                adapted = get_peft_model(model, config)
        finally:
            hf_logging.set_verbosity(before)
        return tokenizer, adapted.to(self.device).eval()

    def fit(self, examples: Sequence[Preference]) -> None:
        """Learn these preferences: -log sigmoid(rating of the better - rating of the worse), averaged."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.01)
        draw = torch.Generator().manual_seed(self.seed)
        steps = self.epochs * -(-len(examples) // self.batch_size)
        falls = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # dropout
            self._model.train()
            for _ in range(self.epochs):
                order = torch.randperm(len(examples), generator=draw).tolist()
                for start in range(0, len(order), self.batch_size):
                    batch = [examples[i] for i in order[start : start + self.batch_size]]
                    texts = [(e.prompt, e.better) for e in batch] + [(e.prompt, e.worse) for e in batch]
                    better_B, worse_B = self._forward(texts).chunk(2)
                    loss = -F.logsigmoid(better_B - worse_B).mean()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    falls.step()
            self._model.eval()

    @torch.inference_mode()
    def ratings(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """The rating of each (prompt, response); items of like length share a batch."""
        order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + len(items[i][1]))
        ratings = [0.0] * len(items)
        for start in range(0, len(order), 4 * self.batch_size):
            batch = order[start : start + 4 * self.batch_size]
            for i, rating in zip(batch, self._forward([items[i] for i in batch]).tolist(), strict=True):
                ratings[i] = rating
        return ratings

    def _forward(self, items: Sequence[tuple[str, str]]) -> Tensor:
        config = self._model.config.get_text_config()
        limits = (self.max_length, self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        rows = self._tokenizer(
            [f"{prompt}\n{response}" for prompt, response in items],
            truncation=True,
            max_length=min(limit for limit in limits if limit),
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        logits: Tensor = self._model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        return logits[:, 0].float()
