"""Two and three processes choose, buy and learn what one does, each with the whole model or with its share of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny import MIXTURE, ROOT, WEIGHTED, command, labels, on_top, skip_without_vllm, summary, typed
from torch.testing import assert_close

from choosy.main import compose, train

pytestmark = pytest.mark.slow

SAME = ("origin", "source", "responses", "response_ids", "rewards", "parts")
WEIGHT = ("weight", "predicted_gap")
PAIR = ("chosen", "rejected", "source", "round")  # and not the utility, whose last digit may differ
CLOSE = ("logps", "ref_logps")
STEP = ("loss_step", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen")
SHOW_RANK = """
import json, os, pathlib
pathlib.Path(__file__).with_name("rank" + os.environ.get("LOCAL_RANK", "0")).touch()
"""


def rows(run_dir: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of all rounds by what names them."""
    return {
        (path.name, row["split"], row["prompt_id"], row["sampled_in"]): row
        for path in sorted(run_dir.glob("rounds/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def none_as_nan(x: float | None) -> float:
    return math.nan if x is None else x


def exported(run_dir: Path) -> Path:
    """The weights that a run leaves behind."""
    (file,) = [*run_dir.glob("adapter/*.safetensors"), *run_dir.glob("model/*.safetensors")]
    return file


SOLD = """
from choosy.labeling.protocols import Answer
from choosy.labeling.protocols import Terms

BILL = pathlib.Path(__file__).with_name("bill")

class Sold:
    # writes down whatever it is paid for; each answer costs 0.03 to 0.10
    name = "sold"

    def __init__(self, price=None):
        self.terms = Terms(price=price)

    def sell(self, at, value, *texts):
        cost = (3 + sum(map(ord, "".join(texts))) % 8) / 100
        with BILL.open("a") as bill:
            print(json.dumps([cost, *texts]), file=bill)
        return Answer(at, value, cost=cost)

class Scorer(Sold):
    def score(self, items):
        for at, (prompt, response) in enumerate(items):
            yield self.sell(at, vowels(prompt.text, response.text), prompt.text, response.text)

class Comparer(Sold):
    def compare(self, items):
        for at, (prompt, *two) in enumerate(items):
            one, other = (vowels(prompt.text, response.text) for response in two)
            verdict = "tie" if one == other else "first" if one > other else "second"
            yield self.sell(at, verdict, prompt.text, *(response.text for response in two))
"""

# ranks with 2 and 1 pairs of a batch cut it into 2 and 1 parts
UNEVEN = ["batching.batch_size=3", "batching.tokens_per_step=1"]
SPLIT = [*UNEVEN, "model.compute.split_long=true"]  # and each pair into its responses
# round 1 samples one prompt again, and one answer is evaluated: the last rank has none
IDLE = ["selector=optune", "callbacks.optune.count=1", "callbacks.optune.fraction=null", "data.heldout_limit=1"]
EMBED = ["selector=dissimilarity", "callbacks.dissimilarity.embedder=policy", "data.responses=3"]
RECOMPUTE = ["model.compute.gradient_checkpointing=true"]
STOPS = ["sampler.max_new_tokens=12", "sampler.temperature=3"]  # some responses end early
FULL = ["model=smollm2_full", "lr=1e-3"]

LEARNED = ["learned_reward.embedder=policy", "learned_reward.min_labels=4", "data.responses=3"]
OVERSAMPLED = [*LEARNED, "selector=predicted_gap_oversampled", "callbacks.predicted_gap.count=1"]
SHRUNK = ["selector=optune", "callbacks.optune.statistic=shrunk", "callbacks.optune.direction=smallest"]
PREDICTED_GAPS = ["labeler._target_=toy.Longer", "weighting=wdpo", "reward_gap=predicted", "rounds=3"]
PREDICTED_GAPS += [*LEARNED, "selector=random_pairs"]
VLLM = ["sampler=vllm", "sampler.compiled=false"]
SHARED = "sampler.tensor_parallel=2"  # of many processes only: one has no engine to share
CERTAINTY = ["selector=certainty", "data.responses=3"]

WAYS = {
    "ddp, two, certainty": ("ddp", 2, CERTAINTY),
    "ddp, two, one round ahead": ("ddp", 2, [*CERTAINTY, "sampler.ahead=1", "rounds=3", "lr=5e-5"]),
    "ddp, two, predicted gap": (
        "ddp",
        2,
        [*LEARNED, "selector=predicted_gap", "callbacks.predicted_gap.explore=0.5", "seed=1"],
    ),
    "fsdp, two, d-optimal": ("fsdp", 2, [*LEARNED, "selector=d_optimal"]),
    "ddp, two, verdicts weighted by predicted gaps": ("ddp", 2, PREDICTED_GAPS),
    "ddp, two, thompson, inverse gap": ("ddp", 2, [*LEARNED, "selector=thompson", "weighting=inverse_gap"]),
    "ddp, two, oversampled, with a bonus": ("ddp", 2, [*OVERSAMPLED, "callbacks.predicted_gap.bonus=1"]),
    "ddp, three, predicted gain and spread": (
        "ddp",
        3,
        [*LEARNED, "selector=[predicted_gain,spread]", "pairing=sweet_spot"],
    ),
    "ddp, two, weighted rewards on a mixture": ("ddp", 2, [*WEIGHTED, *MIXTURE]),
    "ddp, two, uneven parts": ("ddp", 2, [*SHRUNK, *SPLIT]),
    "ddp, three, idle rank": ("ddp", 3, [*IDLE, "reference=previous_round"]),
    "ddp, two, singles with own samples": ("ddp", 2, [*UNEVEN, "loss=kto", "selector=certainty", "data.responses=4"]),
    "ddp, two, singles with a running shift": ("ddp", 2, [*UNEVEN, "loss=bco", "lr=1e-3"]),
    "fsdp, two, pairs in the step's order": ("fsdp", 2, [*UNEVEN, "loss=aot", "lr=1e-3"]),
    "ddp, three, a head, idle rank": ("ddp", 3, [*IDLE, *UNEVEN, "loss=spo", "lr=1e-3"]),
    "ddp, three, lists": ("ddp", 3, ["loss=pro", "selector=none", "data.responses=4"]),
    "ddp, two, the policy's own likelihood": ("ddp", 2, [*SPLIT, "loss=wpo", "lr=1e-3"]),
    "fsdp, two, weighted tokens": ("fsdp", 2, [*CERTAINTY, *UNEVEN, "loss=ld_dpo"]),
    "fsdp, two, budget, embedded, recomputing": (
        "fsdp",
        2,
        [*EMBED, *RECOMPUTE, "labels.budget=9"],
    ),
    "fsdp, two, in step": ("fsdp", 2, [*IDLE, *STOPS, "model.compute.gather=never", "reference=previous_round"]),
    "ddp, two, vllm": ("ddp", 2, [*VLLM, *IDLE]),
    "fsdp, two, idle rank": ("fsdp", 2, [*IDLE]),
    "fsdp, two, vllm": ("fsdp", 2, [*VLLM, *IDLE]),
    "ddp, four, vllm, two engines": ("ddp", 4, [*VLLM, SHARED]),
    "fsdp, two, vllm, one engine, idle rank": ("fsdp", 2, [*VLLM, *IDLE, SHARED, "sampler.sync=adapter"]),
    "fsdp, two, all weights": ("fsdp", 2, [*FULL, *UNEVEN, "reset_policy=each_round", "selector=optune"]),
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("strategy", "processes", "settings"), WAYS.values(), ids=WAYS)
def test_many_processes_equal_one(strategy, processes, settings, tmp_path, request, prompts_file, monkeypatch):
    if "sampler=vllm" in settings:
        skip_without_vllm()
    policy = request.getfixturevalue("wide_policy_dir" if "sampler=vllm" in settings else "tiny_policy_dir")
    monkeypatch.syspath_prepend(tmp_path)
    of_many = [setting for setting in settings if setting == SHARED]
    own = [setting for setting in settings if setting not in of_many]
    lines = on_top(typed(tmp_path, policy, prompts_file), ["data.limit=7", "data.heldout_limit=3", *own])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "a {n}", "chosen": "good", "rejected": "bad one"}}\n' for n in range(2)))
    lines.append(f"data.heldout_pairs={pairs}")
    one, many = tmp_path / "one", tmp_path / "many"
    train(compose(lines), one)
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(SHOW_RANK)
    launched = [f"trainer={strategy}", "trainer.accelerator=cpu", f"trainer.devices={processes}", *of_many]
    ranks = 1 if settings == CERTAINTY else processes  # of one, Lightning launches the others
    run = command(ROOT / "train.py", *lines, *launched, f"run_dir={many}", folder=tmp_path, ranks=ranks, timeout=900)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / f"rank{processes - 1}").exists(), "there were fewer processes"

    alone, together = rows(one), rows(many)
    assert alone.keys() == together.keys()
    for name, mine in alone.items():
        theirs = together[name]
        assert [mine[column] for column in SAME] == [theirs[column] for column in SAME], name
        for column in CLOSE:
            known = [[none_as_nan(logp) for logp in row[column]] for row in (mine, theirs)]
            assert known[1] == pytest.approx(known[0], rel=1e-4, nan_ok=True), name
        bought = [[[pair[word] for word in PAIR] for pair in row["pairs"]] for row in (mine, theirs)]
        assert bought[0] == bought[1], name
        for column in WEIGHT:
            found = [[none_as_nan(pair[column]) for pair in row["pairs"]] for row in (mine, theirs)]
            assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5, nan_ok=True), name
    keys = [set(labels(folder / "ledger.sqlite")["key"]) for folder in (one, many)]
    assert keys[0] == keys[1] != set()
    ours, theirs = summary(one), summary(many)
    ours_on_pairs, theirs_on_pairs = ours.pop("heldout_pairs"), theirs.pop("heldout_pairs")
    assert theirs.pop("training") == pytest.approx(ours.pop("training"), rel=1e-4)
    assert ours == theirs
    assert ours_on_pairs.keys() == theirs_on_pairs.keys()
    for measure, found in ours_on_pairs.items():
        for when, value in found.items():
            assert (value or 0) == pytest.approx(theirs_on_pairs[measure][when] or 0, rel=1e-3, abs=1e-5)
    if "labels.budget=9" in settings:
        assert summary(many)["labels"]["spent"] in (8, 9)  # a pair costs two
    shown = [pd.read_csv(folder / "metrics.csv").dropna(subset="loss_step") for folder in (one, many)]
    for column in [name for name in (*STEP, "kl") if name in shown[0]]:
        assert shown[1][column].tolist() == pytest.approx(shown[0][column].tolist(), rel=1e-4, abs=1e-5, nan_ok=True), (
            column
        )
    looks = [
        pd.read_csv(folder / "metrics.csv").filter(regex="heldout/(loss|accuracy|margin)") for folder in (one, many)
    ]
    assert looks[1].dropna().to_numpy() == pytest.approx(looks[0].dropna().to_numpy(), rel=1e-4, abs=1e-5)
    ours, theirs = (load_file(exported(folder)) for folder in (one, many))
    if strategy == "ddp":
        assert_close(theirs, ours, rtol=0, atol=1e-6)
        return
    assert ours.keys() == theirs.keys()
    off = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert off.max() < 5e-4  # a step: AdamW makes a whole one even of a gradient that is rounding only
    assert (off > 1e-5).float().mean() < 1e-3


SOLD_BY = {
    "scores, price known": ("Scorer", 0.1, 1.5, ["selector=none"]),
    "scores, price not known": ("Scorer", None, 1.5, ["selector=none"]),
    "compares, price known": ("Comparer", 0.1, 0.8, ["selector=certainty", "data.responses=3", "weighting=uniform"]),
}


@pytest.mark.parametrize(("labeler", "price", "budget", "settings"), SOLD_BY.values(), ids=SOLD_BY)
def test_two_processes_spend_the_money_of_one(
    labeler, price, budget, settings, tmp_path, tiny_policy_dir, prompts_file, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    lines = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if not line.startswith("labeler")]
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(SHOW_RANK + SOLD)
    lines += ["data.limit=7", "data.heldout_limit=3", "labeler=vader", f"labeler._target_=toy.{labeler}"]
    lines += [*settings, f"labels.budget_money={budget}", *([f"+labeler.price={price}"] if price else [])]
    launched = {"one": [], "many": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]}
    bills: dict[str, list[str]] = {}
    for name, processes in launched.items():
        words = [ROOT / "train.py", *lines, *processes, f"run_dir={tmp_path / name}"]
        run = command(*words, folder=tmp_path, ranks=2 if processes else 1)
        assert run.returncode == 0, run.stderr
        bills[name] = (tmp_path / "bill").read_text().splitlines()
        (tmp_path / "bill").unlink()
    assert (tmp_path / "rank1").exists(), "there was one process"

    assert bills["one"] == bills["many"]
    assert len(set(bills["many"])) == len(bills["many"]), "something was bought twice"
    one, many = (labels(tmp_path / name / "ledger.sqlite").sort_values("key") for name in launched)
    for column in ("key", "purpose", "cost"):
        assert one[column].tolist() == many[column].tolist()
    paid = [json.loads(line)[0] for line in bills["many"]]
    assert many["cost"].sum() == pytest.approx(sum(paid))
    ours, theirs = (summary(tmp_path / name) for name in ("one", "many"))
    assert theirs.pop("training") == pytest.approx(ours.pop("training"), rel=1e-4)
    assert ours == theirs
    trained_on = many[many["purpose"] == "train"]["cost"].sum()
    assert trained_on == pytest.approx(summary(tmp_path / "many")["money"]["spent"])
    spent = many["cost"].sum()
    assert spent > budget - 0.3, "the budget was no limit"
    if price:
        assert spent <= budget + 1e-9


def test_a_sharded_run_goes_on_where_it_stood_on_any_number_of_processes(
    tmp_path, tiny_policy_dir, prompts_file, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "reference=previous_round", "selector=random"]
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    one, many = tmp_path / "one", tmp_path / "many"
    train(compose([*lines, "rounds=3"]), one)
    steps = [(["rounds=1", *sharded], []), (["rounds=2", *sharded], ["ckpt_path=last"])]
    for settings, resumed in steps:
        run = command(ROOT / "train.py", *lines, *settings, *resumed, f"run_dir={many}", folder=tmp_path, ranks=2)
        assert run.returncode == 0, run.stderr
    train(compose([*lines, "rounds=3", "ckpt_path=last"]), many)
    assert_close(load_file(exported(one)), load_file(exported(many)), rtol=0, atol=1e-6)
    ours, theirs = (labels(folder / "ledger.sqlite") for folder in (one, many))
    assert set(ours["key"]) == set(theirs["key"])


def test_a_head_that_is_not_sharded_is_refused(tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "loss=spo", "trainer=fsdp", "trainer.accelerator=cpu"]
    words = [ROOT / "train.py", *lines, "trainer.devices=2", f"run_dir={tmp_path / 'run'}"]
    run = command(*words, folder=tmp_path, ranks=2)
    assert run.returncode != 0
    assert "loss=spo trains a head that trainer=fsdp does not shard; choose trainer=ddp." in run.stderr
    assert labels(tmp_path / "run" / "ledger.sqlite").empty


def test_labels_may_take_longer_than_the_strategy_waits(tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", "data.heldout=null"]
    with (tmp_path / "toy.py").open("a") as toy:
        toy.write(
            "\nimport time\n\ndef slow(prompt, response):\n    time.sleep(3)\n    return vowels(prompt, response)\n"
        )
    lines += ["labeler.path=toy.slow", "data.limit=5", f"run_dir={tmp_path / 'run'}"]
    impatient = [
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
        "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, "
        "timeout: {_target_: datetime.timedelta, seconds: 20}}",
    ]
    run = command(ROOT / "train.py", *lines, *impatient, folder=tmp_path, ranks=2)  # ten labels of 3 s
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("gather", "model"), [("auto", []), ("never", FULL)], ids=["gathered, adapters", "in step, all weights"]
)
def test_a_sharded_run_in_half_precision(gather, model, tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), "rounds=1", *model]
    half = ["model.dtype=bfloat16", f"model.compute.gather={gather}", f"run_dir={tmp_path / 'run'}"]
    sharded = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
    run = command(ROOT / "train.py", *lines, *half, *sharded, folder=tmp_path, ranks=2)
    assert run.returncode == 0, run.stderr
    first = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss_step"].dropna().iloc[0]
    assert 0.2 < first < 0.7  # the weighted loss of a policy that is still its reference
    assert exported(tmp_path / "run").stat().st_size > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("trainer", [["trainer=gpu"], ["trainer=fsdp", "trainer.accelerator=gpu", "trainer.devices=1"]])
@pytest.mark.parametrize("model", [[], FULL], ids=["adapters", "all weights"])
def test_a_gpu_plays_rounds_in_half_precision(model, trainer, tmp_path, tiny_policy_dir, prompts_file):
    lines = [*typed(tmp_path, tiny_policy_dir, prompts_file), *model, *trainer]
    words = [ROOT / "train.py", *lines, "model.dtype=bfloat16", f"run_dir={tmp_path / 'run'}"]
    run = command(*words, folder=tmp_path, fresh=True)  # CUDA and forks do not go together
    assert run.returncode == 0, run.stderr
    assert summary(tmp_path / "run")["rounds"] == 2
    assert exported(tmp_path / "run").stat().st_size > 1000
