"""The GGUF file of a model, read by transformers and by llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SIZE

from choosy.models.gguf_file import SPLITS, refuse_gguf, split_name, write_gguf

TEXT = "It's 2026: we'll meet 1234567 people, don't you agree?\n\n  A naïve idea, surely (3.14) – 日本語!\n"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64
MODELS: dict[str, dict[str, Any]] = {
    "gpt-2": {"kind": "llama", "attention_bias": True, "tie_word_embeddings": False},
    "smollm": {"kind": "llama", "tie_word_embeddings": True, "head_dim": 16},
    "llama-bpe": {"kind": "llama", "rope_parameters": LLAMA3},
    "qwen2": {"kind": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"kind": "qwen3", "head_dim": 128},  # the only size that transformers reads,
}
TEXTS = [TEXT[:length] for length in range(5, len(TEXT) + 1, 5)]
IN_LLAMA_CPP = """
import json, sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = sys.argv[1], 256, 1, False
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(settings)
for text in json.loads(sys.argv[2]):
    answer = server.handle_completions({"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 999})
    [choice], read = answer["choices"], answer["usage"]["prompt_tokens"]
    found = choice["logprobs"]["content"][0]["top_logprobs"] if choice["logprobs"] else []  # none of half a letter
    print(json.dumps([read, {one["id"]: one["logprob"] for one in found}]))
"""


def tokenizer(split: str) -> Any:
    """A byte-level BPE tokenizer with some merges, which cuts texts before them as this one of llama.cpp's does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    regex = next((regex for regex, name in SPLITS.items() if name == split), None)
    first = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}.get(split) or (
        [pre_tokenizers.Split(Regex(regex), "isolated")] if regex else []
    )
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    made = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT] * 3 + ["1234 5678 123 12"] * 9,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False),
    )
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    ends = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def model(kind: str, own: Any, **settings: Any) -> Any:
    """A random model of a family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    size = {**SIZE, "vocab_size": len(own) + 3, "max_position_embeddings": 256, "eos_token_id": own.eos_token_id}
    config = AutoConfig.for_model(kind, **{"rms_norm_eps": 1e-6, **size, **settings})
    made = AutoModelForCausalLM.from_config(config).eval()
    for name, one in made.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(one, std=0.3)
    return made


@pytest.fixture(params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, Path]:
    settings = dict(MODELS[request.param])
    own = tokenizer("qwen2" if request.param == "qwen3" else request.param)
    made = model(settings.pop("kind"), own, **settings)
    return made, own, write_gguf(made, own, tmp_path, "tiny")


def test_llama_cpp_computes_the_same(written):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    made, own, file = written
    command = [sys.executable, "-c", IN_LLAMA_CPP, str(file), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(bool(logps) for _, logps in answers) > 3
    for text, (read, logps) in zip(TEXTS, answers, strict=True):
        ids = own(text, return_tensors="pt").input_ids
        assert read == ids.shape[1], "the text is cut into as many tokens"
        with torch.no_grad():
            known = made(ids).logits[0, -1].log_softmax(0)
        assert {int(token): known[int(token)].item() for token in logps} == pytest.approx(
            {int(token): logp for token, logp in logps.items()}, abs=1e-4
        )


@pytest.mark.parametrize("written", ["smollm", "qwen2", "qwen3"], indirect=True)
def test_transformers_reads_the_same_model_tokenizer_and_template(written):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made, own, file = written
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert again.chat_template == own.chat_template
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    ids = own(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        torch.testing.assert_close(read(ids).logits, made(ids).logits, atol=1e-4, rtol=1e-4)


def test_half_precision_stays_as_it_is(tmp_path):
    from gguf import GGUFReader

    own = tokenizer("gpt-2")
    made = model("qwen2", own).bfloat16()
    file = write_gguf(made, own, tmp_path, "half")
    assert file.name == "half-BF16.gguf"
    (found,) = [one for one in GGUFReader(file).tensors if one.name == "blk.0.ffn_up.weight"]
    weight = made.model.layers[0].mlp.up_proj.weight.detach()
    assert torch.equal(torch.from_numpy(found.data.copy()).view(torch.bfloat16), weight)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "gpt_neox"}, "models of type gpt_neox; it writes llama, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "positions of type linear"),
        ({"kind": "qwen2", "use_sliding_window": True, "sliding_window": 8}, "attention in a sliding window"),
    ],
)
def test_what_would_not_be_exact_is_refused_before_anything_is_written(changed, why, tmp_path):
    own = tokenizer("gpt-2")
    made = model(**{"kind": "llama", "own": own, **changed})
    with pytest.raises(ValueError, match=rf"no GGUF file of {why}.*choosy merge RUN DIR"):
        write_gguf(made, own, tmp_path, "tiny")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused():
    from tokenizers import Regex, pre_tokenizers

    own = tokenizer("gpt-2")
    made = model("llama", own)
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\w+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert split_name(own) is None
    with pytest.raises(ValueError, match="no byte-level BPE of GPT-2, SmolLM, Qwen or Llama 3"):
        refuse_gguf(made.config, own)


def test_llama_3_s_tokenizer_takes_whole_words_without_merging():
    from tokenizers import models

    own = tokenizer("llama-bpe")
    assert split_name(own) == "llama-bpe"
    own.backend_tokenizer.model = models.BPE()
    assert split_name(own) is None


def test_several_chat_templates_and_both_ends_are_written(tmp_path):
    from gguf import GGUFReader
    from tokenizers import processors

    own = tokenizer("gpt-2")
    own.chat_template = {"default": own.chat_template, "tool_use": "tools"}
    ends = [(token, own.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|end|>")]
    own.backend_tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A <|end|>", None, ends)
    found = GGUFReader(write_gguf(model("llama", own), own, tmp_path, "tiny")).fields
    template, tools, adds_bos, adds_eos = (
        found[f"tokenizer.{name}"].contents()
        for name in ("chat_template", "chat_template.tool_use", "ggml.add_bos_token", "ggml.add_eos_token")
    )
    assert (template, tools) == (own.chat_template["default"], "tools")
    assert adds_bos
    assert adds_eos
