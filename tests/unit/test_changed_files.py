"""No change of a run's files on the disk is taken for what was written, and none ends in a stack."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_report import write_run

from choosy.errors import Damaged
from choosy.labeling.human.questions import Click
from choosy.labeling.human.sitting import Clicks
from choosy.reporting.compare import compare
from choosy.reporting.index import read_index
from choosy.reporting.metrics import MetricsFile
from choosy.reporting.report import write_report
from choosy.reporting.summary import read_run, write_summary
from choosy.resume.checkpoint_files import checkpoint_damage, newest_checkpoint
from choosy.resume.checkpoints import WholeFiles
from choosy.resume.config_changes import report_changes
from choosy.sealed import write_yaml
from choosy.start import is_finished

CONFIG: dict[str, Any] = {"seed": 7, "module": {}, "data": {"run": {"rounds": 9}}, "trainer": {}}


def changes(file: Path, times: int = 30) -> Iterator[bytes]:
    """Put a file on the disk with one bit flipped, or cut, at places drawn at random; the last is as it was."""
    draw, raw = random.Random(file.name), file.read_bytes()
    for _ in range(times):
        flipped = bytearray(raw)
        flipped[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        for changed in (bytes(flipped), raw[: draw.randrange(len(raw))]):
            file.write_bytes(changed)
            yield changed
    file.write_bytes(raw)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two runs of a sweep that have ended."""
    for job in ("0", "1"):
        write_run(run := tmp_path / "sweep" / job)
        write_summary(read_run(run), run / "summary.json")
        write_yaml(run / ".hydra" / "overrides.yaml", f"[lr={job}]")
        write_yaml(run / "config.yaml", yaml.safe_dump(CONFIG))
    return tmp_path / "sweep"


COMMANDS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "rounds/round_000.parquet": (lambda run: write_report(read_run(run)),),
    "rounds/start.parquet": (lambda run: write_report(read_run(run)),),
    "summary.json": (lambda run: read_index(run.parent), lambda run: is_finished(CONFIG, run)),
    "config.yaml": (lambda run: report_changes(run, CONFIG), lambda run: read_index(run.parent)),
    ".hydra/overrides.yaml": (lambda run: read_index(run.parent), lambda run: compare(run.parent)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_resume_report_and_index_name_a_changed_file(name: str, sweep: Path) -> None:
    file = sweep / "0" / name
    for use in COMMANDS[name]:
        use(sweep / "0")
        for _ in changes(file):
            with pytest.raises(ValueError, match=f"^{file} "):
                use(sweep / "0")
        use(sweep / "0")


def test_compare_names_a_run_whose_round_has_changed(sweep: Path) -> None:
    file = sweep / "0" / "rounds" / "round_000.parquet"
    assert not compare(sweep).skipped
    for _ in changes(file):
        assert str(file) in compare(sweep).skipped["0"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {"weights": {"a": torch.arange(3000.0), "b": torch.ones(7)}, "round": 3}
    WholeFiles().save_checkpoint(state, path := tmp_path / "run" / "checkpoints" / "last.ckpt")
    return path


def test_a_changed_checkpoint_is_named(checkpoint: Path) -> None:
    run = checkpoint.parent.parent
    assert torch.load(checkpoint, weights_only=True)["weights"]["a"].equal(torch.arange(3000.0))
    assert newest_checkpoint(run) == checkpoint
    for _ in changes(checkpoint, 200):
        with pytest.raises(ValueError, match=f"^The checkpoint {checkpoint} is damaged"):
            newest_checkpoint(run)


def test_each_bit_of_a_checkpoint_s_directory_counts(checkpoint: Path) -> None:
    """The directory of the archive is its last part; torch believes it, and would load memory for weights."""
    raw = checkpoint.read_bytes()
    for at in range(raw.find(b"PK\x01\x02"), len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1 << at % 8
        checkpoint.write_bytes(changed)
        assert checkpoint_damage(checkpoint), at
    for length in range(len(raw) - 100, len(raw)):
        checkpoint.write_bytes(raw[:length])
        assert checkpoint_damage(checkpoint), length


def test_a_checkpoint_without_a_checksum_is_read_part_by_part(checkpoint: Path) -> None:
    torch.save({"a": torch.ones(9)}, checkpoint)
    assert checkpoint_damage(checkpoint) is None
    for _ in changes(checkpoint, 100):
        checkpoint_damage(checkpoint)  # which raises nothing, and cannot notice all


def test_changed_clicks_are_named(tmp_path: Path) -> None:
    clicks = Clicks(file := tmp_path / "clicks.sqlite", "human")
    for n in range(60):
        clicks.write(Click(f"question {n}", "ann", "first"))
        if n % 3 == 0:
            clicks.undo(Click(f"question {n}", "ann", "first"))
    before, there = clicks.standing(), 0
    assert len(before) == 40
    for _ in changes(file, 150):
        for beside in tmp_path.glob("clicks.sqlite-*"):
            beside.unlink()
        try:
            found = Clicks(file, "human").standing()
        except Damaged as error:
            assert str(error).startswith(f"{file} is damaged or cannot be used (")  # noqa: PT017
        else:
            there += 1
            assert found == before
    assert there < 100
    for raw, why in ((b"no database " * 400, "file is not a database"), (b"", "no such table")):
        file.write_bytes(raw)
        with pytest.raises(Damaged, match=why):
            Clicks(file, "human")


def logged(folder: Path, steps: range) -> str:
    metrics = MetricsFile(str(folder))
    for step in steps:
        metrics.log_metrics({"epoch": 0.0, "train/loss": 1 / (1 + step)}, step)
    return (folder / "metrics.csv").read_text()


def test_changed_metrics_are_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = logged(tmp_path, range(50))
    assert logged(tmp_path, range(30, 50)) == whole, "a resumed run continues the file"
    shutil.copytree(tmp_path, before := tmp_path.with_name("before"))
    for name in ("metrics.csv", "metrics.csv.sha256"):
        for _ in changes(before / name):
            run = Path(shutil.copytree(before, tmp_path / "run", dirs_exist_ok=True))
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                text = logged(run, range(30, 50))
            assert f"{run / 'metrics.csv'}, or the checksum beside it, is damaged" in caplog.text
            assert "put aside as metrics.damaged.csv" in caplog.text
            assert text.count("\n") == 21
            assert (run / "metrics.damaged.csv").exists()


@pytest.mark.parametrize(
    "text",
    ["epoch,step\n0.0,seven\n", "epoch,loss\n0.0,1\n", "epoch,step\n0.0,1,2\n", "epoch,step\n0.0,\n", 'a"\n"b\n\0'],
)
def test_metrics_without_a_checksum_are_named_where_they_cannot_be_read(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    assert logged(tmp_path, range(3)).count("\n") == 4
    assert f"{tmp_path / 'metrics.csv'} is damaged (" in caplog.text
    assert (tmp_path / "metrics.damaged.csv").read_text() == text
