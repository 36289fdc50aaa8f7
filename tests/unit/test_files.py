"""Files and folders are replaced whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from choosy.data.table_files import files_of_rounds
from choosy.files import SUFFIX, remove_unfinished, replacing, replacing_files

WRITE = """
import os, signal, sys
from pathlib import Path
from choosy.files import replacing

def part(unfinished, kind, text):
    if kind == "folder":
        unfinished.mkdir()
        unfinished = unfinished / "part"
    unfinished.write_text(text)

path, kind = Path(sys.argv[1]), sys.argv[2]
with replacing(path) as unfinished:
    part(unfinished, kind, "half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, kind: str, text: str) -> None:
    with replacing(path) as unfinished:
        if kind == "folder":
            unfinished.mkdir()
            (unfinished / "part").write_text(text)
        else:
            unfinished.write_text(text)


def read(path: Path, kind: str) -> str:
    return (path / "part" if kind == "folder" else path).read_text()


KINDS = pytest.mark.parametrize("kind", ["file", "folder"])


@KINDS
@pytest.mark.parametrize("before", ["the old", None], ids=["replacing", "new"])
def test_a_killed_writer_leaves_the_old_one_and_no_half_of_the_new(kind, before, tmp_path):
    path = tmp_path / "deep" / "thing"
    if before is not None:
        write(path, kind, before)
    killed = subprocess.run([sys.executable, "-c", WRITE, str(path), kind], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(path.parent.glob(f".thing.*{SUFFIX}"))) == 1, "the kill came while it was written"
    assert path.exists() == (before is not None)
    if before is not None:
        assert read(path, kind) == before
    remove_unfinished(tmp_path)
    assert list(path.parent.iterdir()) == ([path] if before is not None else [])


@KINDS
def test_the_new_one_takes_the_place_of_the_old_one(kind, tmp_path):
    path = tmp_path / "thing"
    for text in ("one", "two"):
        write(path, kind, text)
        assert read(path, kind) == text
        assert list(tmp_path.iterdir()) == [path]


@KINDS
def test_a_block_that_raises_leaves_the_old_one(kind, tmp_path):
    path = tmp_path / "thing"
    write(path, kind, "old")

    def fill_the_disk() -> None:
        with replacing(path) as unfinished:
            if kind == "folder":
                unfinished.mkdir()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert read(path, kind) == "old"
    assert list(tmp_path.iterdir()) == [path]


@KINDS
def test_the_new_one_is_on_the_disk_before_the_old_one_goes(kind, tmp_path, monkeypatch):
    done: list[str] = []
    open_, fsync, replace = os.open, os.fsync, os.replace
    names: dict[int, str] = {}

    def opened(path, *how):
        descriptor = open_(path, *how)
        names[descriptor] = "parent" if Path(path) == tmp_path else Path(path).suffix or Path(path).name
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(names[descriptor]), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *places: (done.append("replace"), replace(*places)))
    write(tmp_path / "thing", kind, "new")
    assert done == [*(["part"] if kind == "folder" else []), SUFFIX, "replace", "parent"]


def test_two_writers_at_once_do_not_meet(tmp_path):
    path = tmp_path / "thing"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_folder_are_replaced_one_by_one_and_their_other_names_keep_the_old_ones(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "deep").mkdir(parents=True)
    for name in ("weights", "deep/more", "a note of the user"):
        (folder / name).write_text("old")
        os.link(folder / name, tmp_path / Path(name).name)
    with replacing_files(folder) as new:
        (new / "deep").mkdir()
        for name in ("weights", "deep/more", "another"):
            (new / name).write_text("new")
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "weights": "new",
        "more": "new",
        "another": "new",
        "a note of the user": "old",
    }
    assert {path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"old"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["adapter"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_weights_have_the_permissions_of_any_new_file(umask, tmp_path):
    def save(path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, path / "model.safetensors")
        (path / "config.json").write_text("{}")

    assert save_file({"weight": torch.zeros(2)}, tmp_path / "alone") is None
    assert stat.S_IMODE((tmp_path / "alone").stat().st_mode) == 0o600, "safetensors no longer makes private files"
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "model") as unfinished:
            unfinished.mkdir()
            save(unfinished)
        with replacing_files(tmp_path / "adapter") as new:
            save(new)
        with replacing(tmp_path / "answers", private=True) as unfinished:
            unfinished.write_text("")
    finally:
        os.umask(before)
    written = [*(tmp_path / "model").iterdir(), *(tmp_path / "adapter").iterdir()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [0o666 & ~umask] * 4
    assert stat.S_IMODE((tmp_path / "answers").stat().st_mode) == 0o600


def test_the_permissions_of_other_private_files_stay(tmp_path):
    """A secret beside the weights, or one that a link among them leads to, is still for its owner alone."""
    for name in ("secret", "linked.safetensors"):
        (tmp_path / name).touch(0o600)
    with replacing(tmp_path / "model") as unfinished:
        unfinished.mkdir()
        (unfinished / "own").touch(0o600)
        (unfinished / "link").symlink_to(tmp_path / "secret")
        (unfinished / "link.safetensors").symlink_to(tmp_path / "linked.safetensors")
    with replacing_files(tmp_path / "adapter") as new:
        (new / "own").touch(0o600)
        (new / "link.safetensors").symlink_to(tmp_path / "linked.safetensors")
    private = [tmp_path / "secret", tmp_path / "linked.safetensors", tmp_path / "model/own", tmp_path / "adapter/own"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 4


def test_files_of_rounds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1000, 9, 999, 101):
        (tmp_path / f"round_{number:03d}.ckpt").touch()
    assert [file.stem for file in files_of_rounds(tmp_path, "ckpt")] == [f"round_{n}" for n in ("009", 101, 999, 1000)]
