"""A secret that is typed for a sweep reaches no file and no message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from choosy.main import main

SECRET = "canary-0123456789"


@pytest.mark.parametrize(
    "word",
    [
        f"+labeler.labeler.options.api_key={SECRET}",
        f"+labeler.labeler.base_url=http://user:{SECRET}@127.0.0.1/v1",
        f"name={SECRET},b",
        SECRET,
    ],
)
def test_a_secret_of_a_sweep_is_refused_before_hydra_writes_it(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_API_KEY", SECRET if "user" not in word and "options" not in word else "other-9876543210")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra.sweep.dir={tmp_path}/sweep", word, "seed=0,1"])
    with pytest.raises(SystemExit, match="holds a secret") as refused:
        main()
    assert SECRET not in str(refused.value) + "".join(capsys.readouterr())
    assert list(tmp_path.rglob("*")) == []
