"""A real learned reward model: MiniLM fine-tuned on film reviews, its accuracy, and a run that trains against it.

    python benchmarks/reward_model.py [--sentences 1600] [--seeds 3] [--no-run] [--data FILE]

Reads sentences with a sentiment of 0 or 1: those of FILE, or what `sources.film_sentences` finds. Each seed draws its
own training sentences and its own held-out ones. The first seed's model is saved as a Hugging Face folder, checked to
score as `labeler=reward_model` exactly as it scored in training, and the demo's policy is trained against it for two
rounds. Writes benchmarks/results/reward_model.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hf_logging

sys.path.insert(0, str(Path(__file__).parent))
from sources import film_sentences

from choosy.labeling.reward_model import RewardModel
from choosy.models.locate import resolve_model
from choosy.types import Prompt, Response

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reward_model.json"
HELDOUT = 800
Rows = list[tuple[str, int]]


def split(rows: Rows, sentences: int, seed: int) -> tuple[Rows, Rows]:
    """Sentences to train on, and others to test on."""
    drawn = random.Random(seed).sample(rows, sentences + HELDOUT)
    return drawn[:sentences], drawn[sentences:]


def fine_tuned(train: Rows, seed: int, *, lr: float = 2e-4, batch_size: int = 32, epochs: int = 2) -> tuple[Any, Any]:
    """MiniLM with one output, trained as a classifier: its logit is the log-odds of a good review."""
    where = resolve_model("demo:minilm", demo="demo:minilm")
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModelForSequenceClassification.from_pretrained(where, num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = epochs * math.ceil(len(train) / batch_size)
    falls = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model.train()
    for _ in range(epochs):
        # alike lengths share a batch, the batches come in any order
        order = sorted(random.Random(seed).sample(range(len(train)), len(train)), key=lambda i: len(train[i][0]))
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        random.Random(seed).shuffle(batches)
        for batch in batches:
            texts, labels = zip(*(train[i] for i in batch), strict=True)
            rows = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(**rows).logits[:, 0], torch.tensor(labels, dtype=torch.float32)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falls.step()
    return model.eval(), tokenizer


def scores_of(folder: str, texts: list[str], **options: Any) -> list[float]:
    """What the labeler makes of texts without a prompt."""
    return RewardModel(folder, **options).score([(Prompt("", ""), Response(text)) for text in texts])


def accuracy(scores: list[float], rows: Rows) -> float:
    return sum((score > 0) == (label == 1) for score, (_, label) in zip(scores, rows, strict=True)) / len(rows)


def run_against(folder: Path, where: Path) -> dict[str, Any]:
    """Two rounds of the demo's policy with the saved model as the labeler."""
    command = [
        *(sys.executable, str(ROOT / "train.py"), "trainer=cpu", f"run_dir={where / 'run'}", "labeler=reward_model"),
        *(f"labeler.model={folder}", "data.limit=48", "data.heldout_limit=24", "rounds=2", "selector=none"),
        *("data.responses=2", "weighting=wdpo"),
        *("sampler.max_new_tokens=24", "lr=5e-4", "callbacks.report.console=false"),
    ]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads((where / "run" / "summary.json").read_text())
    return {
        "command": " ".join(["python", "train.py", *command[2:]]).replace(str(where), "DIR"),
        "reward": summary["reward"],
        "win_rate": summary["win_rate"],
        "labels": summary["labels"]["spent"],
        "seconds": round(time.monotonic() - begun),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-run", action="store_true", help="only the model and its accuracy")
    parser.add_argument("--data", type=Path, help="JSONL of text and label (0 or 1), instead of what is at hand")
    asked = parser.parse_args()
    source = film_sentences(asked.data)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    rows = [(row["text"], row["label"]) for row in map(json.loads, source.path.read_text().splitlines())]
    results: dict[str, Any] = {"data": source.what}
    results |= {"sentences": asked.sentences, "heldout": HELDOUT, "accuracy": [], "seconds_to_train": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sentiment-minilm"
        for seed in range(asked.seeds):
            train, heldout = split(rows, asked.sentences, seed)
            begun = time.process_time()
            model, tokenizer = fine_tuned(train, seed)
            results["seconds_to_train"].append(round(time.process_time() - begun))
            saved = folder if seed == 0 else Path(scratch) / f"seed-{seed}"
            model.save_pretrained(saved)
            tokenizer.save_pretrained(saved)
            texts = [text for text, _ in heldout]
            scores = scores_of(str(saved), texts, batch_size=32)
            results["accuracy"].append(round(accuracy(scores, heldout), 4))
            print(f"seed {seed}: right on {results['accuracy'][-1]:.1%} of {HELDOUT} held-out sentences", flush=True)
            if seed == 0:
                alone = scores_of(str(saved), texts[:40], batch_size=1)
                bf16 = scores_of(str(saved), texts[:200], batch_size=32, dtype="bfloat16")
                results["batched_against_alone"] = max(abs(a - b) for a, b in zip(alone, scores[:40], strict=True))
                results["bf16_accuracy_of_200"] = accuracy(bf16, heldout[:200])
                results["fp32_accuracy_of_200"] = accuracy(scores[:200], heldout[:200])
        mean = sum(results["accuracy"]) / asked.seeds
        half = 1.96 * math.sqrt(mean * (1 - mean) / (HELDOUT * asked.seeds))
        results["mean_accuracy"] = round(mean, 4)
        print(
            f"mean {mean:.1%} ± {half:.1%} (95 %); a batch differs from one by one by at most "
            f"{results['batched_against_alone']:.1e}; bf16 {results['bf16_accuracy_of_200']:.1%} against "
            f"fp32 {results['fp32_accuracy_of_200']:.1%} of 200"
        )
        if not asked.no_run:
            results["run"] = run_against(folder, Path(scratch))
            reward = results["run"]["reward"]
            print(
                f"the policy against it: reward {reward['initial']:.2f} -> {reward['final']:.2f}, "
                f"win rate {results['run']['win_rate']:.2f}, {results['run']['labels']} labels"
            )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
