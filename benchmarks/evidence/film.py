"""The task film: a small language model continues reviews of films, and a classifier of sentiment is the labeler.

The policy is a Llama of 1.2 million parameters, trained here from scratch on sentences of reviews. The labeler is a
logistic regression on tf-idf, whose margin is the reward. All of it is made once, in a few minutes, and cached.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a run imports this file for its labeler alone
    from sources import Source

from choosy.types import Prompt, Response, Verdict

HERE = Path(__file__).parent
CACHES = HERE / "cache"
VOCABULARY, LONGEST = 3000, 48
PROMPTS, HELDOUT = 512, 512


def prepare(data: Source) -> Path:
    """Make the policy, the labeler and the prompts, unless they are in the cache; return their folder."""
    folder = CACHES / f"film{data.tag}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in data.path.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    split = len(rows) * 3 // 4
    make_labeler(folder, rows[:split], rows[split:])
    make_prompts(folder, rows[split:])
    make_policy(folder, [row["text"] for row in rows[:split]])
    (folder / "done").touch()
    return folder


def make_labeler(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    """Fit the classifier of sentiment, and print how often it is right on sentences that it has not seen."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=4.0, max_iter=1000)
    )
    classifier.fit([row["text"] for row in train], [row["label"] for row in train])
    right = classifier.score([row["text"] for row in test], [row["label"] for row in test])
    print(f"film: the labeler is right on {right:.1%} of {len(test)} unseen sentences", flush=True)
    (folder / "labeler.pkl").write_bytes(pickle.dumps(classifier))
    make_second_judge(folder, train, test)


def make_second_judge(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    """Fit a classifier to MiniLM's embeddings of the same sentences."""
    from sklearn.linear_model import LogisticRegression

    embedder = _embedder()
    classifier = LogisticRegression(C=4.0, max_iter=1000)
    classifier.fit(embedder.encode([row["text"] for row in train]), [row["label"] for row in train])
    right = classifier.score(embedder.encode([row["text"] for row in test]), [row["label"] for row in test])
    print(f"film: the second judge is right on {right:.1%} of {len(test)} unseen sentences", flush=True)
    (folder / "second_judge.pkl").write_bytes(pickle.dumps(classifier))


def make_prompts(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the first 3 to 6 words of unseen sentences, half of them to tune on, half held out."""
    draw = random.Random(1)
    starts: dict[str, None] = {}
    for row in rows:
        words = row["text"].split()
        if len(words) >= 8:
            starts.setdefault(" ".join(words[: draw.randint(3, 6)]))
    chosen = list(starts)
    if len(chosen) < PROMPTS + HELDOUT:
        raise SystemExit(
            f"film needs {PROMPTS + HELDOUT:,} different beginnings of sentences of 8 words or more, a quarter of the "
            f"file's, and found {len(chosen):,}; type --data FILE with more of them"
        )
    for name, some in (("train", chosen[:PROMPTS]), ("heldout", chosen[PROMPTS : PROMPTS + HELDOUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in some))


def make_policy(
    folder: Path,
    texts: list[str],
    *,
    longest: int = LONGEST,
    epochs: int = 12,
    size: int = 64,
    task: str = "film",
) -> None:
    """Train the tokenizer and the language model on texts of at most so many tokens, `size` a step."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=max(128, 2 * longest),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = [[*tokenizer(text).input_ids[: longest - 1], tokenizer.eos_token_id] for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    draw = random.Random(2)
    steps = epochs * (len(rows) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    began, losses = time.monotonic(), []
    for _ in range(epochs):
        draw.shuffle(rows)
        for start in range(0, len(rows) - size + 1, size):
            batch = rows[start : start + size]
            width = max(map(len, batch))
            ids_BL = torch.tensor([row + [0] * (width - len(row)) for row in batch])
            length_B1 = torch.tensor([[len(row)] for row in batch])
            labels_BL = ids_BL.masked_fill(torch.arange(width) >= length_B1, -100)
            loss = model(input_ids=ids_BL, labels=labels_BL).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"{task}: {sum(p.numel() for p in model.parameters()):,} parameters, loss {sum(losses[-50:]) / 50:.2f}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


@cache
def _labeler() -> Any:
    return pickle.loads(Path(os.environ["FILM_LABELER"]).read_bytes())


def sentiment(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """The labeler's margin on each prompt and response together; larger is more positive."""
    return list(_labeler().decision_function([p + c for p, c in zip(prompts, completions, strict=True)]))


class Verdicts:
    """The labeler as one that only compares: the response of the larger margin is the better one."""

    name = "film.verdicts"

    def compare(self, items: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict]:
        """One verdict per pair."""
        margins = [sentiment([prompt.text] * 2, [response.text for response in pair]) for prompt, *pair in items]
        return ["tie" if first == second else "first" if first > second else "second" for first, second in margins]


def second_judge(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """The margin of another classifier, which is fitted to MiniLM's embeddings and which no selector sees."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return list(_second_classifier().decision_function(_embedder().encode(texts)))


@cache
def _second_classifier() -> Any:
    return pickle.loads(Path(os.environ["FILM_LABELER"]).with_name("second_judge.pkl").read_bytes())


@cache
def _embedder() -> Any:
    from sentence_transformers import SentenceTransformer

    from choosy.models.locate import resolve_model

    return SentenceTransformer(resolve_model("demo:minilm", demo="demo:minilm"), device="cpu")


LINES = (
    "trainer=cpu",
    "model=smollm2_full",
    "model.name={made}/policy",
    "model.dtype=float32",
    "data.train={made}/train.jsonl",
    "data.heldout={made}/heldout.jsonl",
    "data.reader.as_chat=false",
    "loss=sigmoid",
    "sampler=generate",
    "sampler.temperature=0.7",
    "sampler.top_p=1.0",
    "sampler.max_new_tokens=16",
    "batching.batch_size=16",
    "callbacks.report.console=false",
    "callbacks.checkpoint.every_n_steps=0",
)
SCORED = ("labeler=function", "labeler.path=film.sentiment")
COMPARED = ("labeler=mine", "labeler._target_=film.Verdicts")
OFTEN_WRONG = (
    "labeler=noisy",
    "labeler@labeler.wrapped=mine",
    "labeler.wrapped._target_=film.Verdicts",
    "labeler.p=0.2",
)
JUDGED_BY_SCORE = ("labeler@labels.evaluation=function", "labels.evaluation.path=film.sentiment")
JUDGED_BY_ANOTHER = ("labeler@labels.evaluation=function", "labels.evaluation.path=film.second_judge")
PAIRS = (  # each round labels pairs, and trains the start's weights on all labels so far
    *LINES,
    "weighting=uniform",
    "data.responses=4",
    "pairing=best_worst",
    "rounds=4",
    "epochs_per_round=8",
    "reset_policy=each_round",
    "pool.keep=all",
)
ONLINE = (  # each round samples prompts again, scores all responses, and trains on each prompt's newest pair
    *LINES,
    *SCORED,
    "data.responses=2",
    "rounds=5",
    "epochs_per_round=1",
    "reset_policy=never",
    "pool.keep=newest",
)
