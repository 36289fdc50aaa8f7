"""Whatever adapter is loaded, what is sampled is what is scored, trained and computed by PEFT itself."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from choosy.models.loading import Lora
from choosy.models.policy import Policy
from choosy.models.rows import Group
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Prompt

IDS = tuple(b"Tell me about tea.")
ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, Any] = {
    "plain": LoraConfig(r=4, target_modules=ATTENTION),
    "rslora": LoraConfig(r=4, target_modules=ATTENTION, use_rslora=True),
    "dora": LoraConfig(r=4, target_modules=ATTENTION, use_dora=True),
    "head saved": LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "head adapted": LoraConfig(r=4, target_modules=[*ATTENTION, "lm_head"]),
    "embeddings adapted": LoraConfig(r=4, target_modules=[*ATTENTION, "embed_tokens"]),
    "bias of lora": LoraConfig(r=4, target_modules=ATTENTION, lora_bias=True),
    "dropout": LoraConfig(r=4, target_modules=ATTENTION, lora_dropout=0.3),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha with dropout": LoHaConfig(r=4, target_modules=ATTENTION, module_dropout=0.3, rank_dropout=0.3),
    "lokr": LoKrConfig(r=4, target_modules=ATTENTION),
}
OF_HEADS = ["plain", "head saved", "head adapted", "embeddings adapted"]


def tied(folder: Path, to: Path) -> Path:
    """The tiny model with its head tied to its embeddings."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def adapter(model: Path, config: Any, folder: Path) -> Path:
    """An adapter, moved away from zero, as a PEFT script leaves it."""
    config = replace(config, task_type="CAUSAL_LM")  # a copy: PEFT writes the model's name into it
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
    made.save_pretrained(folder)
    return folder


def by_peft(policy: Policy, ids: tuple[int, ...]) -> float:
    """The log-probability of a response by the adapted model's own forward."""
    with torch.no_grad():
        logp_LV = policy.model(input_ids=torch.tensor([[*IDS, *ids]])).logits[0].log_softmax(-1)
    return sum(logp_LV[len(IDS) + n - 1, token].item() for n, token in enumerate(ids))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of adapters of heads, embeddings and biases
@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, "untied") for kind in KINDS), *((kind, "tied") for kind in KINDS if kind in OF_HEADS)]
)
def test_sampled_scored_and_trained_alike(kind: str, head: str, tiny_policy_dir: Path, tmp_path: Path) -> None:
    model = tied(tiny_policy_dir, tmp_path / "tied") if head == "tied" else tiny_policy_dir
    folder = adapter(model, KINDS[kind], tmp_path / "adapter")
    policy = Policy(str(model), lora=Lora(), adapter=str(folder), dtype="float32")
    policy.load(device=torch.device("cpu"), seed=0)
    (responses,) = Generate(max_new_tokens=8).sample(policy, [IDS], [list(range(6))])
    wanted = [by_peft(policy, r.ids) for r in responses]
    (scored,) = policy.score([Candidates(Prompt("p", ""), tuple(responses), IDS)])
    policy.train()
    group = Group(IDS, [r.ids for r in responses])
    trained = policy.token_logps([group]).split([len(r.ids) for r in responses])
    assert scored == pytest.approx(wanted, abs=1e-3)
    assert [logp_T.sum().item() for logp_T in trained] == pytest.approx(wanted, abs=1e-3)
    assert [r.logp for r in responses] == pytest.approx(wanted, abs=1e-3)


def test_only_plain_lora_is_sharded(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, KINDS["dora"], tmp_path / "adapter")
    policy = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder), dtype="float32")
    with pytest.raises(ValueError, match=r"trainer=fsdp shards plain LoRA only, .* choose trainer=ddp"):
        policy.load(device=torch.device("cpu"), seed=0, sharded=True)


def test_learned_prompts_are_refused(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, PromptTuningConfig(num_virtual_tokens=2), tmp_path / "adapter")
    policy = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(folder), dtype="float32")
    with pytest.raises(ValueError, match=r"model\.adapter=.* does not load: .*prompt learning"):
        policy.load(device=torch.device("cpu"), seed=0)


def test_an_adapter_as_the_model_is_refused(tiny_policy_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_policy_dir, KINDS["plain"], tmp_path / "adapter")
    policy = Policy(str(folder), lora=Lora(r=4), dtype="float32")
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.raises(ValueError, match=rf"is an adapter; type model\.name={base} model\.adapter={folder}"):
        policy.load(device=torch.device("cpu"), seed=0)


def test_a_folder_without_an_adapter_is_named(tiny_policy_dir: Path, tmp_path: Path) -> None:
    policy = Policy(str(tiny_policy_dir), lora=Lora(), adapter=str(tmp_path), dtype="float32")
    with pytest.raises(ValueError, match=rf"model\.adapter={tmp_path} does not load: .*adapter_config\.json"):
        policy.load(device=torch.device("cpu"), seed=0)


def test_a_dtype_that_is_none_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float8 is none of auto, bfloat16, float32"):
        Policy("/no/such/model", dtype="float8")  # type: ignore[arg-type]


def test_the_log_says_which_settings_an_adapter_brings(
    tiny_policy_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(
        tiny_policy_dir, LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "q_proj"]), tmp_path / "a"
    )
    policy = Policy(str(tiny_policy_dir), lora=Lora(r=16), adapter=str(folder), dtype="float32")
    with caplog.at_level(logging.INFO):
        policy.load(device=torch.device("cpu"), seed=0)
    assert "is used with its own LORA settings: r=3, lora_alpha=5, target_modules=['q_proj', 'v_proj']." in caplog.text


def test_targets_that_the_model_lacks_are_named(tiny_policy_dir: Path) -> None:
    policy = Policy(str(tiny_policy_dir), lora=Lora(targets=["q_proj", "vv_proj"]), dtype="float32")
    with pytest.raises(ValueError, match=r"targets names vv_proj, and the model has no such layer; .* v_proj"):
        policy.load(device=torch.device("cpu"), seed=0)
