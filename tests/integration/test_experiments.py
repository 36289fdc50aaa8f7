"""The papers' recipes of conf/experiment, each from its own line; only sizes are typed besides."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from faulty_judge import Asked, FaultyJudge

from choosy.main import compose, train
from choosy.models.instructions import instructed
from choosy.types import seed_of

LABELERS = '''
class Undecided:
    """A labeler that only compares, calls a third of the pairs a tie and a seventh invalid."""

    name = "undecided"

    def compare(self, items):
        return [verdict(one.text, other.text) for _, one, other in items]


def verdict(one, other):
    a, b = (sum(map(ord, text)) for text in (one, other))
    if (a + b) % 7 == 0:
        return "invalid"
    return "tie" if (a + b) % 3 == 0 else "first" if a % 11 > b % 11 else "second"


def reward(prompt, response):
    return float(sum(map(ord, response)) % 7)
'''


@pytest.fixture
def recipe(tmp_path: Path, tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Play an experiment on the tiny policy: recipe("optune", "sampler.max_new_tokens=8")."""
    (tmp_path / "labelers.py").write_text(LABELERS)
    monkeypatch.syspath_prepend(tmp_path)
    size = ["trainer=cpu", f"model.name={tiny_policy_dir}", "model.dtype=float32", "callbacks.report.console=false"]
    return lambda name, *sizes: train(compose([f"experiment={name}", *size, *sizes]), tmp_path / name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows into a file: write("prompts", rows)."""

    def written(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def table(run: Any, number: int) -> pd.DataFrame:
    """The pool after a round."""
    rows = pd.read_parquet(Path(run.default_root_dir) / "rounds" / f"round_{number:03d}.parquet")
    return rows[rows["split"] == "train"]


def pairs(run: Any, number: int) -> int:
    """How many labeled pairs the pool has after a round."""
    return int(table(run, number)["pairs"].map(len).sum())


def test_optune_samples_the_lowest_rewards_again_and_weighs_by_the_gap(recipe, prompts_file):
    few = ["data.heldout_limit=2", "sampler.max_new_tokens=8", "batching.batch_size=4", "warmup_steps=2"]
    run = recipe("optune", f"data.train={prompts_file}", "labeler=function", "labeler.path=labelers.reward", *few)
    assert run.datamodule.run.rounds == 3
    assert isinstance(run.lightning_module.optimizers(use_pl_optimizer=False), torch.optim.RMSprop)
    assert len(list(run.lightning_module.policy.trainable())) == len(
        list(run.lightning_module.policy.model.parameters())
    ), "no LoRA"
    for number in (1, 2):
        before, now = table(run, number - 1), table(run, number)
        mean = (
            before.drop_duplicates("prompt_id", keep="last").set_index("prompt_id")["rewards"].map(lambda r: r.mean())
        )
        again = set(now[now["sampled_in"] == number]["prompt_id"])
        assert len(again) == math.ceil(0.3 * 12)
        assert mean[sorted(again)].max() <= mean[sorted(set(mean.index) - again)].min()
    rows = table(run, 2)
    weights = {round(pair["weight"], 6) for of_prompt in rows["pairs"] for pair in of_prompt}
    gaps = {abs(a - b) for a, b in rows["rewards"] if a != b}
    assert weights <= {round(1 / (1 + math.exp(-gap)), 6) for gap in gaps}


def test_apl_gets_as_many_labeled_pairs_as_it_wants(recipe, write):
    """A third of the verdicts are ties and some invalid; 16 pairs more are wanted and labeled each round."""
    prompts = write("prompts", [{"id": f"p{n:03d}", "prompt": f"Film {n} was"} for n in range(200)])
    labeler = ["labeler=vader", "labeler._target_=labelers.Undecided", "labels.max_invalid=null"]
    sizes = ["rounds=5", "callbacks.certainty.count=16", "data.prompts_per_round=50", "data.heldout_limit=4"]
    run = recipe("apl", f"data.train={prompts}", *labeler, *sizes, "sampler.max_new_tokens=8", "epochs_per_round=1")
    assert [pairs(run, number) for number in range(5)] == [16, 32, 48, 64, 80]
    metrics = pd.read_csv(Path(run.default_root_dir) / "metrics.csv")
    assert metrics["labels/ties"].sum() > 0
    assert metrics["labels/invalid"].sum() > 0
    assert [len(set(table(run, n).query("sampled_in == @n")["prompt_id"])) for n in range(5)] == [50] * 5
    assert isinstance(run.lightning_module.optimizers(use_pl_optimizer=False), torch.optim.Adam)
    assert run.lightning_module.loss.beta == 0.2
    assert "heldout/log_ratio" in metrics, "held-out answers are sampled at temperature 0.25"


def test_real_labels_the_half_that_its_base_model_finds_most_dissimilar(recipe, write):
    replies = ["Yes.", "No.", "Yes!", "Never in my life would I say so.", "Perhaps, if it rains tomorrow."]
    rows = [
        {"prompt": f"Is {n} odd?", "chosen": replies[n % 5], "rejected": f"{replies[(n * 2 + 1) % 5]} {n}"}
        for n in range(12)
    ]
    train_file, heldout = write("train", rows), write("heldout", rows[:4])
    few = ["batching.batch_size=3", "warmup_steps=2"]
    run = recipe("real", f"data.train={train_file}", f"data.heldout_pairs={heldout}", *few)
    labeled = table(run, 0)
    assert pairs(run, 0) == 6
    assert run.datamodule.run.labels.counts.spent == 6, "a given pair is one label"
    utilities = [pair["utility"] for of_prompt in labeled["pairs"] for pair in of_prompt]
    assert len(utilities) == 6
    everything = run.datamodule.run.pair_selector.pair_utilities(
        list(run.datamodule.given.values()), run.datamodule.run.at(0)
    )
    assert sorted(utilities, reverse=True) == pytest.approx(sorted((u for (u,) in everything), reverse=True)[:6])
    optimizer = run.lightning_module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    metrics = pd.read_csv(Path(run.default_root_dir) / "metrics.csv")
    assert len(metrics["heldout/accuracy"].dropna()) == 1


def test_lora_litee_answers_with_a_blend_and_reports_its_accuracy(recipe, prompts_file, tiny_policy_dir):
    few = [f"data.train={prompts_file}", "data.heldout=null", *sizes(), "sampler.max_new_tokens=8", "rounds=2"]
    paid = ["labeler@labeler.paid=vader", "labeler.paid._target_=labelers.Undecided", "labels.max_invalid=null"]
    small = [f"labeler.model.encoder=[{tiny_policy_dir},{tiny_policy_dir}]", "labeler.model.max_length=32"]
    run = recipe("lora_litee", *few, *paid, *small, "labeler.min_labels=6", "labeler.max_error=0.95")
    predictor = run.datamodule.run.labels.labeler
    assert predictor.model.shares == [0.7, 0.3]
    metrics = pd.read_csv(Path(run.default_root_dir) / "metrics.csv")
    reported = metrics[["labeler/heldout_accuracy", "labeler/heldout", "labeler/preferences"]].dropna().iloc[-1]
    assert dict(zip(("heldout_accuracy", "heldout", "preferences"), reported, strict=True)) == {
        name: predictor.knowledge[name] for name in ("heldout_accuracy", "heldout", "preferences")
    }
    assert 0 <= reported.iloc[0] <= 1
    assert reported.iloc[1] > 0
    assert predictor.savings.answered > 0
    assert trained_finitely(run)


def edits(asked: Asked) -> str:
    """An editor that puts the first word of the good response before the worse one; it edits nothing about 3."""
    code = re.findall(r"lines that hold only (\w+)", asked.user)[-1]
    text = f"{asked.first.split()[0]} {asked.second}"
    return "I would rather not." if "Is 3 odd" in asked.texts["prompt"] else f"Here:\n{code}\n{text}\n{code}"


def test_bmc_trains_on_edits_that_are_paid_once(recipe, write):
    rows = [{"prompt": f"Is {n} odd?", "chosen": f"{n} is.", "rejected": f"Never {n}, never."} for n in range(6)]
    file = write("train", rows)
    with FaultyJudge(edits) as server:
        few = [f"data.train={file}", *sizes(), "rounds=1", f"labels.ledger={file.parent / 'labels.sqlite'}"]
        few += ["editor.model=toy", f"editor.base_url={server.url}", "editor.endpoint.prices.prompt=2.0"]
        run = recipe("bmc", *few)
        assert len(server.asked) == 6
        labels = run.datamodule.run.labels
        assert labels.counts.spent == 6, "an edit is no label"
        assert labels.counts.money == pytest.approx(6 * 100 * 2.0 / 1e6)
        tokens = run.lightning_module.policy.tokens
        prompts = {p.id: p for p in run.datamodule.prompts}
        for row in table(run, 0).itertuples():
            n = int(prompts[row.prompt_id].text.split()[1])
            wanted = "3 is." if n == 3 else f"{n} Never {n}, never."
            assert (row.chosen, row.rejected) == (wanted, f"Never {n}, never.")
            place = row.pairs[0]["chosen"]
            ids = tokens.encode_response(wanted, prompts[row.prompt_id])
            assert tuple(row.response_ids[place]) == ids
            assert len(row.ref_token_logps[place]) == len(ids)
            assert sum(row.ref_token_logps[place]) == pytest.approx(row.ref_logps[place], rel=1e-4)
        assert settings(run) == ("TokenWeightedLoss", 0.01, 5e-7)
        assert trained_finitely(run)
        again = recipe("bmc", *few, "overwrite=true")
        assert len(server.asked) == 6, "the ledger has the edits"
        assert again.datamodule.run.labels.counts.money == 0
        assert table(again, 0)["chosen"].tolist() == table(run, 0)["chosen"].tolist()


def test_rdo_weighs_a_pair_by_what_the_other_verdicts_say_of_it(recipe, write):
    rows = [{"prompt": f"Is {n} odd?", "chosen": f"{n} is.", "rejected": f"Never {n}, never."} for n in range(8)]
    rows[0] |= {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    few = [f"data.train={write('train', rows)}", *sizes(), "rounds=1", "batching.batch_size=8"]
    run = recipe("rdo", *few, "learned_reward.min_labels=8", "learned_reward.embedder=policy")
    pairs = {row.prompt_id: row.pairs[0] for row in table(run, 0).itertuples()}
    gaps = {prompt: pairs[prompt.id]["predicted_gap"] for prompt in run.datamodule.prompts}
    turned = [gap for prompt, gap in gaps.items() if prompt.text == "Is 0 odd?"]
    assert max(turned) < 0 < sum(gap > 0 for gap in gaps.values()) - 6, "the others speak against one verdict"
    assert all(pair["weight"] == max(0.0, pair["predicted_gap"]) for pair in pairs.values())
    steps = pd.read_csv(Path(run.default_root_dir) / "metrics.csv").dropna(subset="loss_step")
    assert steps["loss_step"].tolist() == pytest.approx([math.log(2)], rel=1e-3), "weights have mean 1"
    assert trained_finitely(run, steps=1)


def test_dlma_samples_under_both_instructions_and_trains_on_the_plain_prompt(recipe, prompts_file):
    few = [f"data.train={prompts_file}", "data.limit=4", "data.heldout=null", *sizes()]
    run = recipe("dlma", *few, "rounds=1")
    policy, labels, sampler = run.lightning_module.policy, run.datamodule.run.labels, run.datamodule.run.sampler
    labeler, plain = labels.labeler, {p.id: p for p in run.datamodule.prompts}
    losses = []
    for row in table(run, 0).itertuples():
        prompt = plain[row.prompt_id]
        assert tuple(row.prompt_ids) == policy.tokens.encode_prompt(prompt)
        asked = [instructed(prompt, text, place="system") for text in (labeler.good, labeler.bad)]
        ids = [policy.tokens.encode_prompt(one) for one in asked]
        with policy.states.as_start():
            sampled = sampler.sample(policy, ids, [[seed_of(0, "train", 0, prompt.id, n)] for n in (0, 1)])
        assert [(r.text,) for (r,) in sampled] == [(text,) for text in row.responses]
        assert np.isnan(row.logps.astype(float)).all(), "they are those of other prompts"
        for pair in row.pairs:
            gap = row.rewards[pair["chosen"]] - row.rewards[pair["rejected"]]
            assert gap > 0
            losses.append(math.log1p(math.exp(0.1 * 0.2 * min(gap, 40.0))))  # the policy is its reference
    steps = pd.read_csv(Path(run.default_root_dir) / "metrics.csv").dropna(subset="loss_step")
    assert steps["loss_step"].tolist() == pytest.approx([sum(losses) / len(losses)], rel=1e-4)
    assert trained_finitely(run, steps=1)


# -- losses: each recipe as it is, on two prompts or four given pairs ------------------------------------------------

SMALL = {"data.heldout_limit": 2, "sampler.max_new_tokens": 6, "batching.batch_size": 4, "rounds": 2}


def sizes() -> list[str]:
    """What is typed besides a recipe so that it takes seconds."""
    return ["=".join(map(str, size)) for size in SMALL.items()]


OFFLINE = ("ld_dpo", "orpo", "cpo", "kto", "bco", "ada_dpo", "hypo", "spo")
ONLINE = ("wpo", "simpo", "rpo", "tr_dpo", "selm", "xpo", "pro")


def settings(run: Any) -> tuple[str, float, float]:
    """The class of the loss, its beta and the learning rate."""
    module = run.lightning_module
    return type(module.loss).__name__, module.loss.beta, module.configured_groups[0]["lr"]


@pytest.mark.parametrize("name", OFFLINE)
def test_a_recipe_of_given_pairs_trains_on_them(name, recipe, write):
    rows = [{"prompt": f"Is {n} odd?", "chosen": f"{n} is.", "rejected": f"Never {n}, never."} for n in range(6)]
    if name == "bco":  # the others take pairs apart, or whole
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": n % 2 == 0} for n, row in enumerate(rows)
        ]
    run = recipe(name, f"data.train={write('train', rows)}", *sizes())
    assert (
        settings(run)
        == {
            "ld_dpo": ("TokenWeightedLoss", 0.1, 5e-7),
            "orpo": ("LossSum", 0.1, 5e-6),
            "cpo": ("LossSum", 0.1, 1e-4),
            "kto": ("KTOLoss", 0.1, 5e-6),
            "bco": ("BCOLoss", 0.01, 5e-7),
            "ada_dpo": ("AdaDPOLoss", 1.0, 5e-5),
            "hypo": ("LossSum", 0.05, 3e-6),
            "spo": ("DegreeAwareLoss", 0.1, 5e-6),
        }[name]
    )
    assert trained_finitely(run)


@pytest.mark.parametrize("name", ONLINE)
def test_a_recipe_of_sampled_responses_trains_on_them(name, recipe, prompts_file):
    few = [f"data.train={prompts_file}", "data.limit=4", *sizes()]
    few += ["labeler=function", "labeler.path=labelers.reward", *(["data.responses=4"] if name == "rpo" else [])]
    run = recipe(name, *few)
    assert (
        settings(run)
        == {
            "wpo": ("LikelihoodWeightedLoss", 0.01, 1e-6),
            "simpo": ("SimPOLoss", 2.5, 1e-6),
            "rpo": ("LossSum", 0.1, 7e-7),
            "tr_dpo": ("SigmoidLoss", 0.05, 1e-6),
            "selm": ("LossSum", 0.01, 5e-7),
            "xpo": ("LossSum", 0.1, 5e-7),
            "pro": ("PROLoss", 1.0, 5e-6),
        }[name]
    )
    assert trained_finitely(run)
    moved = run.lightning_module.policy.states.reference is not run.lightning_module.policy.states.start
    assert moved == (name in ("rpo", "tr_dpo", "selm", "xpo"))


PLAIN_TURNS = (  # a chat template that refuses system turns
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.role + '\\n' + m.content + eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}"
    "{% endif %}"
)


@pytest.mark.parametrize("place", ["system", "user"])
def test_ra_dpo_asks_for_the_score_of_either_response(place, recipe, write, tmp_path, monkeypatch):
    asked = [f"Is {n} odd?" for n in range(4)]
    rows = [
        {"id": f"p{n}", "prompt": question, "chosen": f"{n} is.", "rejected": "Never, never.", "chosen_score": 8.5}
        | {"rejected_score": 2 + n}
        for n, question in enumerate(asked)
    ]
    (tmp_path / "seen.py").write_text(
        "ALL = []\ndef reward(prompt, response):\n    ALL.append(prompt)\n    return len(response)\n"
    )
    (tmp_path / "plain.jinja").write_text(PLAIN_TURNS)
    few = [f"data.train={write('train', rows)}", f"data.heldout_pairs={write('pairs', rows)}"]
    few += [f"data.heldout={write('prompts', [{'prompt': question} for question in asked])}"]
    few += ["labeler@labels.evaluation=function", "labels.evaluation.path=seen.reward"]
    if place == "user":
        few += [f"model.chat_template={tmp_path / 'plain.jinja'}", "data.reader.asked_score.place=user"]
    run = recipe("ra_dpo", *few, *sizes(), "rounds=1", "warmup_steps=0")
    assert trained_finitely(run)
    policy, pool = run.lightning_module.policy, table(run, 0)
    assert sorted(pool["prompt_id"]) == sorted(f"p{n} for {goal}" for n in range(4) for goal in ("8.5", 2 + n))
    for row in pool.to_dict("records"):
        name, goal = row["prompt_id"].split(" for ")
        better, worse = f"{name[1:]} is.", "Never, never."
        assert (row["chosen"], row["rejected"]) == ((better, worse) if goal == "8.5" else (worse, better))
        prompt = policy.tokens.decode(row["prompt_ids"])
        assert prompt.count(f"overall score {goal}, on") == prompt.count(f"Is {name[1:]} odd?") == 1
        assert prompt.startswith(place)
    stored = run.datamodule.run.pool.candidates()
    with policy.states.as_reference():
        again = policy.score(stored)
    assert [r.logp_ref for c in stored for r in c.responses] == pytest.approx([x for of in again for x in of], rel=1e-4)
    evaluated = [*run.datamodule.heldout_prompts, *(c.prompt for c in run.datamodule.labeled_pairs)]
    assert len(evaluated) == 4
    assert all("overall score 10, on" in policy.tokens.decode(policy.tokens.encode_prompt(p)) for p in evaluated)
    seen = sys.modules["seen"].ALL
    assert seen
    assert set(seen) <= set(asked), "who judges is not told of the score"


def test_ra_dpo_names_the_place_that_a_chat_template_has(recipe, write, tmp_path):
    (tmp_path / "plain.jinja").write_text(PLAIN_TURNS)
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "chosen_score": 9, "rejected_score": 2}
    few = [f"data.train={write('train', [row])}", f"model.chat_template={tmp_path / 'plain.jinja'}"]
    with pytest.raises(ValueError, match=r"no place for .* a system turn; type data.reader.asked_score.place=user"):
        recipe("ra_dpo", *few)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_a_recipe_of_single_responses_trains_on_those_that_are_sampled(name, recipe, prompts_file):
    """Those above the round's median reward are good, the others bad."""
    few = ["data=on_policy", f"data.train={prompts_file}", "data.responses=1", "threshold=median", "rounds=1"]
    few += ["labeler=function", "labeler.path=labelers.reward", "data.heldout=null", "sampler.max_new_tokens=6"]
    run = recipe(name, *few, "batching.batch_size=4")
    assert trained_finitely(run)
    rows = table(run, 0)
    rewards = rows["rewards"].map(lambda of_prompt: of_prompt[0])
    assert set(rows["threshold"].fillna(0)) == {rewards.median()}
    items = run.datamodule.run._items(0)
    assert [items[n].good for n in range(len(items))] == [
        r > rewards.median() for r in rewards if r != rewards.median()
    ]


def trained_finitely(run: Any, *, steps: int = 2) -> bool:
    """Whether the run took steps, and each had a loss that is a number and a gradient that is not 0."""
    taken = pd.read_csv(Path(run.default_root_dir) / "metrics.csv").dropna(subset="loss_step")
    return len(taken) >= steps and bool((taken["grad_norm"] > 0).all()) and bool(taken["loss_step"].abs().lt(1e3).all())
