"""A queue writes pairs to files, ends the run in good order, and is asked only for labels that the ledger lacks."""

from __future__ import annotations

import csv
import json

import pytest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Question
from choosy.labeling.protocols import Answer, Postponed
from choosy.labeling.queue import Queue
from choosy.types import Message, Prompt, Response

TALK = Prompt("p0", "user: Why?", (Message("user", "Why?"),))
ASKED = [(TALK, Response('Because,\n"so".'), Response("No.")), (Prompt("p1", "Who?"), Response("I."), Response("You."))]


@pytest.fixture
def buyer(tmp_path) -> LabelBuyer:
    buyer = LabelBuyer(
        Queue(str(tmp_path), ledger=str(tmp_path / "my ledger.sqlite")), ledger=str(tmp_path / "my ledger.sqlite")
    )
    buyer.open("run")
    return buyer


def test_pairs_are_in_both_files_and_the_message_says_what_to_type(buyer, tmp_path):
    with pytest.raises(Postponed) as postponed:
        buyer.compare(ASKED)
    path = tmp_path / "wanted.jsonl"
    assert f"2 pairs want a label: write first, second, tie or invalid as the verdict of each row of {path}" in str(
        postponed.value
    )
    assert f"choosy labels import '{tmp_path}/my ledger.sqlite' {path}" in str(postponed.value)
    assert Postponed.exit_code == 75
    lines = [json.loads(line) for line in (tmp_path / "wanted.jsonl").read_text().splitlines()]
    key = Question("queue", "", *(ASKED[0][0], ASKED[0][1:])).key
    assert lines[0] == {
        "key": key,
        "fingerprint": "",
        "stamp": "",
        "labeler": "queue",
        "kind": "compare",
        "prompt_id": "p0",
        "prompt": "user: Why?",
        "messages": [{"role": "user", "content": "Why?"}],
        "response_first": 'Because,\n"so".',
        "response_second": "No.",
        "verdict": None,
    }
    with (tmp_path / "wanted.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["response_first"] for row in table] == ['Because,\n"so".', "I."]
    assert [row["verdict"] for row in table] == ["", ""]
    assert json.loads(table[0]["messages"]) == [{"role": "user", "content": "Why?"}]


def test_one_file_has_all_pairs_without_a_label_and_no_others(buyer, tmp_path):
    many = [(Prompt(f"q{i}", f"prompt {i}"), Response("a"), Response("b")) for i in range(200)]
    known = Question("queue", "", many[0][0], (many[0][1], many[0][2]))
    buyer.ledger.write([(known, Answer(0, "first", judgements=1))], purpose="train", run="elsewhere")
    with pytest.raises(Postponed, match="199 pairs want a label"):
        buyer.compare(many)
    assert len((tmp_path / "wanted.jsonl").read_text().splitlines()) == 199
    assert buyer.compare(many[:1]) == ["first"]
