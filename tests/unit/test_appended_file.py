"""A text that grows, on a disk that is full."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from pathlib import Path

from choosy.appended_file import AppendedFile


def _replace_on_a_full_disk(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))  # room for the text, and none for its checksum
    AppendedFile(Path(path)).replace("one\n")


def test_a_disk_that_is_full_leaves_no_text_that_counts_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    process = multiprocessing.get_context("fork").Process(target=_replace_on_a_full_disk, args=(str(path),))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1, "the disk was not full"
    assert AppendedFile(path).read() == "one\n"
