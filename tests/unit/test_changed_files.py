"""No change of a run's files on the disk is taken for what was written, and none ends in a stack."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_report import write_run

from choosy.errors import Damaged
from choosy.labeling.human.questions import Click
from choosy.labeling.human.sitting import Clicks
from choosy.models.adapters import refuse_model
from choosy.models.checksums import write_checksums
from choosy.reporting.compare import compare
from choosy.reporting.index import read_index
from choosy.reporting.metrics import MetricsFile
from choosy.reporting.report import write_report
from choosy.reporting.summary import read_run, write_summary
from choosy.reporting.trackers import MLFlowLogger
from choosy.resume.checkpoint_files import checkpoint_damage, newest_checkpoint
from choosy.resume.checkpoints import WholeFiles
from choosy.resume.config_changes import report_changes
from choosy.resume.run_folder import refuse_edited, run_id
from choosy.sealed import read_json, write_json, write_line, write_yaml
from choosy.start import is_finished
from choosy.tuned_model import TunedModel

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
        write_json(run / "data.json", DATA)
        write_line(run / "run_id", f"run-{'0' * 12}")
    return tmp_path / "sweep"


DATA = {"data.train": "0123456789abcdef", "data.heldout": "fedcba9876543210"}
COMMANDS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "rounds/round_000.parquet": (lambda run: write_report(read_run(run)),),
    "rounds/start.parquet": (lambda run: write_report(read_run(run)),),
    "summary.json": (lambda run: read_index(run.parent),),
    "config.yaml": (lambda run: report_changes(run, CONFIG), lambda run: read_index(run.parent)),
    "data.json": (lambda run: refuse_edited(read_json(run / "data.json"), DATA),),
    "run_id": (run_id,),
    ".hydra/overrides.yaml": (lambda run: read_index(run.parent), lambda run: compare(run.parent)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_resume_report_and_index_name_a_changed_file(name: str, sweep: Path) -> None:
    file = sweep / "0" / name
    line, _, rest = file.read_bytes().partition(b"\n")
    for use in COMMANDS[name]:
        use(sweep / "0")
        for changed in changes(file):
            if rest.startswith(b"sha256:") and changed.rstrip(b"\n") == line:
                continue  # the line alone, as an earlier version wrote it
            with pytest.raises(ValueError, match=f"^{file} "):
                use(sweep / "0")
        use(sweep / "0")


def test_a_changed_name_of_an_mlflow_run_is_named(tmp_path: Path) -> None:
    write_line(file := tmp_path / "mlflow_run_id", "0" * 32)
    for changed in changes(file):
        if changed.rstrip(b"\n") != b"0" * 32:
            with pytest.raises(ValueError, match=f"^{file} is "):
                MLFlowLogger(str(tmp_path))


def test_a_run_that_may_be_finished_goes_on_where_its_summary_has_changed(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = sweep / "0" / "summary.json"
    config = CONFIG | {"data": {"run": {"rounds": 1}}}
    write_yaml(sweep / "0" / "config.yaml", yaml.safe_dump(config))
    assert is_finished(config, sweep / "0")
    for changed in (*changes(file), b"{}", b'{"rounds": "two"}'):
        file.write_bytes(changed)
        caplog.clear()
        assert not is_finished(config, sweep / "0")
        assert f"{file} is " in caplog.text
        assert "goes on from its rounds, and writes it again" in caplog.text


@pytest.mark.parametrize("written", ["{}", '{"reward": 3}', "[]"])
def test_a_summary_that_holds_other_things_is_named(written: str, sweep: Path) -> None:
    (file := sweep / "0" / "summary.json").write_text(written)
    with pytest.raises(ValueError, match=f"^{file} is damaged: "):
        read_index(sweep)


def test_compare_names_a_run_whose_round_has_changed(sweep: Path) -> None:
    file = sweep / "0" / "rounds" / "round_000.parquet"
    assert not compare(sweep).skipped
    for _ in changes(file):
        assert str(file) in compare(sweep).skipped["0"]


@pytest.fixture
def adapter(sweep: Path) -> Path:
    """The adapter of a run that has ended."""
    (folder := sweep / "0" / "adapter").mkdir()
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}')
    save_file({"a": torch.arange(300.0)}, folder / "adapter_model.safetensors")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# A card")
    write_checksums(folder)
    write_yaml(
        sweep / "0" / "config.yaml",
        yaml.safe_dump(CONFIG | {"evaluation": {}, "labels": {}, "data": {"run": {"labels": {"ledger": "l"}}}}),
    )
    return folder


def test_chat_merge_and_a_run_that_goes_on_with_it_name_a_changed_file_of_a_model(adapter: Path) -> None:
    uses: tuple[Callable[[], object], ...] = (
        lambda: TunedModel.open(str(adapter.parent)),
        lambda: refuse_model({"_target_": "choosy.models.policy.Policy", "name": "demo:m", "adapter": str(adapter)}),
    )
    for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "SHA256SUMS"):
        for use in uses:
            use()
            for _ in changes(adapter / name):
                with pytest.raises(ValueError, match=f"^{adapter / name} is"):
                    use()
            (adapter / name).rename(aside := adapter / "aside")
            if name not in ("SHA256SUMS", "adapter_config.json"):  # without them it is another program's, or none
                with pytest.raises(ValueError, match=f"^{adapter / name} is missing"):
                    use()
            aside.rename(adapter / name)
    (adapter / "README.md").write_text("# A better card")
    for use in uses:
        use()


def test_a_plain_tool_checks_a_model(adapter: Path) -> None:
    line = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    if shutil.which(line[0]) is None:
        pytest.skip("needs sha256sum")
    checked = subprocess.run(line, cwd=adapter, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout.count(": OK"), checked.stderr) == (0, 3, "")


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
