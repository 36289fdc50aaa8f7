"""Convert labels of the ledger to rows of a file, or back."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from choosy.errors import json_fault
from choosy.foreign import csv_text, from_cell
from choosy.labeling.ledger import Question
from choosy.labeling.protocols import is_number
from choosy.types import MIRRORED, Message, Prompt, Response, content_id

LabelRow = dict[str, Any]
RowReaders = Iterator[tuple[str, Callable[[], LabelRow]]]  # the place of each row, and a function that reads it

LABEL_COLUMNS = (
    *("key", "labeler", "fingerprint", "stamp", "kind", "prompt_id", "prompt", "messages"),
    *("response_first", "response_second", "score", "verdict", "raw", "cost", "annotator"),
    *("judgements", "purpose", "run", "time"),
)
SHOWN = ("prompt", "response_first", "response_second")  # what an annotator reads
TEXTS = (*SHOWN, "labeler", "fingerprint", "stamp", "prompt_id", "raw", "annotator", "run")
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
FileFormat = Literal["jsonl", "csv", "label-studio", "argilla"]
FILE_FORMATS: tuple[FileFormat, ...] = ("jsonl", "csv", "label-studio", "argilla")
BY_SUFFIX: dict[str, FileFormat] = {".jsonl": "jsonl", ".csv": "csv"}


def exported(row: Mapping[str, Any]) -> LabelRow:
    """Turn a row of the ledger into a row of a file, its conversation as a list of messages."""
    turns = [{"role": role, "content": content} for role, content in json.loads(row["messages"])]
    return {name: turns if name == "messages" else row[name] for name in LABEL_COLUMNS if name in row}


def json_text(value: Any, indent: int | None = None) -> str:
    """Write JSON with letters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def to_jsonl(rows: Iterable[LabelRow]) -> str:
    """Write one JSON object per line."""
    return "".join(json_text(row) + "\n" for row in rows)


def to_csv(rows: Iterable[LabelRow], columns: Sequence[str] = LABEL_COLUMNS) -> str:
    """Write a table with a line of column names; the conversation is a field of JSON."""
    return csv_text(columns, ({**row, "messages": json_text(row["messages"])} for row in rows))


def from_jsonl(text: str) -> RowReaders:
    """Read one JSON object per line; empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", partial(json_object, line)


def json_object(text: str) -> LabelRow:
    """Parse a JSON object."""
    return as_object(parse_json(text, "not JSON"))


def parse_json(text: str, why: str) -> Any:
    """Parse JSON, in which pandas writes NaN for a missing value; an error begins with `why`."""
    try:
        return json.loads(text.rstrip(), parse_constant=lambda name: None if name == "NaN" else float(name))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{why} ({json_fault(error)})") from error


def as_object(value: Any) -> LabelRow:
    """Return a value that is a JSON object, and refuse any other."""
    if not isinstance(value, dict):
        raise ValueError(f"wanted a JSON object, found {type(value).__name__}")
    return value


def from_csv(text: str) -> RowReaders:
    """Read a table with a line of column names."""
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for fields in reader:
            yield f"line {reader.line_num}", partial(from_fields, fields, len(reader.fieldnames or ()))
    except csv.Error as error:
        raise ValueError(f"no CSV with a line of column names first ({error})") from error


def from_fields(fields: Mapping[str | None, Any], width: int) -> LabelRow:
    """Convert the fields of one line of CSV from text; an empty field is a missing one."""
    if None in fields or None in fields.values():
        raise ValueError(f"wanted {width} fields, as the first line has, found another number")
    row: LabelRow = {str(name): value for name, value in fields.items() if value != ""}
    for name in row.keys() & {"score", "cost", "time", "judgements"}:
        try:
            row[name] = int(row[name]) if name == "judgements" else float(row[name])
        except ValueError:
            raise ValueError(f"{name} must be a number, found {row[name]!r}") from None
    for name in row.keys() & set(TEXTS):
        row[name] = from_cell(row[name])
    if "messages" in row:
        row["messages"] = parse_json(row["messages"], "messages must be JSON")
    if "kind" in row:  # tells an empty response from a missing one
        for name in SHOWN[:2] if row["kind"] == "score" else SHOWN:
            row.setdefault(name, "")
    return row


def checked(
    row: LabelRow, wanted: Mapping[str, LabelRow], fingerprints: Mapping[str, str], labeler: str | None = None
) -> LabelRow:
    """Complete and check a row of a file for the ledger.

    Args:
        wanted: Rows that a run waits for, by key; they complete a row that has their key.
        fingerprints: Of labelers, for rows that have none.
        labeler: Under whose name the label is stored; None takes the row's own.
    """
    key = row.get("key")
    asked = wanted.get(key) if isinstance(key, str) else None
    full: LabelRow = {
        **{"fingerprint": fingerprints.get(labeler or str(row.get("labeler")), ""), "stamp": "", "messages": []},
        **{"response_second": None, "score": None, "verdict": None},
        **{"raw": "", "cost": 0.0, "annotator": "", "judgements": 1, "purpose": "train", "run": "import"},
        **{"time": time.time()},
        **(exported(asked) if asked else {}),
        **{name: row[name] for name in LABEL_COLUMNS if row.get(name) is not None},
    }
    own = full.get("labeler")
    full["labeler"] = own if labeler is None else labeler
    if full["labeler"] is None:
        raise ValueError("no labeler; give it a column labeler, or type --labeler NAME for all")
    if missing := [name for name in ("prompt", "response_first") if full.get(name) is None]:
        raise ValueError(f"no {' and no '.join(missing)}, and no run waits for the key {key!r}")
    full.setdefault("prompt_id", content_id(str(full["prompt"])))
    check_types(full)
    check_answer(full)
    prompt = Prompt(full["prompt_id"], full["prompt"], checked_turns(full["messages"]))
    responses = tuple(Response(full[name]) for name in SHOWN[1:] if full[name] is not None)
    question = Question(full["labeler"], "", prompt, responses, full["stamp"], full["fingerprint"])
    if key not in (None, question.key) and full["labeler"] == own:
        raise ValueError(f"the key {key!r} belongs to other contents, and these have the key {question.key!r}")
    return {**full, **question.columns}


def check_types(row: LabelRow) -> None:
    """Refuse a row with a field of the wrong type; the answer is not checked."""
    for name in TEXTS:
        if not isinstance(row[name], str | None if name == "response_second" else str):
            raise ValueError(f"{name} must be a text, found {row[name]!r}")
    if row["purpose"] not in ("train", "evaluate"):
        raise ValueError(f"purpose must be train or evaluate, found {row['purpose']!r}")
    for name in ("cost", "time"):
        if isinstance(row[name], bool) or not is_number(row[name]) or row[name] < 0:
            raise ValueError(f"{name} must be a number, 0 or more, found {row[name]!r}")
    if type(row["judgements"]) is not int or not 0 <= row["judgements"] < 1 << 31:
        raise ValueError(f"judgements must be a whole number, 0 or more, found {row['judgements']!r}")


def check_answer(row: LabelRow) -> None:
    """Refuse one response without a score, or two without a verdict."""
    if row["response_second"] is None:
        if row["verdict"] is not None or isinstance(row["score"], bool) or not is_number(row["score"]):
            found = row["score"] if row["verdict"] is None else row["verdict"]
            raise ValueError(f"one response needs a score that is a finite number, found {found!r}")
    elif row["score"] is not None or row["verdict"] not in tuple(MIRRORED):
        found = row["verdict"] if row["score"] is None else row["score"]
        raise ValueError(f"two responses need a verdict, one of {', '.join(MIRRORED)}, found {found!r}")


def checked_turns(messages: Any) -> tuple[Message, ...]:
    """Convert the messages of a conversation; refuse one without a role or a content."""
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise ValueError("messages must be a list of objects with a role and a content")
    return tuple(Message(turn["role"], turn["content"]) for turn in messages)


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
    turns = {"messages": parse_json(messages, "messages must be JSON")} if isinstance(messages, str) else {}
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


def format_of(path: Path) -> FileFormat:
    """Return the format of a file by its name; refuse a name that does not tell."""
    if file_format := BY_SUFFIX.get(path.suffix.lower()):
        return file_format
    raise ValueError(f"{path}: the name does not tell its format; type --format with one of {', '.join(FILE_FORMATS)}")


def read_labels(path: Path, file_format: FileFormat | None) -> RowReaders:
    """Read each row of a file; refuse a file that cannot be read as a whole."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"No file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8 ({error})") from error
    if file_format is None and path.suffix.lower() != ".json":
        file_format = format_of(path)
    if file_format == "csv":
        yield from from_csv(text)
    elif file_format == "jsonl":
        yield from from_jsonl(text)
    else:
        items = parse_json(text, f"{path} is not JSON")
        if not isinstance(items, list):
            found = type(items).__name__
            raise ValueError(f"{path}: wanted a list of Label Studio tasks or Argilla records, found {found}")
        for number, item in enumerate(items, start=1):
            yield f"item {number}", partial(from_item, item)


def from_item(item: Any) -> LabelRow:
    """Return the row of a Label Studio task or of an Argilla record, which has fields."""
    return from_record(item) if "fields" in as_object(item) else from_task(item)


WRITERS: dict[FileFormat, Callable[[Iterable[LabelRow]], str]] = {
    "jsonl": to_jsonl,
    "csv": to_csv,
    "label-studio": lambda rows: json_text([to_task(row) for row in rows], indent=1),
    "argilla": lambda rows: json_text([to_record(row) for row in rows], indent=1),
}
