"""Writes a language model as one file of llama.cpp (GGUF), in the precision that it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map
from gguf.quants import quantize
from torch import Tensor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}  # by model_type
SPLITS = {  # how llama.cpp calls the regular expressions that cut a text before byte pairs are merged
    PRETOKENIZE_REGEX: "qwen2",
    PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe",
}
PRECISIONS = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def refuse_gguf(config: Any, tokenizer: Any) -> None:
    """Refuse a model that is not written exactly, by its configuration and its tokenizer."""
    why = ""
    if config.model_type not in FAMILIES:
        why = f"models of type {config.model_type}; it writes {', '.join(FAMILIES)}"
    elif (rope := config.rope_parameters["rope_type"]) not in ("default", "llama3"):
        why = f"positions of type {rope}; it writes default, llama3"
    elif getattr(config, "use_sliding_window", False):
        why = "attention in a sliding window"
    elif split_name(tokenizer) is None:
        why = "this tokenizer, which is no byte-level BPE of GPT-2, SmolLM, Qwen or Llama 3"
    if why:
        raise ValueError(
            f"Choosy writes no GGUF file of {why}. Type choosy merge RUN DIR, and then "
            "python llama.cpp/convert_hf_to_gguf.py DIR in a checkout of llama.cpp."
        )


def split_name(tokenizer: Any) -> str | None:
    """Return llama.cpp's name for how a tokenizer cuts a text before it merges byte pairs; None if it has none."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    before, bpe = parts["pre_tokenizer"] or {}, parts["model"]
    *first, last = before.get("pretokenizers") or [before]
    if (
        bpe["type"] != "BPE"
        or bpe.get("byte_fallback")
        or last.get("type") != "ByteLevel"
        or last.get("add_prefix_space")
        or (parts["normalizer"] or {"type": "NFC"})["type"] != "NFC"
    ):
        return None
    match first:
        case [] if last["use_regex"] or not bpe["merges"]:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}] if last["use_regex"]:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}}] if not last["use_regex"]:
            name = SPLITS.get(regex)  # llama.cpp takes whole words as they are, without merging, for llama-bpe alone
            return name if bool(bpe.get("ignore_merges")) == (name == "llama-bpe") else None
    return None


def write_gguf(model: PreTrainedModel, tokenizer: Any, folder: Path, name: str) -> Path:
    """Write a model with its tokenizer and chat template into a folder, as NAME-PRECISION.gguf; return the file.

    Args:
        model: A whole model, without an adapter.
        tokenizer: Its tokenizer.
        folder: A folder that is there.
        name: What the model is called.
    """
    refuse_gguf(model.config, tokenizer)
    arch = FAMILIES[model.config.model_type]
    precision, file_type = PRECISIONS[model.dtype]
    file = folder / f"{name}-{precision.name}.gguf"
    writer = GGUFWriter(file, arch.name.lower())
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    tensors = dict(_tensors(model, arch))
    kinds = {key: precision if tensor.dim() > 1 else GGMLQuantizationType.F32 for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        width = 4 if kinds[key] == GGMLQuantizationType.F32 else 2
        writer.add_tensor_info(key, tensor.shape, np.dtype("float32"), tensor.numel() * width, kinds[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for key, tensor in tensors.items():  # converted one by one, each as it is written
        writer.write_tensor_data(quantize(tensor.float().cpu().numpy(), kinds[key]))
    writer.close()
    return file


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, size: int) -> None:
    added = tokenizer.added_tokens_decoder
    kinds = {number: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for number, token in added.items()}
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(split_name(tokenizer) or "")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    of_none = {number: TokenType.UNUSED for number in range(size) if number not in texts}
    writer.add_token_types([{**of_none, **kinds}.get(number, TokenType.NORMAL) for number in range(size)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    whole = tokenizer("a").input_ids
    writer.add_add_bos_token(whole[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(whole[-1] == tokenizer.eos_token_id)
    if templates := tokenizer.chat_template:
        named = isinstance(templates, dict)  # several, by name
        writer.add_chat_template([{"name": n, "template": t} for n, t in templates.items()] if named else templates)


def _tensors(model: PreTrainedModel, arch: MODEL_ARCH) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor under llama.cpp's name, its rows in llama.cpp's order."""
    config = model.config
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings
        *_, layer, kind = name.split(".")
        if arch == MODEL_ARCH.LLAMA and layer in heads:  # its rotation is of neighbours, not of halves
            tensor = tensor.unflatten(0, (heads[layer], 2, -1)).transpose(1, 2).flatten(0, 2)
        found = names.get_name(name, try_suffixes=(f".{kind}",))
        assert found, f"GGUF has a name for {name}"
        yield found, tensor
    if config.rope_parameters["rope_type"] == "llama3":  # slower turns of some pairs of a head's numbers, as factors
        rotary: Any = model.get_submodule("model.rotary_emb")
        slowed = rotary.inv_freq.double().cpu()
        power = torch.arange(len(slowed), dtype=torch.float64) / len(slowed)
        yield "rope_freqs.weight", config.rope_parameters["rope_theta"] ** -power / slowed
