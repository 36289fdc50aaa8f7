"""The demo's prompts: enough of them, all different, of many lengths, and inside the installed package."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

Rows = list[dict[str, str]]


def read(split: str) -> Rows:
    text = (files("choosy.data.prompts") / f"{split}.jsonl").read_text(encoding="ascii")
    return [json.loads(line) for line in text.splitlines()]


def words(prompt: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9']+", prompt.lower()))


@pytest.fixture(scope="module")
def train() -> Rows:
    return read("train")


@pytest.fixture(scope="module")
def heldout() -> Rows:
    return read("heldout")


@pytest.mark.parametrize(("split", "at_least"), [("train", 256), ("heldout", 64)])
def test_each_row_is_an_id_and_a_tidy_prompt(split: str, at_least: int) -> None:
    rows = read(split)
    assert len(rows) >= at_least
    assert [row["id"] for row in rows] == [f"{split}-{n:03d}" for n in range(1, len(rows) + 1)]
    for row in rows:
        assert row.keys() == {"id", "prompt"}
        assert row["prompt"] == " ".join(row["prompt"].split()), "one line, single spaces, not padded"


def test_no_prompt_appears_twice_within_or_across_the_splits(train: Rows, heldout: Rows) -> None:
    seen = Counter(words(row["prompt"]) for row in train + heldout)
    assert [prompt for prompt, count in seen.items() if count > 1] == []


def test_no_opening_of_four_words_is_a_template(train: Rows, heldout: Rows) -> None:
    openings = Counter(words(row["prompt"])[:4] for row in train + heldout)
    assert {opening: count for opening, count in openings.items() if count > 4} == {}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_lengths_run_from_a_few_words_to_a_small_scene(split: str) -> None:
    lengths = [len(row["prompt"].split()) for row in read(split)]
    assert 3 <= min(lengths) <= 7
    assert 40 <= max(lengths) <= 60
