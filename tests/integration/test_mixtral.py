"""Runs of a mixture-of-experts model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import ROOT, command, on_top, typed
from torch.testing import assert_close

# PEFT gives fused experts a rank of their own under a name that it then looks for among the layers
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")


@pytest.fixture
def mixtral(tiny_policy_dir: Path, tmp_path: Path) -> list[str]:
    llama = transformers.AutoConfig.from_pretrained(tiny_policy_dir).to_dict()
    same: dict[str, Any] = {
        name: llama[name]
        for name in (
            *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_size", "intermediate_size"),
            *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        )
    }
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**same, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    transformers.AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(tmp_path / "mixtral")
    return [f"model.name={tmp_path}/mixtral", "data.heldout=null"]


def test_the_experts_loss_is_trained_and_does_not_depend_on_the_packing(play, mixtral):
    full = ["model=smollm2_full", "lr=1e-3", "rounds=1", "router_aux_loss_coef=0.5"]
    one = play(*mixtral, *full, name="one")
    many = play(*mixtral, *full, "batching.tokens_per_step=1", "model.compute.split_long=true", name="many")
    none = play(*mixtral, *full, "router_aux_loss_coef=0", name="none")
    aux, of_many = (pd.read_csv(run.run_dir / "metrics.csv")["aux_loss"].dropna() for run in (one, many))
    assert len(aux) == len(one.losses) > 1
    assert of_many.tolist() == pytest.approx(aux.tolist(), rel=1e-4)
    assert many.losses == pytest.approx(one.losses, rel=1e-4)
    assert one.losses[0] - none.losses[0] == pytest.approx(0.5 * aux.iloc[0], rel=1e-4)
    assert "aux_loss" not in pd.read_csv(none.run_dir / "metrics.csv")
    gate = next(name for name in one.weights if "gate.weight" in name)
    assert_close(many.weights[gate], one.weights[gate], rtol=0, atol=1e-4)
    assert (one.weights[gate] - none.weights[gate]).abs().max() > 1e-3


@pytest.mark.slow
def test_two_processes_balance_the_tokens_of_both(mixtral, tiny_policy_dir, prompts_file, tmp_path):
    lines = on_top(
        typed(tmp_path, tiny_policy_dir, prompts_file),
        [*mixtral, "model=smollm2_full", "lr=1e-3", "rounds=1", "router_aux_loss_coef=0.5", "batching.batch_size=3"],
    )
    for name, launched, ranks in (("one", [], 1), ("two", ["trainer=ddp", "trainer.devices=2"], 2)):
        words = [ROOT / "train.py", *lines, *launched, "trainer.accelerator=cpu", f"run_dir={tmp_path}/{name}"]
        run = command(*words, folder=tmp_path, ranks=ranks)
        assert run.returncode == 0, run.stderr
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for column in ("aux_loss", "loss_step", "grad_norm"):
        assert two[column].dropna().tolist() == pytest.approx(one[column].dropna().tolist(), rel=1e-4)
    assert_close(*(load_file(tmp_path / n / "model/model.safetensors") for n in ("one", "two")), rtol=0, atol=1e-5)


def test_adapters_of_the_experts_are_trained_sampled_and_exported(play, mixtral):
    run = play(*mixtral, "router_aux_loss_coef=0.01", "lr=1e-2", "rounds=2", name="lora")
    assert any(".experts." in name for name in run.weights)
    assert "aux_loss" in pd.read_csv(run.run_dir / "metrics.csv")
    assert (run.run_dir / "adapter" / "adapter_config.json").exists()


def test_a_model_without_experts_is_refused(play):
    with pytest.raises(ValueError, match=r"balances the experts of a.*type router_aux_loss_coef=0"):
        play("router_aux_loss_coef=0.01")
