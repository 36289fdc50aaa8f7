"""Fused layers give the values and gradients of the layers whose place they take."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from small_models import SIZE
from torch import nn

from choosy.models.fast.fused import fuse

SMALL = SIZE | {"vocab_size": 97, "pad_token_id": 0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),  # with biases
    "qwen3": lambda: transformers.Qwen3Config(**SMALL | {"head_dim": 8}),  # with norms of heads
    "mistral": lambda: transformers.MistralConfig(**SMALL),
    "gemma": lambda: transformers.GemmaConfig(**SMALL | {"head_dim": 8}),  # its norm and gate are others
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, pad_token_id=0),
}
IDS = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(0))


def tiny(architecture: str, *, lora: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
        for name, p in model.named_parameters():
            if "norm" in name or "ln_" in name:
                nn.init.normal_(p, 1.0, 0.3)
        if lora:
            transposed = architecture == "gpt2"
            config = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=transposed, init_lora_weights=False)
            model = get_peft_model(model, config)
    return model.eval()  # without dropout


def outcome(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(input_ids=IDS).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_values_and_gradients_stay(architecture: str, lora: bool) -> None:
    model = tiny(architecture, lora=lora)
    fused = copy.deepcopy(model)
    count = fuse(fused)
    linears = 14 if lora else 0  # seven a layer
    norms = {"llama": 5, "qwen2": 5, "mistral": 5, "qwen3": 9}.get(architecture, 0)
    assert count == {"gpt2": 0, "gemma": linears}.get(architecture, linears + norms + 2)
    wanted, found = outcome(model), outcome(fused)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: n + m)


def test_a_disabled_adapter_is_not_there() -> None:
    model = tiny("llama", lora=True)
    base = copy.deepcopy(model)
    fuse(model)
    with model.disable_adapter(), base.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, base(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


def test_weights_that_are_swapped_are_the_ones_used() -> None:
    model = tiny("llama", lora=True)
    fuse(model)
    before = model(input_ids=IDS).logits
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.zeros_like(p)
    with model.disable_adapter():
        without = model(input_ids=IDS).logits
    after = model(input_ids=IDS).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, without)
