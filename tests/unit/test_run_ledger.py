"""Which ledger a run's folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from choosy.labeling.run_ledger import ledger_of
from choosy.sealed import write_yaml


def run_of(folder: Path, *, was: Path, ledger: Path) -> Path:
    folder.mkdir(parents=True)
    write_yaml(folder / "config.yaml", f"data:\n  run:\n    folder: {was}\n    labels:\n      ledger: {ledger}\n")
    (folder / "ledger.sqlite").touch()
    return folder


def test_a_copy_of_a_run_has_its_own_ledger_though_its_config_names_that_of_the_original(tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    for folder in (first, copy):
        run_of(folder, was=first, ledger=first / "ledger.sqlite")
    assert ledger_of(first) == first / "ledger.sqlite"
    assert ledger_of(copy) == copy / "ledger.sqlite"


def test_a_ledger_that_several_runs_share_is_the_one_that_they_name(tmp_path: Path) -> None:
    (shared := tmp_path / "labels.sqlite").touch()
    run = run_of(tmp_path / "run", was=tmp_path / "run", ledger=shared)
    assert ledger_of(run) == shared
    shared.unlink()
    assert ledger_of(run) == run / "ledger.sqlite"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        ledger_of(tmp_path)
