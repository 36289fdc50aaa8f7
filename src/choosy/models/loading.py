"""A causal language model with its adapter, as it is loaded at the start of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from choosy.console import hide_progress_bars
from choosy.errors import in_a_line
from choosy.models.adapters import Lora
from choosy.models.damaged import refusing_damaged
from choosy.models.fast import tree_attention
from choosy.models.locate import ModelSource
from choosy.options.names import meant
from choosy.terminal import logger

log = logger(__name__)

Dtype = Literal["auto", "bfloat16", "float32", "nf4"]
OWN = {"r": "r", "lora_alpha": "alpha", "target_modules": "targets"}  # of PEFT's arguments: options of `Lora`


def auto_dtype(device: torch.device) -> torch.dtype:
    """Choose bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    cpu = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    multiplies = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    fast = any(has() for has in multiplies if has is not None) and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if cpu.startswith("AVX512") and fast else torch.float32


def refuse_nf4(*, lora: bool) -> None:
    """Refuse weights in 4 bits where all weights are trained, or without the library that multiplies by them."""
    if not lora:
        raise ValueError("model.dtype=nf4 keeps frozen weights in 4 bits, and model.lora=null trains all; use LoRA.")
    if find_spec("bitsandbytes") is None:
        raise ValueError("model.dtype=nf4 needs bitsandbytes; type pip install 'choosy-tuning[nf4]'")


def load_weights(
    source: ModelSource, *, dtype: torch.dtype, attention: str, device: torch.device, nf4: bool = False
) -> PreTrainedModel:
    """Load a causal language model, with the attention (see `Compute`) for a device, into the memory of the CPU.

    With `nf4` the weights of its linear layers are kept in 4 bits (QLoRA, 2305.14314), on the device.
    """
    hide_progress_bars()
    tree_attention.register()
    how: dict[str, Any] = {"dtype": dtype}
    if nf4:
        settings: Any = BitsAndBytesConfig
        four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        how |= {"quantization_config": settings(**four_bits, bnb_4bit_compute_dtype=dtype), "device_map": device}
    load: Callable[..., PreTrainedModel] = partial(source.load, AutoModelForCausalLM, **how)
    with refusing_damaged(source.resolved):
        if attention != "auto" or device.type != "cpu":
            return load(attn_implementation=None if attention == "auto" else attention)
        try:
            return load(attn_implementation="grouped")
        except (KeyError, ValueError) as error:
            if "grouped" not in (error.__cause__ or error).args:
                raise
            log.info("%s takes no attention but its own.", source.name)
            return load(attn_implementation=None)


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights on a CPU once they are sampled with: packed ones pass no gradient on."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # torch takes it for a module


def give_contiguous_states(model: PreTrainedModel) -> None:
    """Give the head contiguous hidden states: of a slice torch would copy the whole head once for each row."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers gives it no type
    head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))


def add_adapter(model: PreTrainedModel, lora: Lora, folder: str | None, *, seed: int) -> PeftModel:
    """Add an adapter to frozen weights: the trained one of a folder, or else a new one that changes nothing yet."""
    if folder is not None:
        return load_adapter(model, folder)
    one_name = isinstance(lora.targets, str) and lora.targets.isidentifier()
    targets = [str(lora.targets)] if one_name else lora.targets
    refuse_unknown_targets(model, targets)
    refuse_unknown_options(lora.options)
    settings = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "target_modules": targets,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's layers
        "task_type": "CAUSAL_LM",
        **lora.options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=True)
        except (ValueError, TypeError, NotImplementedError, ImportError, AttributeError) as error:
            raise ValueError(f"PEFT makes no adapter of model.lora: {error}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


@torch.no_grad()
def load_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    """Add a trained adapter, of any kind that works inside the model's layers; others raise a ValueError."""
    try:
        with refusing_damaged(folder):
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=True)
        adapted.eval()
        ids_1L = torch.arange(3, device=model.device)[None]
        works = torch.equal(adapted(input_ids=ids_1L).logits, adapted.get_base_model()(input_ids=ids_1L).logits)
    except Exception as error:  # a configuration of others may make PEFT raise anything
        why = error if isinstance(error, ValueError | OSError | RuntimeError) else in_a_line(error)
        raise ValueError(f"model.adapter={folder} does not load: {why}") from error
    config = adapted.active_peft_config
    if not works:
        kind = config.peft_type.value
        raise ValueError(
            f"model.adapter={folder} is a {kind} adapter, which also works outside of the model's layers; choose LoRA "
            "or its like."
        )
    names = [name for name in ("r", "alpha", "lora_alpha", "target_modules") if hasattr(config, name)]
    values = {name: getattr(config, name) for name in names}
    brought = ", ".join(
        f"{name}={sorted({layer.rpartition('.')[2] for layer in value}) if isinstance(value, set) else value}"
        for name, value in values.items()
    )
    log.info("model.adapter=%s is used with its own %s settings: %s.", folder, config.peft_type.value, brought)
    return adapted


def refuse_unknown_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError for what is no argument of PEFT's LoraConfig, or has an option of its own."""
    known = {f.name for f in fields(LoraConfig)}
    for name in options:
        if name not in known or name in OWN:
            what = f"goes by model.lora.{OWN[name]}" if name in OWN else "is no argument of PEFT's LoraConfig"
            near = meant(name, known - OWN.keys())
            raise ValueError(f"model.lora.options.{name} {what}. {near if name not in OWN else ''}".rstrip())


def refuse_unknown_targets(model: nn.Module, targets: str | Sequence[str]) -> None:
    """Raise a ValueError for a name of layers that the model does not have."""
    if isinstance(targets, str):  # PEFT refuses an expression that no name matches
        return
    takes = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, Conv1D)  # of PEFT's LoRA
    layers = {name: module for name, module in model.named_modules() if not list(module.children())}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name, layer in layers.items() if isinstance(layer, takes)})
            near = get_close_matches(target, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"model.lora.targets names {target}, and the model has no such layer. {hint}It has {', '.join(known)}."
            )


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout, and every router's noise, to 0, so that training and scoring give equal log-probs."""
    noises = ("jitter_noise", "router_jitter_noise", "input_jitter_noise")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # layers that call a function keep its rate as a number
            if isinstance(value, float) and ("drop" in name or name in noises):
                setattr(module, name, 0.0)
        for name in ("rank_dropout", "module_dropout"):  # of LoHa and its like, by adapter
            if isinstance(of_adapter := getattr(module, name, None), dict):
                of_adapter.update(dict.fromkeys(of_adapter, 0.0))
