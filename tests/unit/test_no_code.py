"""No file that a run loads can run code, unless trust_remote_code=true lets it."""

from __future__ import annotations

import ast
import datetime
import json
import pathlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from house import files

from choosy.labeling.reward_model import RewardModel
from choosy.resume.checkpoint_files import checkpoint_damage
from choosy.resume.run_folder import choose_start

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {  # what a call must say
    "from_pretrained": "trust_remote_code",
    "torch.load": "weights_only",
    "SentenceTransformer": "trust_remote_code",
}
REFUSED = ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
OF_ADAPTERS = "PeftModel.from_pretrained"  # peft loads weights only, into a model that is there


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in files(ROOT).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def test_every_loader_says_what_it_trusts() -> None:
    seen = set()
    for name, call in calls():
        for end, keyword in NEEDED.items():
            if name == OF_ADAPTERS or not (name == end or name.endswith(f".{end}")):
                continue
            seen.add(end)
            assert keyword in {given.arg for given in call.keywords}, ast.unparse(call)
    assert {"from_pretrained", "torch.load"} <= seen


def test_nothing_unpickles_or_reads_yaml_with_objects() -> None:
    assert [ast.unparse(call) for name, call in calls() if name in REFUSED] == []


class Runs:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return pathlib.Path.touch, (self.target,)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    return folder


def test_a_sharded_checkpoint_that_runs_code_is_refused(sharded: Path, tmp_path: Path) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps({"state": Runs(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(its .metadata: it would run .*touch"):
        choose_start(tmp_path / "run", str(sharded))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("contents", [b"", b"\x80", b"garbage", pickle.dumps(datetime.date(2020, 1, 1))])
def test_metadata_that_torch_did_not_write_is_refused(contents: bytes, sharded: Path) -> None:
    (sharded / ".metadata").write_bytes(contents)
    assert "its .metadata: " in (checkpoint_damage(sharded) or "")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_metadata_of_torch_passes(sharded: Path) -> None:
    import torch.distributed.checkpoint as checkpoint

    state = {"weights": torch.ones(4, 2, dtype=torch.bfloat16), "round": 3, "nested": {"list": [1, "two"]}}
    checkpoint.save(state, checkpoint_id=sharded, no_dist=True)
    assert checkpoint_damage(sharded) is None


def test_a_reward_model_with_code_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None]}}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(about))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        _ = RewardModel(str(tmp_path))._loaded
    assert not (tmp_path / "ran").exists()
