"""Train small models of preferences: encoders with a LoRA adapter under one output."""

from __future__ import annotations

import math
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

from choosy.console import hide_progress_bars
from choosy.models.damaged import refusing_damaged
from choosy.models.locate import resolve_model
from choosy.models.trust import loaded
from choosy.types import Verdict

TIE_LR = 0.05  # of the tie's half-width, which is one number


class Preference(NamedTuple):
    """A verdict on two responses, as texts; in a tie neither is better."""

    prompt: str
    better: str
    worse: str
    tie: bool = False


class Choice(NamedTuple):
    """Probabilities of the verdicts on two responses."""

    first: float
    tie: float
    second: float

    @property
    def verdict(self) -> Verdict:
        """The likeliest verdict; a tie where both responses are as likely to win."""
        best = max(self)
        if self.tie == best or self.first == self.second:
            return "tie"
        return "first" if self.first == best else "second"

    @property
    def confidence(self) -> float:
        """The probability of the likeliest verdict."""
        return max(self)


@dataclass(eq=False)
class PreferenceModel:
    """Predicts the verdict on two responses to a prompt: a blend of encoders, each with its adapter (LoRA-LiteE).

    An encoder rates a response; with g the difference of two ratings and t its half-width of a tie,

        P(first) = sigmoid(g - t),  P(second) = sigmoid(-g - t),  P(tie) = 1 - P(first) - P(second)

    (Rao and Kupper 1967). Both are learned, t from the ties among the examples; without any there are none. The blend's
    probabilities are the shares' means of the encoders' (arXiv 2411.09947). They do not depend on the order in which
    two responses are shown.

    Raises:
        ValueError: The shares are not one positive number for each encoder, or an encoder's folder or package is not
            there.
    """

    encoder: str | list[str] = "demo:minilm"  # folders or hub ids of transformers with a tokenizer
    _: KW_ONLY
    shares: list[float] | None = None  # of each encoder in the blend; None = equal ones
    seed: int = 0  # of the adapter's first weights and of the order of the examples
    r: int = 8  # rank of the adapter
    lr: float = 1e-3
    epochs: int = 4  # passes over the examples
    batch_size: int = 16  # preferences of a step
    max_length: int = 256  # most tokens of prompt and response together; the beginning is cut
    device: str = "auto"  # a GPU if there is one

    def __post_init__(self) -> None:
        encoders = [self.encoder] if isinstance(self.encoder, str) else list(self.encoder)
        shares = [1.0] * len(encoders) if self.shares is None else list(self.shares)
        if not encoders or len(shares) != len(encoders) or not all(share > 0 for share in shares):
            raise ValueError(
                f"labeler.model.shares={self.shares} gives no positive share to each of {len(encoders)} encoders; type "
                "one number for each, such as labeler.model.shares=[0.7,0.3], or null"
            )
        for name in encoders:
            resolve_model(name, demo="demo:minilm")  # refuses a folder or a package that is not there
        self._raters = [Rater(name, self) for name in encoders]
        self._shares = [share / sum(shares) for share in shares]

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """All settings that its predictions depend on."""
        return tuple(str(getattr(self, one.name)) for one in fields(self) if one.name != "device")

    def fit(self, examples: Sequence[Preference]) -> None:
        """Train each encoder from its weights on the mean of -log P(verdict)."""
        for rater in self._raters:
            rater.fit(examples)

    def choices(self, pairs: Sequence[tuple[str, str, str]]) -> list[Choice]:
        """Return the probabilities of the verdicts on each (prompt, first, second)."""
        of_raters = [rater.choices(pairs) for rater in self._raters]
        return [
            Choice(*(sum(map(math.prod, zip(self._shares, of, strict=True))) for of in zip(*of_pair, strict=True)))
            for of_pair in zip(*of_raters, strict=True)
        ]


def log_choice(gap_B: Tensor, tie: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities that the first wins, and of a tie, which has a half-width of 0 or more.

    Example:
        >>> first, tied = log_choice(torch.zeros(1), torch.tensor(math.log(3)))  # tanh(log(3) / 2) = 1 / 2
        >>> round(first.exp().item(), 4), round(tied.exp().item(), 4)
        (0.25, 0.5)
    """
    tied_B = F.logsigmoid(tie - gap_B) + F.logsigmoid(tie + gap_B) + torch.log(-torch.expm1(-2 * tie))
    return F.logsigmoid(gap_B - tie), tied_B


class Rater:
    """One encoder with a LoRA adapter under one output, which rates a response to a prompt."""

    def __init__(self, encoder: str, settings: PreferenceModel) -> None:
        self.encoder = encoder
        self.settings = settings
        self.tie = 0.0  # half-width of a tie, in ratings
        self._tokenizer: Any = None
        self._model: Any = None

    def fit(self, examples: Sequence[Preference]) -> None:
        """Train from the encoder's weights; the width of a tie starts where equal ratings tie as often as examples."""
        self._load()
        how = self.settings
        ties = sum(e.tie for e in examples) / max(len(examples), 1)
        log_tie = torch.tensor(math.log(2 * math.atanh(min(ties, 0.99))) if ties else -math.inf, requires_grad=True)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained}]
        groups += [{"params": [log_tie], "lr": TIE_LR, "weight_decay": 0.0}] if ties else []
        optimizer = torch.optim.AdamW(groups, lr=how.lr, weight_decay=0.01)
        generator = torch.Generator().manual_seed(how.seed)
        steps = how.epochs * -(-len(examples) // how.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
        with torch.random.fork_rng():
            torch.manual_seed(how.seed)  # dropout
            self._model.train()
            for _ in range(how.epochs):
                for rows_B in torch.split(torch.randperm(len(examples), generator=generator), how.batch_size):
                    batch = [examples[i] for i in rows_B]
                    texts = [(e.prompt, e.better) for e in batch] + [(e.prompt, e.worse) for e in batch]
                    better_B, worse_B = self._forward(texts).cpu().chunk(2)
                    tied_B = torch.tensor([e.tie for e in batch])
                    won_B, drawn_B = log_choice(better_B - worse_B, log_tie.exp())
                    loss = -torch.cat([won_B[~tied_B], drawn_B[tied_B]]).mean()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no type
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    schedule.step()
            self._model.eval()
        self.tie = log_tie.exp().item()

    def choices(self, pairs: Sequence[tuple[str, str, str]]) -> list[Choice]:
        """Return the probabilities of the verdicts on each (prompt, first, second)."""
        ratings = self.ratings([(prompt, response) for prompt, *both in pairs for response in both])
        gap_N = torch.tensor(ratings[::2], dtype=torch.float64) - torch.tensor(ratings[1::2], dtype=torch.float64)
        first_N, second_N = (gap_N - self.tie).sigmoid(), (-gap_N - self.tie).sigmoid()
        tie_N = (1 - first_N - second_N).clamp(min=0.0) if self.tie else torch.zeros_like(gap_N)
        return [Choice(*each) for each in zip(first_N.tolist(), tie_N.tolist(), second_N.tolist(), strict=True)]

    @torch.inference_mode()
    def ratings(self, items: Sequence[tuple[str, str]]) -> list[float]:
        """Return the rating of each (prompt, response); items of similar length share a batch."""
        order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + len(items[i][1]))
        ratings = [0.0] * len(items)
        at_once = 4 * self.settings.batch_size
        for start in range(0, len(order), at_once):
            batch = order[start : start + at_once]
            for i, rating in zip(batch, self._forward([items[i] for i in batch]).tolist(), strict=True):
                ratings[i] = rating
        return ratings

    def _load(self) -> None:
        hide_progress_bars()
        where = resolve_model(self.encoder, demo="demo:minilm")
        self._tokenizer = loaded(AutoTokenizer.from_pretrained, where, padding_side="right", truncation_side="left")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the output layer is new, as intended
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.settings.seed)
                with refusing_damaged(where):
                    model = loaded(
                        AutoModelForSequenceClassification.from_pretrained, where, num_labels=1, dtype=torch.float32
                    )
                model.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
                config = LoraConfig(
                    r=self.settings.r,
                    lora_alpha=2 * self.settings.r,
                    target_modules="all-linear",
                    fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's layers
                    task_type="SEQ_CLS",
                )
                adapted = get_peft_model(model, config)
        finally:
            hf_logging.set_verbosity(verbosity)
        gpu = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = adapted.to(gpu if self.settings.device == "auto" else self.settings.device)

    def _forward(self, items: Sequence[tuple[str, str]]) -> Tensor:
        config = self._model.config.get_text_config()
        limits = (
            self.settings.max_length,
            self._tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None),
        )
        rows = self._tokenizer(
            [f"{prompt}\n{response}" for prompt, response in items],
            truncation=True,
            max_length=min(limit for limit in limits if limit),
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        logits: Tensor = self._model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        return logits[:, 0].float()
