"""Convert labels to records of Argilla, or its responses to labels."""

from __future__ import annotations

import json

from choosy.labeling.exchange.rows import SHOWN, LabelRow, agreed, json_text, part_of

AGENT = "choosy"  # who suggested a label that comes from a ledger


def to_record(row: LabelRow) -> LabelRow:
    """Return a record as Argilla's `records.from_json` reads it, with an answer as a suggestion.

    A response would have to name one of the Argilla server's own users by its id.
    """
    question = "score" if row["kind"] == "score" else "verdict"
    value = row.get(question)
    metadata = {name: value for name, value in row.items() if name not in (*SHOWN, "score", "verdict")}
    return {
        "id": row["key"],
        "fields": {name: row[name] for name in SHOWN if row[name] is not None},
        "metadata": metadata | {"messages": json_text(row["messages"])},
        "suggestions": {} if value is None else {question: {"value": value, "score": None, "agent": AGENT}},
        "responses": {},
        "vectors": {},
    }


def from_record(record: LabelRow) -> LabelRow:
    """Return the row of a record; its responses must agree. Without any, a suggestion from a ledger counts."""
    fields, metadata = part_of(record, "fields"), part_of(record, "metadata")
    answers: list[tuple[LabelRow, str]] = []
    for question in ("verdict", "score"):
        for response in part_of(part_of(record, "responses"), question, list):
            if isinstance(response, dict) and response.get("value") is not None:
                answers.append(({question: response["value"]}, str(response.get("user_id") or "")))
    for question, suggestion in {} if answers else part_of(record, "suggestions").items():
        if isinstance(suggestion, dict) and suggestion.get("agent") == AGENT:
            answers.append(({question: suggestion.get("value")}, ""))
    messages = metadata.get("messages")
    turns = {"messages": json.loads(messages)} if isinstance(messages, str) else {}
    key = {"key": record["id"]} if "key" in metadata else {}
    return {**metadata, **turns, **key, **fields, **agreed(answers)}
