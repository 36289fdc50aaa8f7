"""`choosy labels`: what a ledger holds, and its labels out into files and back, also for Label Studio and Argilla."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from choosy.labeling.ledger import Ledger, Question
from choosy.types import MIRRORED, Message, Prompt, Response, content_id

Form = Literal["jsonl", "csv", "label-studio", "argilla"]
Row = dict[str, Any]
FORMS: tuple[Form, ...] = ("jsonl", "csv", "label-studio", "argilla")
BY_SUFFIX: dict[str, Form] = {".jsonl": "jsonl", ".csv": "csv"}

COLUMNS = (
    *("key", "labeler", "fingerprint", "stamp", "kind", "prompt_id", "prompt", "messages"),
    *("response_first", "response_second", "score", "verdict", "raw", "cost", "annotator"),
    *("judgements", "purpose", "run", "time"),
)
SHOWN = ("prompt", "response_first", "response_second")  # what an annotator reads
TEXTS = ("labeler", "fingerprint", "stamp", "prompt_id", "prompt", "response_first", "raw", "annotator", "run")
SIDES = {"left": "first", "right": "second"}
OURS = "choosy"  # by whom Argilla is told that a label of the ledger was suggested

LABEL_STUDIO_CONFIG = """<View>
  <Header value="$prompt"/>
  <Pairwise name="verdict" toName="response_first,response_second"/>
  <Text name="response_first" value="$response_first"/>
  <Text name="response_second" value="$response_second"/>
  <Choices name="neither" toName="response_first"><Choice value="tie"/><Choice value="invalid"/></Choices>
</View>"""


class Imported(NamedTuple):
    """What became of a file's rows: labels that are new, those that were there, rows without answer, bad ones."""

    added: int
    there: int
    unanswered: int
    bad: list[str]


# --- out ---


def export_labels(ledger: Ledger, path: str | Path, *, form: Form | None = None, wanted: bool = False) -> int:
    """Write all labels of a ledger into a new file, or what its runs want labeled; returns how many.

    Args:
        ledger: Where they are.
        path: The file to write.
        form: Of the file; None goes by its name: .jsonl or .csv.
        wanted: Write the questions that runs wait for (no answers in them) instead of the labels.

    Raises:
        ValueError: The file is there already, cannot be written, or its form is not known.
    """
    path = Path(path)
    form = form or form_of(path)
    rows = [_spoken(row) for row in ledger.rows("wanted" if wanted else "labels")]
    writers: dict[Form, Callable[[list[Row]], str]] = {
        "jsonl": lambda rows: "".join(_json(row) + "\n" for row in rows),
        "csv": _to_csv,
        "label-studio": lambda rows: _json([_to_label_studio(row) for row in rows], indent=1),
        "argilla": lambda rows: _json([_to_argilla(row) for row in rows], indent=1),
    }
    text = writers[form](rows)
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError as error:
        raise ValueError(f"{path} is there already; name another file") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written ({error}); name a file in a folder that has room") from error
    return len(rows)


def form_of(path: Path) -> Form:
    """The form of a file by its name.

    Raises:
        ValueError: The name does not tell.
    """
    if form := BY_SUFFIX.get(path.suffix.lower()):
        return form
    raise ValueError(f"{path}: the name does not tell its form; type --form with one of {', '.join(FORMS)}")


def _spoken(row: Mapping[str, Any]) -> Row:
    """A row of the ledger with its conversation as data."""
    messages = None if row["messages"] is None else json.loads(row["messages"])
    turns = None if messages is None else [{"role": role, "content": content} for role, content in messages]
    return {name: turns if name == "messages" else row[name] for name in COLUMNS if name in row}


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _to_csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        messages = row.get("messages")
        writer.writerow({**row, "messages": "" if messages is None else _json(messages)})
    return buffer.getvalue()


def _to_label_studio(row: Row) -> Row:
    """A task of a Label Studio project with `LABEL_STUDIO_CONFIG`, annotated if the question is answered.

    Label Studio takes no task without all that the interface shows: of a score the second response is empty.
    """
    task: Row = {
        "data": {name: "" if row[name] is None else row[name] for name in ("key", *SHOWN)},
        "meta": {name: value for name, value in row.items() if name not in ("key", *SHOWN, "score", "verdict")},
    }
    verdict, score = row.get("verdict"), row.get("score")
    if verdict in ("first", "second"):
        side = "left" if verdict == "first" else "right"
        told = {"from_name": "verdict", "to_name": "verdict", "type": "pairwise", "value": {"selected": side}}
    elif verdict is not None:
        told = {"from_name": "neither", "to_name": "response_first", "type": "choices", "value": {"choices": [verdict]}}
    else:
        told = {"from_name": "score", "to_name": "response_first", "type": "number", "value": {"number": score}}
    answered = verdict is not None or score is not None
    return task | ({"annotations": [{"result": [told]}]} if answered else {})


def _to_argilla(row: Row) -> Row:
    """A record as Argilla's `records.from_json` reads it; an answer goes with it as a suggestion.

    A response would have to name one of the Argilla server's own users by its id.
    """
    question = "score" if row["kind"] == "score" else "verdict"
    value = row.get(question)
    about = {name: value for name, value in row.items() if name not in (*SHOWN, "score", "verdict")}
    return {
        "id": row["key"],
        "fields": {name: row[name] for name in SHOWN if row[name] is not None},
        "metadata": about | {"messages": None if row["messages"] is None else _json(row["messages"])},
        "suggestions": {} if value is None else {question: {"value": value, "score": None, "agent": OURS}},
        "responses": {},
        "vectors": {},
    }


# --- in ---


def import_labels(
    path: str | Path,
    ledger: Ledger,
    *,
    form: Form | None = None,
    labeler: str | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Write the labels of a file into a ledger, all or none; a label that is there already stands.

    What a run waits for (`Ledger.rows("wanted")`) is known by its key, so that a row needs no more than that and an
    answer, and counts as a label that this run has bought.

    Args:
        path: The file, as `export_labels` or the annotation tool writes it.
        ledger: Where the labels go.
        form: Of the file; None goes by its name and, of .json, by what is in it.
        labeler: Under whose name they are kept; None takes each row's own.
        skip_bad: Leave bad rows out, instead of refusing the file because of them.

    Raises:
        ValueError: The file cannot be read, has no answers, or a row is bad; the message lists all that are.
    """
    path = Path(path)
    wanted = {row["key"]: row for row in ledger.rows("wanted")}
    good: dict[str, tuple[str, Row]] = {}
    bad: list[str] = []
    total = unanswered = 0
    for place, told in _read(path, form):
        total += 1
        try:
            row = told if isinstance(told, dict) else _refuse(str(told))
            if row.get("verdict") is None and row.get("score") is None:
                unanswered += 1
                continue
            row = checked(row, wanted, labeler)
            before, same = good.setdefault(row["key"], (place, row))
            if (same["score"], _seen_as(row, same)) != (row["score"], same["verdict"]):
                _refuse(f"asks what {before} asks, and answers otherwise; keep one of the two")
        except ValueError as error:
            bad.append(f"{place}: {error}")
    if bad and not skip_bad:
        raise ValueError(
            f"{path}: {len(bad)} of {total} rows cannot be imported, and nothing was written:\n  "
            + "\n  ".join(bad)
            + "\nMend these, or leave them out with --skip-bad."
        )
    if not good:
        raise ValueError(f"{path} holds no label: none of its {total} rows has a verdict or a score")
    added = ledger.insert([row for _, row in good.values()])
    return Imported(added, len(good) - added, unanswered, bad)


def _refuse(why: str) -> Any:
    raise ValueError(why)


def _seen_as(row: Row, other: Row) -> str | None:
    """The row's verdict if its responses were shown in the order of the other row."""
    verdict: str | None = row["verdict"]
    if verdict is None or row["response_first"] == other["response_first"]:
        return verdict
    return MIRRORED[verdict]  # type: ignore[index]


def checked(told: Row, wanted: Mapping[str, Row], labeler: str | None = None) -> Row:
    """A row as the ledger keeps it.

    Raises:
        ValueError: What it lacks, or what is wrong with it.
    """
    key = told.get("key")
    asked = wanted.get(key, {}) if isinstance(key, str) else {}
    known = {name: told[name] for name in COLUMNS if told.get(name) is not None}
    row: Row = {
        **{"fingerprint": "", "stamp": "", "messages": None, "response_second": None, "score": None, "verdict": None},
        **{"raw": "", "cost": 0.0, "annotator": "", "judgements": 1, "purpose": "train", "run": "import"},
        **{"time": time.time()},
        **({**_spoken(asked)} if asked else {}),
        **known,
    }
    renamed = labeler is not None and labeler != row.get("labeler")
    row["labeler"] = labeler if labeler is not None else row.get("labeler")
    if row["labeler"] is None:
        raise ValueError("no labeler; give it a column labeler, or type --labeler NAME for all")
    if missing := [name for name in ("prompt", "response_first") if row.get(name) is None]:
        raise ValueError(f"no {' and no '.join(missing)}, and no run waits for the key {key!r}")
    row.setdefault("prompt_id", content_id(str(row["prompt"])))
    _check_types(row)
    _check_answer(row)
    prompt = Prompt(row["prompt_id"], row["prompt"], _messages(row["messages"]))
    texts = [row["response_first"], *([] if row["response_second"] is None else [row["response_second"]])]
    question = Question(row["labeler"], "", prompt, tuple(map(Response, texts)), row["stamp"], row["fingerprint"])
    columns = question.columns
    if row["messages"] is None and not renamed and key is not None:
        columns |= {"key": key, "messages": None}  # a label of a time that did not keep the conversation
    elif key not in (None, question.key) and not renamed:
        raise ValueError(f"the key {key!r} belongs to other contents, and these have the key {question.key!r}")
    return {**row, **columns}


def _check_types(row: Row) -> None:
    for name in TEXTS:
        if not isinstance(row[name], str):
            raise ValueError(f"{name} must be a text, found {row[name]!r}")
    if not isinstance(row["response_second"], str | None):
        raise ValueError(f"response_second must be a text, found {row['response_second']!r}")
    if row["purpose"] not in ("train", "evaluate"):
        raise ValueError(f"purpose must be train or evaluate, found {row['purpose']!r}")
    for name in ("cost", "time"):
        if not _is_number(row[name]) or row[name] < 0:
            raise ValueError(f"{name} must be a number, 0 or more, found {row[name]!r}")
    if type(row["judgements"]) is not int or not 1 <= row["judgements"] < 1 << 31:
        raise ValueError(f"judgements must be a whole number, 1 or more, found {row['judgements']!r}")


def _check_answer(row: Row) -> None:
    """One response has a score, two have a verdict."""
    if row["response_second"] is None:
        if row["verdict"] is not None or not _is_number(row["score"]):
            found = row["score"] if row["verdict"] is None else row["verdict"]
            raise ValueError(f"one response needs a score that is a finite number, found {found!r}")
    elif row["score"] is not None or row["verdict"] not in MIRRORED:
        found = row["verdict"] if row["score"] is None else row["score"]
        raise ValueError(f"two responses need a verdict, one of {', '.join(MIRRORED)}, found {found!r}")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _messages(told: Any) -> tuple[Message, ...]:
    turns = [] if told is None else told
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise ValueError("messages must be a list of objects with a role and a content")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


# --- the forms, read ---


def _read(path: Path, form: Form | None) -> Iterator[tuple[str, Row | str]]:
    """Each row of a file with its place; a text instead of a row says what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"No file {path}; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8 ({error})") from error
    if form is None and path.suffix.lower() != ".json":
        form = form_of(path)
    if form == "csv":
        yield from _from_csv(text)
    elif form == "jsonl":
        yield from _from_jsonl(text)
    else:
        yield from _from_items(_items(text, path), form)


def _from_jsonl(text: str) -> Iterator[tuple[str, Row | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"line {number}", f"not JSON ({error})"
            continue
        found = f"wanted a JSON object, found {type(row).__name__}"
        yield f"line {number}", row if isinstance(row, dict) else found


def _from_csv(text: str) -> Iterator[tuple[str, Row | str]]:
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for told in reader:
            place = f"line {reader.line_num}"
            if None in told or None in told.values():
                yield place, f"wanted {len(reader.fieldnames or ())} fields, as the first line has, found other"
                continue
            try:
                yield place, _from_fields({name: value for name, value in told.items() if value != ""})
            except ValueError as error:
                yield place, str(error)
    except csv.Error as error:
        raise ValueError(f"no CSV with a line of column names first ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _from_fields(row: Row) -> Row:
    """The fields of CSV as what they stand for."""
    for name in ("score", "cost", "time", "judgements"):
        if name in row:
            try:
                row[name] = int(row[name]) if name == "judgements" else float(row[name])
            except ValueError:
                raise ValueError(f"{name} must be a number, found {row[name]!r}") from None
    if "messages" in row:
        try:
            row["messages"] = json.loads(row["messages"])
        except ValueError as error:
            raise ValueError(f"messages must be JSON ({error})") from None
    if "kind" in row:  # which tells an empty response from none
        for name in SHOWN[:2] if row["kind"] == "score" else SHOWN:
            row.setdefault(name, "")
    return row


def _items(text: str, path: Path) -> list[Any]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(items, list):
        raise ValueError(
            f"{path}: wanted a list of Label Studio tasks or Argilla records, found {type(items).__name__}"
        )
    return items


def _from_items(items: Sequence[Any], form: Form | None) -> Iterator[tuple[str, Row | str]]:
    for number, item in enumerate(items, start=1):
        place = f"item {number}"
        if not isinstance(item, dict):
            yield place, f"wanted a JSON object, found {type(item).__name__}"
            continue
        argilla = form == "argilla" or (form is None and "fields" in item)
        try:
            yield place, _from_argilla(item) if argilla else _from_label_studio(item)
        except ValueError as error:
            yield place, str(error)


def _part(item: Mapping[str, Any], name: str, kind: type = dict) -> Any:
    part = item.get(name) or kind()
    if not isinstance(part, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, found {type(part).__name__}")
    return part


def _from_label_studio(task: Row) -> Row:
    """The row of a task; its annotations must agree."""
    if not isinstance(task.get("data"), dict):
        raise ValueError("no data; wanted a Label Studio task, as in its export named JSON, not JSON-MIN")
    answers: list[tuple[Row, str]] = []
    for annotation in _part(task, "annotations", list):
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        if answer := _annotated(_part(annotation, "result", list)):
            by = annotation.get("completed_by") or ""
            answers.append((answer, str(by.get("email", by.get("id", ""))) if isinstance(by, dict) else str(by)))
    meta = _part(task, "meta")
    data = {
        name: text for name, text in task["data"].items() if name != "response_second" or meta.get("kind") != "score"
    }
    return {**meta, **data, **_agreed(answers)}


def _annotated(results: Iterable[Any]) -> Row:
    """The verdict or score among the results of one annotation."""
    found: list[Row] = []
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        match value:
            case {"selected": str(side)}:
                found.append({"verdict": SIDES.get(side, side)})
            case {"choices": [str(choice)]}:
                found.append({"verdict": choice})
            case {"number": number}:
                found.append({"score": number})
    if len(found) > 1:
        raise ValueError(f"an annotation says {len(found)} things; wanted one side, tie or invalid, or one number")
    return found[0] if found else {}


def _from_argilla(record: Row) -> Row:
    """The row of a record; its responses must agree. Without any, a label that came out of a ledger stands."""
    fields, metadata = _part(record, "fields"), _part(record, "metadata")
    answers: list[tuple[Row, str]] = []
    for question in ("verdict", "score"):
        for response in _part(_part(record, "responses"), question, list):
            if isinstance(response, dict) and response.get("value") is not None:
                answers.append(({question: response["value"]}, str(response.get("user_id") or "")))
    for question, suggestion in {} if answers else _part(record, "suggestions").items():
        if isinstance(suggestion, dict) and suggestion.get("agent") == OURS:
            answers.append(({question: suggestion.get("value")}, ""))
    messages = metadata.get("messages")
    turns = {"messages": json.loads(messages)} if isinstance(messages, str) else {}
    key = {"key": record["id"]} if "key" in metadata else {}
    return {**metadata, **turns, **key, **fields, **_agreed(answers)}


def _agreed(answers: Sequence[tuple[Row, str]]) -> Row:
    """The one answer of all annotators, and who they are."""
    if not answers:
        return {"verdict": None, "score": None}
    told = [answer for answer, _ in answers]
    if any(answer != told[0] for answer in told):
        said = ", ".join(str(value) for answer in told for value in answer.values())
        raise ValueError(f"its annotators disagree ({said}); keep the answer that shall count")
    names = " ".join(dict.fromkeys(name for _, name in answers if name))
    return {**told[0], **({"annotator": names} if names else {})}


# --- what a ledger holds ---


def stats(ledger: Ledger, out: Console | None = None) -> None:
    """Print what a ledger holds: labels, ties and money of each labeler and run, and what is still wanted."""
    out = out or Console(highlight=False)
    labels, wanted = ledger.rows("labels"), ledger.rows("wanted")
    out.print(_table("Labelers", labels, lambda row: (row["labeler"], row["fingerprint"][:8])))
    out.print(_table("Runs", labels, lambda row: (row["run"], row["purpose"])))
    out.print(f"{len(labels):,} labels, {len(wanted):,} wanted, in {ledger.path}")


def _table(title: str, rows: Sequence[Row], group: Callable[[Row], tuple[str, str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    second = "fingerprint" if title == "Labelers" else "for"
    for name in (
        title.lower().removesuffix("s"),
        second,
        "labels",
        "ties",
        "invalid",
        "first shown",
        "annotators",
        "money",
    ):
        table.add_column(name, justify="left" if name in (title.lower().removesuffix("s"), second) else "right")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    for names, members in sorted(groups.items()):
        verdicts = [row["verdict"] for row in members if row["verdict"] is not None]
        decided = [verdict for verdict in verdicts if verdict in ("first", "second")]
        of_verdicts = [f"{verdicts.count(one):,}" if verdicts else "–" for one in ("tie", "invalid")]
        shown = f"{decided.count('first') / len(decided):.0%}" if decided else "–"
        money = math.fsum(row["cost"] for row in members)
        people = len({row["annotator"] for row in members if row["annotator"]})
        table.add_row(*names, f"{len(members):,}", *of_verdicts, shown, f"{people:,}", f"{money:,.4f}")
    return table


# --- the command ---


def command(args: Sequence[str]) -> None:
    """`choosy labels stats|export|import`, as typed after `choosy labels`."""
    parser = argparse.ArgumentParser("choosy labels", description="What a ledger holds, and its labels out and in.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shown = verbs.add_parser("stats", help="labels, ties and money of each labeler and run")
    out = verbs.add_parser("export", help="write the labels, or what is wanted, into a new file")
    into = verbs.add_parser("import", help="write the labels of a file into the ledger, all or none")
    for verb in (shown, out, into):
        verb.add_argument("ledger", help="the file, such as runs/NAME/ledger.sqlite")
    for verb in (out, into):
        verb.add_argument("file")
        verb.add_argument("--form", choices=FORMS, help="of the file, where its name does not tell")
    out.add_argument("--wanted", action="store_true", help="the questions that runs wait for, instead of the labels")
    into.add_argument("--labeler", help="the name to keep them under, instead of each row's own")
    into.add_argument("--skip-bad", action="store_true", help="leave bad rows out, instead of refusing the file")
    typed = parser.parse_args(args)
    if typed.verb != "import" and not os.path.exists(typed.ledger):
        raise ValueError(f"No ledger {typed.ledger}; check the path, such as runs/NAME/ledger.sqlite")
    ledger = Ledger(typed.ledger)
    ledger.create()
    match typed.verb:
        case "stats":
            stats(ledger)
        case "export":
            count = export_labels(ledger, typed.file, form=typed.form, wanted=typed.wanted)
            print(f"{count:,} {'wanted' if typed.wanted else 'labels'} in {typed.file}")
            if typed.wanted and typed.form == "label-studio":
                print(f"Labeling interface of the project:\n{LABEL_STUDIO_CONFIG}")
        case "import":
            done = import_labels(typed.file, ledger, form=typed.form, labeler=typed.labeler, skip_bad=typed.skip_bad)
            print(
                f"{done.added:,} labels added, {done.there:,} were there, {done.unanswered:,} rows have no answer yet"
            )
            if done.bad:
                print(f"{len(done.bad):,} bad rows left out:\n  " + "\n  ".join(done.bad))
