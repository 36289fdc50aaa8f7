"""What a run leaves is loaded as docs/export.md shows it, without Choosy."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tiny import ROOT

from choosy import tuned_model

SHOWN = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```', (ROOT / "docs/export.md").read_text(), re.M | re.S))
ANSWERS = """
import sys
inputs = tokenizer("Hello", return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist(), "choosy" in sys.modules)
"""


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
