"""Convert labels to and from the items of annotation tools: tasks of Label Studio, records of Argilla."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from choosy.labeling.exchange.rows import SHOWN, LabelRow, json_text

INTERFACE = """<View>
  <Header value="$prompt"/>
  <Pairwise name="verdict" toName="response_first,response_second"/>
  <Text name="response_first" value="$response_first"/>
  <Text name="response_second" value="$response_second"/>
  <Choices name="neither" toName="response_first"><Choice value="tie"/><Choice value="invalid"/></Choices>
</View>"""

VERDICT_OF_SIDE = {"left": "first", "right": "second"}
SIDE_OF_VERDICT = {verdict: side for side, verdict in VERDICT_OF_SIDE.items()}
AGENT = "choosy"  # who suggested a label that comes from a ledger, in Argilla


def to_task(row: LabelRow) -> LabelRow:
    """Return a task of a project with `INTERFACE`, annotated if the row has an answer.

    Label Studio refuses tasks that lack a field of the interface, so a score has an empty second response.
    """
    task: LabelRow = {
        "data": {name: "" if row[name] is None else row[name] for name in ("key", *SHOWN)},
        "meta": {name: value for name, value in row.items() if name not in ("key", *SHOWN, "score", "verdict")},
    }
    verdict, score = row.get("verdict"), row.get("score")
    if verdict in SIDE_OF_VERDICT:
        side = {"selected": SIDE_OF_VERDICT[verdict]}
        result = {"from_name": "verdict", "to_name": "verdict", "type": "pairwise", "value": side}
    elif verdict is not None:
        choice = {"choices": [verdict]}
        result = {"from_name": "neither", "to_name": "response_first", "type": "choices", "value": choice}
    elif score is not None:
        number = {"number": score}
        result = {"from_name": "score", "to_name": "response_first", "type": "number", "value": number}
    else:
        return task
    return {**task, "annotations": [{"result": [result]}]}


def from_task(task: LabelRow) -> LabelRow:
    """Return the row of a task; its annotations must agree."""
    if not isinstance(task.get("data"), dict):
        raise ValueError("no data; wanted a Label Studio task, as in its export named JSON, not JSON-MIN")
    answers: list[tuple[LabelRow, str]] = []
    for annotation in part_of(task, "annotations", list):
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        if answer := answer_in(part_of(annotation, "result", list)):
            by = annotation.get("completed_by") or ""
            answers.append((answer, str(by.get("email", by.get("id", ""))) if isinstance(by, dict) else str(by)))
    meta, data = part_of(task, "meta"), dict(task["data"])
    if meta.get("kind") == "score":
        data.pop("response_second", None)
    return {**meta, **data, **agreed(answers)}


def answer_in(results: Iterable[object]) -> LabelRow:
    """Return the verdict or score among the results of one annotation; empty if there is none."""
    found: list[LabelRow] = []
    for result in results:
        match result:
            case {"value": {"selected": str(side)}}:
                found.append({"verdict": VERDICT_OF_SIDE.get(side, side)})
            case {"value": {"choices": [str(choice)]}}:
                found.append({"verdict": choice})
            case {"value": {"number": number}}:
                found.append({"score": number})
    if len(found) > 1:
        raise ValueError(f"an annotation says {len(found)} things; wanted one side, tie or invalid, or one number")
    return found[0] if found else {}


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


def part_of(item: Mapping[str, Any], name: str, kind: type = dict) -> Any:
    """Return a part of a JSON object, empty where it is missing; refuse one of another kind."""
    part = item.get(name) or kind()
    if not isinstance(part, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, found {type(part).__name__}")
    return part


def agreed(answers: Sequence[tuple[LabelRow, str]]) -> LabelRow:
    """Return the one answer that all annotators gave, with their names; refuse answers that differ."""
    if not answers:
        return {"verdict": None, "score": None}
    given = [answer for answer, _ in answers]
    if any(answer != given[0] for answer in given):
        values = ", ".join(str(value) for answer in given for value in answer.values())
        raise ValueError(f"its annotators disagree ({values}); keep the answer that should count")
    names = " ".join(dict.fromkeys(name for _, name in answers if name))
    return {**given[0], **({"annotator": names} if names else {})}
