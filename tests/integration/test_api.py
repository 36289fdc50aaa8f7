"""`choosy.tune` from a folder outside the project: what docs/python.md shows, objects of every kind, own packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import ROOT, TOY, command
from transformers import AutoModelForCausalLM, AutoTokenizer

import choosy
from callbacks.random import RandomPairs
from choosy.main import check, compose
from choosy.methods.losses import SigmoidLoss
from choosy.methods.weighting import Uniform
from choosy.sealed import read_json

PAGE = ROOT / "docs" / "python.md"
THINGS = ("tea", "rain", "bread", "snow", "chess", "soup", "maps", "owls")
PROMPTS = [f"Tell me about {thing}." for thing in THINGS]


def letters(prompt: str, response: str) -> float:
    """The reward of toy.vowels."""
    return float(sum(map(ord, response)) % 7)


@pytest.fixture
def tune(tmp_path: Path, tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choosy.tune` of a small run in a folder outside the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    small = {"trainer": "cpu", "rounds": 2, "sampler": {"max_new_tokens": 6}, "model.dtype": "float32"}
    small |= {"selector": "random_pairs", "weighting": "uniform", "model": str(tiny_policy_dir)}

    def tuned(*words: str, **more: Any) -> Any:
        return choosy.tune(*words, **{**small, "prompts": PROMPTS, "heldout": PROMPTS[:2], "reward": letters, **more})

    return tuned


def test_importing_choosy_imports_no_torch():
    asked = "import sys, choosy; assert 'torch' not in sys.modules and 'choosy.api' not in sys.modules"
    subprocess.run([sys.executable, "-c", asked], check=True)


def test_a_mistake_is_raised_without_inner_frames_before_torch_is_imported():
    program = (
        "import choosy, sys, traceback\ntry: choosy.tune({})\nexcept ValueError: traceback.print_exc(file=sys.stdout)\n"
    )
    program += "print('torch' in sys.modules)"
    for mistake in ("learning_rate=1e-4", "lr='hot'", "model=1", "reward=3", "prompts=[1]"):
        call = program.format(mistake if "prompts" in mistake else f"prompts=['a'], {mistake}")
        said = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True).stdout
        assert said.count("  File ") == 2, said  # the user's line and one of ours
        assert said.endswith("False\n"), said


def test_a_result_has_its_numbers_table_curves_policy_and_a_head_for_notebooks(tune):
    result = tune(heldout=PROMPTS[:3], lr=1e-2, **{"batching.batch_size": 2})
    assert result.summary == read_json(result.folder / "summary.json")
    rows = result.table()
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert rows[-1]["labels"] == result.summary["labels"]["spent"] > 0
    assert rows[-1]["reward"] == result.summary["reward"]["final"]
    assert result.curves.read_bytes().startswith(b"\x89PNG")
    head = result._repr_html_()
    assert result.run.headline in head
    assert "data:image/png;base64,iVBOR" in head
    assert "Tell me about tea." in head


def test_a_loaded_model_rows_and_a_function_train_as_their_names_do(tune, tiny_policy_dir, tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    model, tokenizer = (kind.from_pretrained(tiny_policy_dir) for kind in (AutoModelForCausalLM, AutoTokenizer))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    by_object = tune(model=(model, tokenizer), prompts=Dataset.from_list([{"prompt": p} for p in PROMPTS]))
    by_name = tune("run_dir=named", prompts="rows.jsonl", reward="toy.vowels")
    ours, theirs = (dict(result.policy[0].named_parameters()) for result in (by_object, by_name))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items()), "it stays as it was"
    assert any(weight.abs().sum() > 0 for name, weight in ours.items() if "lora_B" in name)
    given = yaml.safe_load((by_object.folder / "config.yaml").read_text())
    assert (tmp_path / given["data"]["train"]).read_text() == (tmp_path / "rows.jsonl").read_text()


def test_selectors_losses_and_labelers_are_objects_too(tune, capsys):
    class Longer:
        name = "longer"

        def compare(self, items):
            return ["first" if len(a.text) > len(b.text) else "second" for _, a, b in items]

    parts = {"selector": RandomPairs(fraction=0.5), "loss": SigmoidLoss(beta=0.3), "weighting": Uniform()}
    result = tune(reward=Longer(), rounds=1, **parts)
    assert result.summary["labels"]["spent"] == 4
    card = (result.folder / "adapter" / "README.md").read_text()
    for row in (
        "loss | sigmoid, beta 0.3",
        "weighting | uniform",
        "selector | random_pairs",
        "labeler | Longer (longer)",
    ):
        assert f"| {row} |" in card
    assert "labeler=Longer compares the responses" in capsys.readouterr().err
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["loss"]["name"] == "loss"


def test_a_function_in_trl_form_receives_the_columns_of_the_rows(tune):
    seen = []

    def fits(completions, wanted, **kwargs):
        seen.extend(wanted)
        return [float(len(text) % (n + 2)) for text, n in zip(completions, wanted, strict=True)]

    rows = [{"prompt": prompt, "wanted": n} for n, prompt in enumerate(PROMPTS)]
    assert tune(prompts=rows, heldout=rows[:2], reward=fits, rounds=1).summary["labels"]["spent"] > 0
    assert set(seen) <= set(range(8))
    assert len(set(seen)) > 1


def test_several_functions_are_weighed(tune):
    def ones(completions, **kwargs):
        return [1.0] * len(completions)

    both = tune("run_dir=both", reward=[letters, ones], labeler={"weights": [1.0, 10.0]}, rounds=1)
    alone = tune("run_dir=alone", reward=[letters], rounds=1)
    assert both.run.start["reward"] == pytest.approx(alone.run.start["reward"] + 10)


def test_a_table_is_a_value_too(tune):
    columns = {"data.reader.columns": {"the title": "prompt"}, "model.lora.options": {"use_rslora": True}}
    result = tune(prompts=[{"the title": prompt} for prompt in PROMPTS], rounds=1, loss={"beta": 0.3}, **columns)
    given = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert given["data"]["reader"]["columns"] == {"the title": "prompt"}
    assert given["module"]["loss"]["beta"] == 0.3
    assert given["model"]["lora"]["options"] == {"use_rslora": True}


def test_a_finished_run_is_read_and_a_longer_one_continued(tune):
    first = tune("run_dir=one", "ckpt_path=auto")
    written = (first.folder / "summary.json").stat().st_mtime_ns
    assert (tune("run_dir=one", "ckpt_path=auto").folder / "summary.json").stat().st_mtime_ns == written
    assert tune("run_dir=one", "ckpt_path=auto", rounds=3).summary["rounds"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": 3}, "reward=3: give a function, a list of functions, a labeler, or the name of one"),
        ({"reward": [letters, 3]}, "give a function, a list of functions"),
        ({"reward_funcs": letters}, r"reward_funcs is called reward here: type choosy.tune\(reward=...\)"),
        ({"labeler": letters}, "labeler is called reward here"),
        ({"train_dataset": PROMPTS}, "train_dataset is called prompts here"),
        ({"data": {"train": [{"prompt": "tea"}]}}, "data.train is called prompts here"),
        ({"model_name": "tiny"}, "model_name is called model here"),
        ({"sampler": {"max_new_token": 6}}, "There is no option sampler.max_new_token. Did you mean"),
        ({"selector": object()}, "give a name of the menu, or a callback"),
        ({"model": torch.nn.Linear(1, 1)}, r"model=\(model, tokenizer\)"),
        ({"prompts": ["tea", 3]}, "A row of the data is 3"),
        ({"loss": object()}, "has no beta"),
        ({"loss": {"betta": 1}}, "There is no option loss.betta. Did you mean loss.beta?"),
        ({"weighting": object()}, "has no normalize, which a weighting has"),
        ({"config_dir": "nowhere"}, "config_dir=nowhere: there is no such folder"),
        ({"prompts": {"prompt": ["tea"]}}, "Data of Python are a list of prompts or of dicts, found a dict"),
        ({"heldout": False}, "found a bool; give frame.to_dict"),
        ({"prompts": [{"prompt": "tea", "when": {1}}]}, "has a value that JSON has no form for: .*set"),
        ({"prompts": []}, r"^prompts has no rows; give a source with at least one\.$"),
        ({"heldout": [{"nothing": 1}]}, r"^heldout, "),
        ({"rewrd": letters}, "choosy.tune has no argument rewrd. Did you mean reward?"),
        ({"promts": ["tea"]}, "choosy.tune has no argument promts. Did you mean prompts?"),
        ({"weighting.clipp": 3}, "There is no option weighting.clipp"),
        ({"rouns": 3}, "There is no option rouns. Did you mean rounds"),
        ({"data": {"responses": 0}}, "data.responses wants a number of 1 or more, found 0"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence_and_leaves_no_folder(given, message, tune, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune(**given)
    assert not [*tmp_path.glob("runs/*/*")]


def test_what_an_experiment_sets_of_another_loss_is_left_out_here_too():
    words = ["experiment=wpo", "loss=sigmoid"]
    with pytest.raises(ValueError, match=r"There is no option loss\."):
        check(compose(words))
    cfg = compose(words)
    check(cfg, words)
    assert cfg.loss.beta == 0.1


def test_a_reward_that_fails_costs_a_sentence_and_the_mended_call_runs(tune):
    with pytest.raises(ValueError, match="nan"):
        tune("run_dir=one", reward=lambda prompt, response: float("nan"), rounds=1)
    assert tune("run_dir=one", rounds=1).summary["labels"]["spent"] > 0


def test_a_used_folder_is_refused_or_replaced_and_keeps_its_rows(tune, tmp_path):
    tune("run_dir=one", rounds=1)
    (rows,) = tmp_path.glob("one/given/train-*.jsonl")
    before = rows.read_text()
    with pytest.raises(ValueError, match="already holds a finished run"):
        tune("run_dir=one", prompts=["another"], rounds=1)
    assert rows.read_text() == before
    assert [*tmp_path.glob("one/given/train-*")] == [rows]
    assert tune("run_dir=one", "overwrite=true", prompts=PROMPTS[:4], rounds=1).summary["labels"]["spent"] > 0


@pytest.mark.slow
def test_the_page_runs_from_a_folder_outside_the_project(tmp_path, tiny_policy_dir):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    sizes = '"trainer=cpu", "sampler.max_new_tokens=6", "model.dtype=float32", '
    program = "\n".join(blocks).replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_policy_dir))
    (tmp_path / "page.py").write_text(program.replace("choosy.tune(", f"choosy.tune({sizes}"))
    run = command("page.py", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 3


@pytest.mark.slow
def test_an_own_selector_is_on_the_menu_of_a_folder_of_ones_own(tmp_path, tiny_policy_dir):
    page = PAGE.read_text()
    (menu,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (selector,) = re.findall(r"^from dataclasses.*?(?=^class Shorter)", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "menu" / "selector").mkdir(parents=True)
    (tmp_path / "menu" / "selector" / "longest_pairs.yaml").write_text(menu)
    (tmp_path / "my_selectors.py").write_text(selector)
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    sizes = [
        "trainer=cpu",
        "rounds=1",
        "sampler.max_new_tokens=6",
        "model.dtype=float32",
        f"model.name={tiny_policy_dir}",
    ]
    sizes += ["data.train=prompts.jsonl", "labeler=function", "labeler.path=toy.vowels"]
    typed = ["-m", "choosy", "train", "--config-dir", "menu", "selector=longest_pairs", *sizes, "run_dir=typed"]
    run = command(*typed, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    (tmp_path / "call.py").write_text(
        textwrap.dedent(f"""
        import choosy
        choosy.tune(*{sizes!r}, "run_dir=called", selector="longest_pairs", config_dir="menu")
        """)
    )
    assert command("call.py", folder=tmp_path).returncode == 0
    spent = [
        json.loads((tmp_path / name / "summary.json").read_text())["labels"]["spent"] for name in ("typed", "called")
    ]
    assert spent == [8, 8]
