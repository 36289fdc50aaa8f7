"""A run resumes only with the files that say which run it is, and they are on the disk before a label is bought."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from toy_labelers import Lengths, given

from choosy.data.table_files import write_table
from choosy.labeling.buyer import LabelBuyer
from choosy.parallel.ranks import OneRank
from choosy.resume.run_folder import choose_start, open_folder, refuse_other_run, run_id
from choosy.resume.run_lock import release
from choosy.sealed import write_line, write_yaml

CONFIG: dict[str, Any] = {
    "seed": 0,
    "module": {"loss": "a"},
    "data": {"train": "prompts.jsonl", "run": {"labels": {"ledger": "ledger.sqlite"}}},
    "trainer": {},
}
READ = {"data.train": "0123"}


def opened(folder: Path, *, resuming: bool = False) -> LabelBuyer:
    labels = LabelBuyer(Lengths(), ledger=str(folder / "ledger.sqlite"))
    if open_folder(folder, labels, OneRank(), READ, resuming=resuming):
        release(folder)
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of one round."""
    write_yaml(tmp_path / "run" / "config.yaml", yaml.safe_dump(CONFIG))
    labels = opened(tmp_path / "run")
    about = {"run": labels.run, "round": 0, "labels": {"spent": 0}}
    write_table(pa.table({"prompt": ["a"]}), tmp_path / "run" / "rounds" / "round_000.parquet", about)
    return tmp_path / "run"


def resume(folder: Path) -> None:
    assert choose_start(folder, "last").resuming
    refuse_other_run(folder, CONFIG)
    opened(folder, resuming=True)


def test_a_run_resumes_under_its_name(folder: Path) -> None:
    before = run_id(folder)
    resume(folder)
    assert run_id(folder) == before


@pytest.mark.parametrize("name", ["run_id", "config.yaml", "data.json"])
@pytest.mark.parametrize("raw", [None, b"", b"\xff\xfe\n"], ids=["missing", "empty", "not text"])
def test_a_file_that_says_which_run_it_is_is_named_where_it_is_lost(folder: Path, name: str, raw: bytes | None) -> None:
    before = run_id(folder)
    (folder / name).unlink() if raw is None else (folder / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"^{folder / name}.* is (missing|damaged)") as refused:
        resume(folder)
    assert (before in str(refused.value)) == (name == "run_id" and raw is None), "the rounds know the run's name"
    assert choose_start(folder, "auto").resuming


@pytest.mark.parametrize("name", ["run_id", "config.yaml", "data.json"])
def test_it_is_named_before_the_resumed_run_writes_its_configuration(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"^{folder / name} is "):
        refuse_other_run(folder, CONFIG)


def test_a_run_of_a_version_that_kept_no_fingerprints_of_the_data_resumes(folder: Path) -> None:
    table = pa.table({"prompt": ["a"]})
    write_table(table, folder / "rounds" / "round_000.parquet", {"round": 0, "labels": {"spent": 0}})
    (folder / "data.json").unlink()
    (folder / "run_id").write_text(run_id(folder))
    resume(folder)
    assert (folder / "data.json").exists()


def test_the_name_of_a_run_is_read_without_its_checksum_as_the_error_says(folder: Path) -> None:
    before = run_id(folder)
    (folder / "run_id").write_text(f"{before}\n")
    resume(folder)
    assert run_id(folder) == before


def test_the_name_of_another_run_is_refused(folder: Path) -> None:
    before = run_id(folder)
    write_line(folder / "run_id", "other-0123456789ab")
    with pytest.raises(ValueError, match=f"run_id names other-0123456789ab, and the rounds .* are those of {before}"):
        resume(folder)


def test_a_config_that_describes_no_run_is_refused(folder: Path) -> None:
    (folder / "config.yaml").write_text("{seed: 0, module: {}, data: {}}")
    with pytest.raises(ValueError, match=r"config\.yaml does not describe a run: trainer is missing"):
        resume(folder)


def test_which_run_it_is_is_on_the_disk_before_a_label_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[str] = set()
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    folder = tmp_path / "runs" / "one"
    write_yaml(folder / "config.yaml", yaml.safe_dump(CONFIG))
    labels = opened(folder)
    before = set(flushed)
    labels.score([given("p", "a")])
    assert {str(tmp_path), str(tmp_path / "runs"), str(folder)} <= before
    for name in ("config.yaml", "data.json", "run_id"):
        assert any(Path(path).name.startswith(f".{name}.") for path in before), name


def test_files_with_prompts_and_replies_are_for_their_owner(folder: Path) -> None:
    labels = opened(folder, resuming=True)
    labels.score([given("p", "a")])
    labels.ledger.copy(folder / "copy.sqlite")
    private = [*folder.glob("ledger.sqlite*"), *folder.glob("rounds/*"), folder / "copy.sqlite"]
    assert len(private) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
