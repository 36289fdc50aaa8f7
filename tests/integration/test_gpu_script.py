"""benchmarks/gpu.py at toy size on a CPU: every part is measured, or says why not, and is written at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu
import wheels
from flops import published_peak


def run(out: Path, *words: str) -> dict[str, Any]:
    script = ROOT / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, script, "--toy", "--out", out, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.timeout(1200)  # beside other programs
@pytest.mark.skipif(torch.cuda.is_available(), reason="the parts of a GPU are played there by benchmarks/gpu.py itself")
def test_every_part_is_played_at_toy_size(tmp_path: Path) -> None:
    parts = run(tmp_path, "--seconds", "1100")["parts"]
    assert list(parts) == [part.name for part in gpu.PARTS]
    log = (tmp_path / "gpu.log").read_text()
    late = [name for name, found in parts.items() if "s are left" in str(found.get("skipped"))]
    assert not late, f"no time was left for {late}\n{log[-3000:]}"
    for name, found in parts.items():
        assert not {"failed", "stopped", "out_of_memory", "error"} & found.keys(), f"{name}: {found}\n{log[-3000:]}"
    assert parts["tests"]["skipped"] > 30
    assert parts["tests"]["skipped_because"] == ["needs a GPU, and torch finds none"]
    assert parts["round"]["tokens"] == 4 * 2 * 6
    for name in ("sdpa", "padded", "grouped", "sdpa, not fused", "sdpa, FSDP2"):
        assert parts[f"step {name}"]["loss"] == pytest.approx(0.6931, abs=0.01), "the policy has hardly moved"
        assert "mfu" not in parts[f"step {name}"], "a CPU has no published rate"
    assert [parts[f"step {name}"]["one_row"] for name in ("sdpa", "padded", "grouped")] == [False, False, True]
    assert parts["step flex_attention"]["skipped"] == "FlexAttention has no backward on a CPU"
    assert parts["resume"]["equal"]
    assert parts["resume"]["largest_weight"] > 0
    if not gpu.find_spec("vllm"):
        assert parts["vllm"]["skipped"] == "without vllm"
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert len(lines) == 4 + len(parts)


def test_parts_without_time_are_skipped_and_say_so(tmp_path: Path) -> None:
    parts = run(tmp_path, "--seconds", "0")["parts"]
    assert {found["skipped"] for name, found in parts.items() if "vllm" not in name} == {"0 of 0 s are left"}


def test_a_part_that_takes_too_long_is_stopped_and_one_whose_process_dies_says_so(tmp_path, monkeypatch) -> None:
    (log := tmp_path / "log").touch()
    monkeypatch.setattr(gpu, "SCRIPT", tmp_path / "worker.py")
    (tmp_path / "worker.py").write_text("import time; time.sleep(60)")
    worker = gpu.Worker({}, log)
    assert worker.ask("round", 0.5) == {"stopped": "it was not done after 0 s"}
    (tmp_path / "worker.py").write_text("raise SystemExit('no driver')")
    assert worker.ask("round", 60) == {"failed": "its process ended with 1: no driver"}
    (tmp_path / "worker.py").write_text("input(); print('{\"seconds\": 2}')")
    assert worker.ask("round", 60) == {"seconds": 2}
    worker.end()


def test_marked_tests_that_take_too_long_end_with_the_processes_that_they_started(tmp_path, monkeypatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_slow.py").write_text(
        "import subprocess, sys, pathlib\n"
        "import pytest\n"
        "@pytest.mark.gpu\n"
        "def test_slow():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    pathlib.Path('child').write_text(str(child.pid))\n"
        "    child.wait()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.marked_tests(20, tmp_path / "log").keys() == {"stopped"}
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if is_gone(child):
            break
        time.sleep(0.1)
    assert is_gone(child)
    (tmp_path / "tests" / "test_slow.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_quick(): pass\n")
    assert gpu.marked_tests(300, tmp_path / "log") == {"passed": 1}


def is_gone(pid: int) -> bool:
    """Whether a process has ended, perhaps without anyone who has asked how."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_published_rate_of_a_card() -> None:
    rates = {name: published_peak(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200")}
    assert list(rates.values()) == [989e12, 756e12, 989e12]
    assert published_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert published_peak("NVIDIA GeForce RTX 4090") is None


def test_what_a_machine_lacks() -> None:
    assert wheels.needed(["omegaconf"]).keys() == {"omegaconf", "antlr4-python3-runtime", "pyyaml"}
    assert wheels.needed(["omegaconf>=2.3"], without={"pyyaml"}, there={"antlr4-python3-runtime": ""}).keys() == {
        "omegaconf"
    }
    assert wheels.needed(["omegaconf>=2.3"], there={"omegaconf": "2.3.0"}) == {}
    assert "omegaconf" in wheels.needed(["omegaconf>=2.3"], there={"omegaconf": "2.1.0"})
    assert "tomli" not in wheels.needed(["tomli>=2; python_version < '3.11'"])
