"""Convert labels to tasks of Label Studio, or its annotations to labels."""

from __future__ import annotations

from collections.abc import Iterable

from choosy.labeling.exchange.rows import SHOWN, LabelRow, agreed, part_of

INTERFACE = """<View>
  <Header value="$prompt"/>
  <Pairwise name="verdict" toName="response_first,response_second"/>
  <Text name="response_first" value="$response_first"/>
  <Text name="response_second" value="$response_second"/>
  <Choices name="neither" toName="response_first"><Choice value="tie"/><Choice value="invalid"/></Choices>
</View>"""

VERDICT_OF_SIDE = {"left": "first", "right": "second"}
SIDE_OF_VERDICT = {verdict: side for side, verdict in VERDICT_OF_SIDE.items()}


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
