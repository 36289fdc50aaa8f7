"""Weights that cannot be read are refused in a sentence that names their file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

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


def test_another_error_passes(folder):
    with pytest.raises(RuntimeError, match=r"^out of memory$"), refusing_damaged(str(folder)):
        raise RuntimeError("out of memory")
