"""What a run leaves is loaded as docs/export.md shows it, without Choosy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tiny import ROOT, skip_without_vllm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from choosy import tuned_model

SHOWN = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', (ROOT / "docs/export.md").read_text(), re.M | re.S))
ANSWERS = """
import sys
inputs = tokenizer("Hello", return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist(), "choosy" in sys.modules)
"""
IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    model, *adapter = sys.argv[1:]
    engine = LLM(model, dtype="float32", max_model_len=256, enforce_eager=True, enable_lora=bool(adapter))
    tuned = LoRARequest("tuned", 1, *adapter) if adapter else None
    greedy = SamplingParams(temperature=0, max_tokens=4, logprobs=0)
    [said] = engine.generate(["Hello"], greedy, lora_request=tuned)
    print("said", json.dumps([said.prompt_token_ids, *said.outputs[0].token_ids, said.outputs[0].cumulative_logprob]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_vllm_loads_what_is_exported(export, play, tmp_path, tiny_policy_dir):
    skip_without_vllm()
    base = tmp_path / "base"
    config = LlamaConfig.from_pretrained(tiny_policy_dir, head_dim=32)  # the least that vLLM has kernels for
    LlamaForCausalLM(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(base)
    run = play("rounds=1", "data.heldout=null", "lr=1e-2", f"export={export}", f"model.name={base}")
    given = [run.run_dir / "merged"] if export == "merged" else [base, run.run_dir / "adapter"]
    (tmp_path / "in_vllm.py").write_text(IN_VLLM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, tmp_path / "in_vllm.py", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said ")]  # vLLM prints others
    prompt, *said, logp = json.loads(line.removeprefix("said "))
    kind = AutoModelForCausalLM if export == "merged" else AutoPeftModelForCausalLM
    model = kind.from_pretrained(given[-1])
    assert AutoTokenizer.from_pretrained(given[-1])("Hello").input_ids == prompt
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)[0].tolist()
    assert answer == [*prompt, *said]
    assert logp == pytest.approx(logp_of(model, prompt, said), abs=1e-3)
    assert abs(logp - logp_of(AutoModelForCausalLM.from_pretrained(base), prompt, said)) > 0.01, "it was not tuned"


@torch.no_grad()
def logp_of(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    """The log-prob of a response."""
    logp_TV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return sum(float(logp_TV[len(prompt) - 1 + n, token]) for n, token in enumerate(response))


@pytest.mark.slow
def test_peft_and_transformers_load_what_a_run_leaves(play, tmp_path, monkeypatch):
    run = play("rounds=1", "data.heldout=null", "lr=1e-2", name="runs/demo")
    monkeypatch.chdir(tmp_path)
    tuned_model.merge(["runs/demo", "merged"])
    said = []
    for file, code in SHOWN.items():
        done = subprocess.run([sys.executable, "-c", code + ANSWERS], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{file}\n{done.stderr}"
        said.append(done.stdout.splitlines()[-1])
    assert [*SHOWN] == ["with_peft.py", "with_transformers.py"]
    assert said[0] == said[1], "both are the tuned model"
    assert said[0].endswith(" False"), "without Choosy"
    assert (run.run_dir / "adapter" / "adapter_model.safetensors").is_file()


def test_curves_that_cannot_be_drawn_end_no_run(play, monkeypatch, caplog):
    monkeypatch.setattr("callbacks.report.write_curves", lambda run: 1 / 0)
    run = play()
    assert run.summary["rounds"] == 2
    assert (run.run_dir / "adapter" / "README.md").is_file()
    assert "curves.png is not written (ZeroDivisionError: division by zero); when that is mended" in caplog.text
