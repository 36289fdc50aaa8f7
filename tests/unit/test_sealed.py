"""A file that has changed on the disk is named, and one that a user may edit says how."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from choosy.files import replacing
from choosy.sealed import read_json, read_line, read_yaml, write_json, write_line, write_yaml

NAME = "run-0123456789ab"
CONFIG = {"seed": 3, "model": {"name": "some/model"}, "data": {"train": ["prompts.jsonl"]}}


def flips(raw: bytes, times: int = 300) -> Iterator[bytes]:
    """The bytes with one bit flipped, and cut at a place, drawn at random but for the start, which has the checksum."""
    draw = random.Random(0)
    for at in [*range(min(100, len(raw))), *(draw.randrange(len(raw)) for _ in range(times))]:
        changed = bytearray(raw)
        changed[at] ^= 1 << draw.randrange(8)
        yield bytes(changed)
    for _ in range(times):
        yield raw[: draw.randrange(len(raw))]
    yield raw[:-1]


@pytest.mark.parametrize(
    ("write", "read", "content"),
    [
        (lambda file: write_yaml(file, yaml.safe_dump(CONFIG)), read_yaml, CONFIG),
        (lambda file: write_json(file, CONFIG), read_json, CONFIG),
        (lambda file: write_line(file, NAME), lambda file: read_line(file, NAME), NAME),
    ],
    ids=["yaml", "json", "line"],
)
def test_a_changed_text_is_named(
    write: Callable[[Path], None], read: Callable[[Path], Any], content: Any, tmp_path: Path
) -> None:
    write(file := tmp_path / "file")
    assert read(file) == content
    for changed in flips(file.read_bytes()):
        if changed.removesuffix(b"\n") == str(content).encode():
            continue  # the line alone, as an earlier version or a user wrote it
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"^{file} is "):
            read(file)


def test_plain_tools_read_the_files(tmp_path: Path) -> None:
    write_yaml(tmp_path / "config.yaml", yaml.safe_dump(CONFIG))
    write_json(tmp_path / "summary.json", CONFIG)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    (name, checksum), *rest = json.loads((tmp_path / "summary.json").read_text()).items()
    assert (name, checksum[:7], dict(rest)) == ("checksum", "sha256:", CONFIG)


def test_an_edited_file_is_read_once_its_checksum_is_deleted(tmp_path: Path) -> None:
    write_yaml(file := tmp_path / "config.yaml", yaml.safe_dump(CONFIG))
    file.write_text(file.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(ValueError, match=r"or was edited.*If you have edited it, delete the line with its checksum"):
        read_yaml(file)
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "sha256:" not in line))
    assert read_yaml(file) == CONFIG | {"seed": 4}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds nothing"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"a: [", "no YAML"),
        (b"day: 2026-13-45", "no YAML"),
        (b"[" * 5000, "no YAML"),
        (b"- a", "wanted a dict, and it holds a list"),
    ],
)
def test_a_file_without_a_checksum_is_named_where_it_cannot_be_read(raw: bytes, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "config.yaml").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"^{file} is damaged: .*{message}"):
        read_yaml(file)
    with pytest.raises(ValueError, match="none cannot be read: no such file"):
        read_yaml(tmp_path / "none")


def test_a_private_file_is_its_owners_and_keeps_the_permissions_that_it_is_given(tmp_path: Path) -> None:
    def write() -> int:
        with replacing(file, private=True) as unfinished:
            assert stat.S_IMODE(unfinished.stat().st_mode) == (stat.S_IMODE(file.stat().st_mode) if shared else 0o600)
            unfinished.write_text("a prompt")
        return stat.S_IMODE(file.stat().st_mode)

    file, shared = tmp_path / "file", False
    assert write() == 0o600
    file.chmod(0o664)
    shared = True
    assert write() == 0o664
