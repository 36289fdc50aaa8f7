"""Weights that cannot be read are refused in a sentence that names their file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from choosy.models.adapters import Lora, starting_point
from choosy.models.damaged import refusing_damaged
from choosy.models.loading import load_adapter, load_weights
from choosy.models.locate import ModelSource

WEIGHTS = "model.safetensors"


def load(folder: Path) -> None:
    load_weights(ModelSource(str(folder)), dtype=torch.float32, attention="auto", device=torch.device("cpu"))


@pytest.fixture
def folder(tiny_policy_dir, tmp_path):
    return shutil.copytree(tiny_policy_dir, tmp_path / "model")


@pytest.mark.parametrize("written", ["cut", b"", b"<!DOCTYPE html>" * 9, b"version https://git-lfs.github.com/spec/v1"])
def test_weights_that_are_none(written, folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-9] if written == "cut" else written)
    with pytest.raises(ValueError, match=rf"^{file} is damaged, or holds no weights \(.*\); copy or download it again"):
        load(folder)


@pytest.mark.parametrize("written", [b"", b"PK\x03\x04 no archive"])
def test_weights_of_torch_that_are_none(written, folder):
    (folder / WEIGHTS).unlink()
    (file := folder / "pytorch_model.bin").write_bytes(written)
    with pytest.raises(ValueError, match=f"^{file} is damaged"):
        load(folder)


def test_weights_that_are_not_there(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"^{folder} does not load: Error no file named model\.safetensors"):
        load(folder)


def test_weights_of_another_model(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match=f"^{folder}: its weights have other sizes than its config.json says"):
        load(folder)


def test_an_adapter_that_is_none(tiny_policy_dir, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), config).save_pretrained(tmp_path)
    (file := tmp_path / "adapter_model.safetensors").write_bytes(b"no adapter")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("config.json", {"vocab_size": -5}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"rope_scaling": {"type": "other"}}),
        ("config.json", "[" * 100_000),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", ""),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", "[]"),
    ],
)
def test_a_file_of_a_model_that_a_library_cannot_read_is_answered_in_a_sentence(name, written, folder):
    file = folder / name
    file.write_text(
        written if isinstance(written, str) else json.dumps(json.loads(file.read_text("utf-8")) | written), "utf-8"
    )
    source = ModelSource(str(folder))
    with pytest.raises(ValueError, match=f"^{folder} does not load: .*Error: ") as caught:
        [source.load(kind) for kind in (AutoModelForCausalLM, AutoTokenizer)]
    assert type(caught.value) is ValueError, "whose sentence the commands show without a stack"


@pytest.mark.parametrize("written", ["[]", "[" * 100_000, "{"])
def test_a_configuration_that_describes_no_adapter_is_named(written, tmp_path):
    (file := tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(ValueError, match=f"^{file} (is no JSON|does not describe an adapter)"):
        starting_point("some/model", str(tmp_path), Lora())


def test_an_adapter_that_peft_cannot_build_is_answered_in_a_sentence(tiny_policy_dir, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", layer_replication=[[0, 9]])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.adapter={tmp_path} does not load: IndexError: "):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), str(tmp_path))


def test_another_error_passes(folder):
    with pytest.raises(RuntimeError, match=r"^out of memory$"), refusing_damaged(str(folder)):
        raise RuntimeError("out of memory")
