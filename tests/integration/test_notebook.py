"""docs/notebook.ipynb, executed from a folder outside the project."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tiny import ROOT

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of the extra dev")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel, of the extra dev")
nbformat = pytest.importorskip("nbformat")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

BOOK = ROOT / "docs" / "notebook.ipynb"


def data_of(cell: Any, kind: str) -> list[Any]:
    """What a cell has put out of a kind, such as image/png."""
    shown = [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
    return [data[kind] for data in shown if kind in data]


def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(BOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_runs_offline_and_shows_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "src", ROOT))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(BOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, startup_timeout=300, resources=where).execute()
    cells = {cell.source.splitlines()[0]: cell for cell in book.cells if cell.cell_type == "code"}
    first, second = cells["import choosy"], cells["from dataclasses import dataclass"]
    for tuned in (first, second):
        lines = data_of(tuned, "text/plain")
        phases = [line for line in lines if line.startswith("round ")]
        assert len(phases) == 1, "one line, in which each phase takes the place of the last"
        assert phases[0].startswith("round 2/2  evaluate")
        assert lines[1].startswith("model ")
        assert sum("to train on" in line for line in lines) == 2, "a sentence for each round"
        assert all("data" in output for output in tuned.outputs), "a warning or a bar was printed"
    head = data_of(first, "text/html")[-1]
    assert "Held-out reward" in head
    assert "data:image/png;base64," in head
    assert data_of(cells["%matplotlib inline"], "image/png")
    assert cells["for answer in result.run.answers:"].outputs[0].text.count("->") == 8
    both = data_of(second, "text/plain")[-1]
    start, *_, end = (line.split() for line in both.splitlines() if line[:1].isdigit())
    assert float(end[1]) > float(start[1]), "the policy has become kinder"
    assert cells["tuned, tokens = result.policy"].outputs[0].text.count("the moon is") == 5
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 2
