"""No file that a run loads can run code, unless trust_remote_code=true lets it."""

from __future__ import annotations

import ast
import datetime
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharded_checkpoint
import yaml
from house import files

from choosy.labeling.reward_model import RewardModel
from choosy.models.damaged import refuse_checkpoint, refusing_damaged
from choosy.models.embeddings import sentence_embeddings
from choosy.models.locate import ModelSource
from choosy.options.fit_words import read_yaml
from choosy.resume.checkpoint_files import checkpoint_damage
from choosy.resume.run_folder import choose_start

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("from_pretrained", "SentenceTransformer", "LLM")  # read by `loaded`, which gives them trust_remote_code
SAFE = {  # what else reads a file that can hold code, as it is written
    "torch.load(file, map_location='meta', weights_only=True)",
    "torch.load(io.BytesIO(weights), weights_only=True)",
    "PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=True)",  # weights only, no code
    "datasets.load_from_disk(str(path))",  # tables; datasets runs no scripts from version 4 on
    "datasets.load_dataset(name, *subset, split=part)",
    "yaml.load(text, _LOADER)",  # a safe loader, in libyaml's or Python's words
}
READERS = ("torch.load", "load_dataset", "load_from_disk", *LOADERS)
NEVER = ("pickle.load", "pickle.loads", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")


def careless(source: str) -> Iterator[str]:
    """Yield the calls of a source that read a file by which code can come, neither through `loaded` nor as in `SAFE`.

    Example:
        >>> list(careless("loaded(AutoModel.from_pretrained, name); AutoModel.from_pretrained(name)"))
        ['AutoModel.from_pretrained(name)']
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or (text := ast.unparse(node)) in SAFE:
            continue
        name = ast.unparse(node.func)
        reads = any(name == end or name.endswith(f".{end}") for end in READERS)
        trusts = any(given.arg == "trust_remote_code" for given in node.keywords)
        if name in NEVER or reads or trusts:
            yield text


def test_everything_that_reads_code_goes_through_one_function() -> None:
    sources = [path.read_text() for path in files(ROOT).values()]
    assert [call for source in sources for call in careless(source)] == []
    assert sum(source.count("loaded(") for source in sources) > 10
    assert [safe for safe in SAFE if not any(safe in ast.unparse(ast.parse(source)) for source in sources)] == []


@pytest.mark.parametrize(
    "call",
    [
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "kind.from_pretrained(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "datasets.load_dataset(name, trust_remote_code=True)",
        "yaml.load(text, yaml.Loader)",
        "pickle.loads(text)",
        "loaded(LLM, name)(trust_remote_code=True)",
    ],
)
def test_a_careless_call_is_found(call: str) -> None:
    assert list(careless(call)) == [call]


def test_the_versions_of_datasets_run_no_scripts() -> None:
    import datasets

    assert int(datasets.__version__.partition(".")[0]) >= 4
    assert '"datasets>=5,' in (ROOT / "pyproject.toml").read_text()


def test_the_loader_of_yaml_is_a_safe_one() -> None:
    from choosy.options.yaml_text import _LOADER

    assert _LOADER in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", None))


class Runs:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.target,)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    return folder


def test_a_sharded_checkpoint_that_runs_code_is_refused(sharded: Path, tmp_path: Path) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps({"state": Runs(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(its .metadata: it would run .*mkdir"):
        choose_start(tmp_path / "run", str(sharded))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("contents", [b"", b"\x80", b"garbage", pickle.dumps(datetime.date(2020, 1, 1))])
def test_metadata_that_torch_did_not_write_is_refused(contents: bytes, sharded: Path) -> None:
    (sharded / ".metadata").write_bytes(contents)
    assert "its .metadata: " in (checkpoint_damage(sharded) or "")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_metadata_of_torch_passes(sharded: Path) -> None:
    state = {"weights": torch.ones(4, 2, dtype=torch.bfloat16), "round": 3, "nested": {"list": [1, "two"]}}
    sharded_checkpoint.save(state, checkpoint_id=sharded, no_dist=True)
    torch.save({"epoch": 1}, sharded / "meta.pt")
    assert checkpoint_damage(sharded) is None
    refuse_checkpoint(str(sharded))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_value_in_a_sharded_checkpoint_that_runs_code_is_refused(sharded: Path, tmp_path: Path) -> None:
    """torch reads what is no tensor with weights_only=False, whatever Lightning asks for."""
    sharded_checkpoint.save(
        {"weights": torch.ones(2), "lr": Runs(tmp_path / "ran")}, checkpoint_id=sharded, no_dist=True
    )
    torch.save({"epoch": 1}, sharded / "meta.pt")
    assert checkpoint_damage(sharded) is None
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(it would run .*mkdir"):
        refuse_checkpoint(str(sharded))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_runs_code_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Runs(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged \(it would run .*mkdir, which no weights need"):
        refuse_checkpoint(str(path))
    assert not (tmp_path / "ran").exists()


def test_weights_that_run_code_are_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save({"w": Runs(tmp_path / "ran")}, tmp_path / "adapter_model.bin")
    with (
        pytest.raises(ValueError, match=r"adapter_model.bin is damaged.*it would run .*mkdir"),
        refusing_damaged(str(tmp_path)),
    ):
        torch.load(tmp_path / "adapter_model.bin", weights_only=True)
    assert not (tmp_path / "ran").exists()


def test_yaml_that_runs_code_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: !!python/object/apply:os.mkdir [{tmp_path / 'ran'}]\ntrainer: 1\n")
    with pytest.raises(ValueError, match=r"run.yaml is no YAML: could not determine a constructor"):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(path.read_text())


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model whose code leaves a file, on a terminal that says yes to every question."""
    folder = tmp_path / "model"
    folder.mkdir()
    about = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None]}}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(about))
    module = {"idx": 0, "name": "0", "path": "", "type": "own.Own"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return folder


def test_a_model_with_code_is_refused_without_a_question(with_code: Path) -> None:
    def policy(kind: str) -> object:
        import transformers

        return ModelSource(str(with_code)).load(getattr(transformers, kind))

    way = r"^\S+/model loads only with code of its own, which would run on this machine; "
    with pytest.raises(ValueError, match=way + "name a model that needs none"):
        _ = RewardModel(str(with_code))._loaded
    with pytest.raises(ValueError, match=way + "name a model that needs none"):
        sentence_embeddings([], str(with_code), "cpu")
    for kind in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"):
        with pytest.raises(ValueError, match=way + "read it, and type model.trust_remote_code=true if you trust it"):
            policy(kind)
    assert not (with_code.parent / "ran").exists()
