"""The commands that use the tuned model of a run."""

from __future__ import annotations

import pytest
import torch

from choosy import tuned_model
from choosy.chat import chat
from choosy.evaluation import evaluate_model


@pytest.fixture
def tuned(play):
    return play("rounds=1", "lr=1e-2", "evaluation.sampler.max_new_tokens=8")


@pytest.fixture
def small_neox(tmp_path, tiny_policy_dir):
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_dir)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "small-neox")
    tokenizer.save_pretrained(tmp_path / "small-neox")
    return tmp_path / "small-neox"


def test_merge_writes_a_model_that_computes_the_same(tuned, tmp_path, capfd):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    capfd.readouterr()
    tuned_model.merge([str(tuned.run_dir), str(tmp_path / "merged")])
    assert capfd.readouterr().err == "", "no progress bars"
    assert 'AutoModelForCausalLM.from_pretrained("merged")' in (tmp_path / "merged" / "README.md").read_text()
    with pytest.raises(
        ValueError, match=r"choosy merge lacks DIR, a new folder for the model\. Type choosy merge \[--gguf\] RUN DIR"
    ):
        tuned_model.merge([str(tuned.run_dir)])
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("Hello there", return_tensors="pt").input_ids
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        adapted = AutoPeftModelForCausalLM.from_pretrained(tuned.run_dir / "adapter")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tuned.policy.source.name)(ids).logits
    torch.testing.assert_close(whole, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, base, atol=1e-3)
    with pytest.raises(ValueError, match="merged holds something already; type a new folder"):
        tuned_model.merge([str(tuned.run_dir), str(tmp_path / "merged")])


def test_merge_writes_a_file_for_llama_cpp(tuned, tmp_path, capfd):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    capfd.readouterr()
    tuned_model.merge([str(tuned.run_dir), str(tmp_path / "cheerful"), "--gguf"])
    file = tmp_path / "cheerful" / "cheerful-F32.gguf"
    assert f"llama-server -m {file} serves it" in capfd.readouterr().out
    assert "llama-server -m cheerful-F32.gguf" in (file.parent / "README.md").read_text()
    ids = AutoTokenizer.from_pretrained(tuned.run_dir / "adapter")("Hello there", return_tensors="pt").input_ids
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(tuned.run_dir / "adapter")(ids).logits
        whole = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")(ids).logits
    torch.testing.assert_close(whole, adapted, atol=1e-4, rtol=1e-4)


def test_a_model_that_has_no_gguf_is_refused_before_anything_is_sampled(play, tmp_path, small_neox):
    with pytest.raises(ValueError, match="no GGUF file of models of type gpt_neox"):
        play(f"model.name={small_neox}", "export=gguf", name="neox")
    assert not any((tmp_path / "neox").glob("rounds/*"))
    with pytest.raises(ValueError, match=r"export=merged merges an adapter, and model\.lora=null writes all weights"):
        play("model.lora=null", "export=merged", name="all")


@pytest.mark.parametrize("command", [chat, evaluate_model, tuned_model.merge])
def test_what_is_no_run_with_a_tuned_model_is_refused(command, tmp_path):
    more = [] if command is chat else ["x"]
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no config\.yaml"):
        command([str(tmp_path), *more])
    (tmp_path / "config.yaml").write_text("module: {}\n")
    with pytest.raises(ValueError, match=r"has no tuned model yet; resume the run with ckpt_path=last"):
        command([str(tmp_path), *more])


def test_a_run_that_tuned_all_weights_has_nothing_to_merge(play, tmp_path):
    run = play("rounds=1", "model.lora=null", "data.heldout=null")
    with pytest.raises(ValueError, match="is the whole model; there is nothing to merge"):
        tuned_model.merge([str(run.run_dir), str(tmp_path / "merged")])
    tuned_model.merge([str(run.run_dir), str(tmp_path / "file"), "--gguf"])
    assert (tmp_path / "file" / "file-F32.gguf").is_file()
