"""What a run leaves is loaded as docs/export.md shows it, without Choosy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from tiny import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from choosy import tuned_model
from choosy.sampling import vllm

SHOWN = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', (ROOT / "docs/export.md").read_text(), re.M | re.S))
ANSWERS = """
import sys
inputs = tokenizer("Hello", return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist(), "choosy" in sys.modules)
"""
IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True)
    [said] = engine.generate(["Hello"], SamplingParams(temperature=0, max_tokens=4))
    print("tokens", json.dumps([*said.prompt_token_ids, *said.outputs[0].token_ids]))
"""


@pytest.mark.slow
def test_vllm_loads_a_merged_model(play, tmp_path, tiny_policy_dir):
    if not vllm.is_installed():
        pytest.skip("vLLM is not installed here; make test-vllm runs this in an environment that has it")
    base = tmp_path / "base"
    config = LlamaConfig.from_pretrained(tiny_policy_dir, head_dim=32)  # the least that vLLM has kernels for
    LlamaForCausalLM(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(base)
    run = play("rounds=1", "data.heldout=null", "lr=1e-2", "export=merged", f"model.name={base}")
    model = AutoModelForCausalLM.from_pretrained(run.run_dir / "merged")
    ids = AutoTokenizer.from_pretrained(run.run_dir / "merged")("Hello", return_tensors="pt").input_ids
    known = model.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()
    (tmp_path / "in_vllm.py").write_text(IN_VLLM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, str(tmp_path / "in_vllm.py"), str(run.run_dir / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("tokens ")]  # vLLM prints others
    assert json.loads(said.removeprefix("tokens ")) == known


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
