"""A resumed run refuses data that were edited, and takes the same rows from a file that is written otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"id": f"p{n}", "prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No.", "weight": 1.5, "answer": n}
    for n in range(8)
]
EDITS: dict[str, list[dict[str, Any]]] = {
    "an answer": [ROWS[0] | {"chosen": "None!"}, *ROWS[1:]],
    "a prompt": [ROWS[0] | {"prompt": "Say it."}, *ROWS[1:]],
    "a score": [ROWS[0] | {"chosen_score": 4, "rejected_score": 2}, *ROWS[1:]],
    "a weight": [ROWS[0] | {"weight": 2}, *ROWS[1:]],
    "a system turn": [ROWS[0] | {"system": "Be short."}, *ROWS[1:]],
    "a tool": [ROWS[0] | {"tools": [{"name": "clock"}]}, *ROWS[1:]],
    "a column that a reward may read": [ROWS[0] | {"answer": 9}, *ROWS[1:]],
    "a row more": [*ROWS, ROWS[0] | {"id": "p9"}],
    "a row less": ROWS[:-1],
    "another order": ROWS[::-1],
    "preferred the other way": [ROWS[0] | {"chosen": "No.", "rejected": "0!"}, *ROWS[1:]],
}


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))


def test_edited_rows_are_refused_and_the_same_rows_are_taken(play, tmp_path):
    for name in ("train", "heldout", "pairs"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    given = [f"data.train={tmp_path}/train.jsonl", f"data.heldout_pairs={tmp_path}/pairs.jsonl", "data.heldout_limit=8"]
    lines = ["data=offline", f"data.heldout={tmp_path}/heldout.jsonl", *given, "labeler=dataset"]
    lines += ["labeler@labels.evaluation=vader"]
    play(*lines, "rounds=1")
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for rows in EDITS.values():
        write(tmp_path / "train.jsonl", rows)
        with pytest.raises(ValueError, match=r"The rows of data\.train are others than when this run began"):
            play(*lines, "rounds=2", "ckpt_path=last")
    write(tmp_path / "train.jsonl", ROWS)
    for name, words in (("heldout", r"data\.heldout are"), ("pairs", r"data\.heldout_pairs are")):
        write(tmp_path / f"{name}.jsonl", EDITS["a prompt"])
        with pytest.raises(ValueError, match=rf"The rows of {words} others"):
            play(*lines, "rounds=2", "ckpt_path=start")
        write(tmp_path / f"{name}.jsonl", ROWS)
    kept = ("rounds", "checkpoints", "ledger.sqlite")
    assert all(
        path.read_bytes() == then
        for path, then in written.items()
        if path.relative_to(tmp_path / "run").parts[0] in kept
    )
    rows = [{**{key: row[key] for key in reversed(row)}, "unknown": None} for row in ROWS]
    write(tmp_path / "train.jsonl", rows, indent=None, separators=(" ,", ": "))
    assert play(*lines, "rounds=2", "ckpt_path=last").summary["rounds"] == 2
