"""Every entry of the menu plays whole runs, and the switches of a run do what they say."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from small_models import MINILM
from torch import Tensor
from torch.testing import assert_close

from callbacks.random import RandomPairs
from choosy.labeling.protocols import SCORE
from choosy.methods.composed_losses import LossSum
from choosy.methods.degree_aware import DegreeAwareLoss
from choosy.methods.losses import SigmoidLoss
from choosy.methods.pairing import all_unequal, best_and_worst, sweet_spot
from choosy.methods.selection import quota
from choosy.models.policy import Policy
from choosy.models.rows import Group
from choosy.module import WeightedDPO
from choosy.parallel.ranks import OneRank
from choosy.reporting.summary import read_run
from choosy.rounds.evaluate import evaluate_pairs
from choosy.sampling.generate import Generate
from choosy.types import Candidates, Prompt, Response

CONF = Path(__file__).resolve().parents[2] / "conf"
EXACTLY = {"rtol": 0.0, "atol": 0.0}

SUMMARY = {"rounds", "seed", "reward", "win_rate", "ties", "labels", "tokens_generated", "pairs_trained", "seconds"}
SUMMARY |= {"responses", "sync_seconds", "judgements", "money", "heldout_pairs", "training"}
PHASES = {"sample", "score", "select", "label", "train", "evaluate", "total"}
COLUMNS = {
    *("prompt_id", "prompt", "origin", "sampled_in", "prompt_utility", "prompt_ids", "split", "outcome"),
    *("responses", "rewards", "logps", "ref_logps", "finished", "response_ids"),
    *("pairs", "chosen", "rejected", "weight", "utility"),
}


def options(group: str) -> list[str]:
    """The files of one folder of the menu."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


SOON = ["learned_reward.embedder=policy", "learned_reward.min_labels=4"]
LEARNED = {
    **dict.fromkeys(("predicted_gap", "delta_ucb", "d_optimal", "predicted_gain", "spread"), SOON),
    "thompson": [*SOON, "callbacks.predicted_gap.explore=0.3"],
    "predicted_gap_oversampled": [*SOON, "callbacks.predicted_gap.count=2"],
    "spread_oversampled": [*SOON, "callbacks.spread.count=2"],
}


def selector_lines() -> list[Any]:
    """Each selector as it stands in the menu; those that embed also with the policy's own embeddings."""
    lines: list[Any] = []
    for name in options("selector"):
        if name in LEARNED:
            lines.append(pytest.param([f"selector={name}", *LEARNED[name]], id=name))
            continue
        embeds = any(word in name for word in ("dissimilarity", "similarity", "centroid"))
        lines.append(pytest.param([f"selector={name}"], id=name, marks=[MINILM] if embeds else []))
        if name in ("dissimilarity", "centroid"):
            policy = [f"selector={name}", "callbacks.dissimilarity.embedder=policy"]
            lines.append(pytest.param(policy, id=f"{name}-policy"))
    return lines


def scored(table: pd.DataFrame) -> int:
    """How many responses of a table have a reward."""
    return int(sum(pd.notna(reward) for rewards in table["rewards"] for reward in rewards))


def responses(table: pd.DataFrame) -> list[list[str]]:
    return [list(of_prompt) for of_prompt in table["responses"]]


def labels_in(ledger: Path, purpose: str = "train") -> int:
    with closing(sqlite3.connect(ledger)) as db:
        return db.execute("SELECT count(*) FROM labels WHERE purpose = ?", (purpose,)).fetchone()[0]


# -- the menu --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", selector_lines())
def test_a_selector_plays_two_rounds(overrides, play):
    run = play(*overrides, "data.responses=3", "callbacks.win_rate.every=2")
    by_prompt, by_pair = run.data.run.prompt_selector, run.data.run.pair_selector
    prompts, sampled_in_all = 12, 0
    for number in range(2):
        table = run.round(number)
        assert set(table.columns) >= COLUMNS
        fresh = table[table["sampled_in"] == number]
        sampled_in_all += len(fresh)
        assert set(fresh["origin"]) == {"sampled"}
        if by_prompt and number >= by_prompt.warmup_rounds:
            assert len(fresh) == quota(prompts, fraction=by_prompt.fraction, count=by_prompt.count)
            assert fresh["prompt_utility"].notna().all()
        else:
            assert len(fresh) == prompts
        labeled = sum(scored(fresh[fresh["prompt_id"] == name]) > 0 for name in fresh["prompt_id"])
        if by_pair:
            if by_pair.count is None:
                assert scored(fresh) == (3 if by_pair.score_all else 2) * labeled
                assert labeled == math.ceil(by_pair.fraction * len(fresh))
            else:  # ties are replaced
                assert sum(len(pairs) for pairs in fresh["pairs"]) == by_pair.count
        else:
            assert scored(fresh) == 3 * labeled == 3 * len(fresh)
    assert run.data.run.record.counts["prompts_sampled"] == sampled_in_all
    leaves_what_is_promised(run)
    trains_only_what_it_may(run)


def test_a_selector_chooses_which_of_the_policy_s_single_responses_are_scored(play):
    single = ["loss=kto", "data.responses=1", "sampler.temperature=1.0", "sampler.top_p=1.0", "threshold=3"]
    learned = ["learned_reward.embedder=policy", "learned_reward.min_labels=3"]
    chosen = ["selector=predicted_gap", "callbacks.predicted_gap.fraction=null", "callbacks.predicted_gap.count=4"]
    run = play(*single, *chosen, *learned, "data.heldout=null")
    for number in range(2):
        table = run.round(number)
        fresh = table[table["sampled_in"] == number]
        rewards = [of_row[0] for of_row in fresh["rewards"] if pd.notna(of_row[0])]
        assert sum(reward != 3 for reward in rewards) == 4, "one at the threshold is replaced"
        assert len(fresh) > len(rewards)
    assert run.summary["labels"]["spent"] == labels_in(run.run_dir / "ledger.sqlite")


def leaves_what_is_promised(run: Any) -> None:
    summary = run.summary
    assert summary.keys() == SUMMARY
    assert summary["reward"].keys() == {"initial", "final"}
    assert {"spent", "reused", "budget"} <= summary["labels"].keys() <= {"spent", "reused", "budget", "evaluation"}
    assert summary["seconds"].keys() == PHASES
    assert summary["rounds"] == 2
    assert 0 <= summary["win_rate"] <= 1
    assert summary["pairs_trained"] == sum(map(len, run.witness.pairs)) > 0
    assert summary["labels"]["spent"] == labels_in(run.run_dir / "ledger.sqlite")
    assert summary["tokens_generated"] > 0
    left = {path.name for path in run.run_dir.iterdir()}
    assert left >= {"config.yaml", "metrics.csv", "rounds", "checkpoints", "adapter", "report.html", "summary.json"}


def trains_only_what_it_may(run: Any) -> None:
    policy, start = run.policy, run.witness.start
    stayed = [name for name, p in run.weights.items() if torch.equal(p, start[name])]
    assert not stayed
    assert_close(policy.states.reference, start, **EXACTLY)
    assert_close(run.frozen, run.witness.frozen, **EXACTLY)


def test_two_selectors_for_one_slot_say_what_to_type(play):
    with pytest.raises(ValueError, match=r"selector=certainty and selector=random_pairs both choose pairs.*selector="):
        play("selector=certainty", "+callbacks.other._target_=callbacks.random.RandomPairs")


class Seen(NamedTuple):
    """A response of an item at policy = reference: its log-prob, tokens and reward, and whether it is preferred."""

    logp: float
    tokens: int
    reward: float
    good: bool
    text: str

    @property
    def mean(self) -> float:
        return self.logp / self.tokens


def pro(*ranked: Seen) -> float:
    """PRO by its definition, term by term (METHODS: sum over k of L_k, plus 0.05 (n - 1)^2 times the best's NLL)."""
    total = 0.05 * (len(ranked) - 1) ** 2 * -ranked[0].logp
    for k, best in enumerate(ranked[:-1]):
        gaps = [best.reward - below.reward for below in ranked[k + 1 :]]
        others = sum(math.exp(below.mean * gap) for below, gap in zip(ranked[k + 1 :], gaps, strict=True))
        total += math.log(1 + others / math.exp(best.mean * max(gaps)))
    return total


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


KEYS = DegreeAwareLoss(SigmoidLoss())
FIRST_LOSS: dict[str, Callable[..., float]] = {  # of an item whose policy is its reference; beta 0.1
    "sigmoid": lambda one, other: math.log(2),
    "ld_dpo": lambda one, other: math.log(2),
    "bmc": lambda one, other: math.log(2),
    "hinge": lambda one, other: 1.0,
    "ipo": lambda one, other: 25.0,
    "dlma": lambda one, other: math.log(1 + math.exp(0.1 * 0.2 * min(one.reward - other.reward, 40.0))),
    "simpo": lambda one, other: math.log(1 + math.exp(1 - 2 * (one.mean - other.mean))),
    "sft": lambda one, other: -one.mean,
    "rpo": lambda one, other: math.log(2) - one.mean,
    "pro": pro,
    "kto": lambda one: 0.5,
    "bco": lambda one: math.log(2),
    "aot": lambda one, other: math.log(2),
    "aot_unpaired": lambda one, other: math.log(2),
    "robust": lambda one, other: math.log(2),
    "exo": lambda one, other: -math.log(2) - (math.log(0.999) + math.log(0.001)) / 2,
    "nca": lambda one, other: 2 * math.log(2),
    "sppo": lambda one, other: 2 * 500.0**2,
    "apo_zero": lambda one, other: 1.0,
    "apo_down": lambda one, other: 1.0,
    "discopop": lambda one, other: (math.log(2) + 1) / 2,
    "dpop": lambda one, other: math.log(2),
    "ipo_averaged": lambda one, other: 25.0,
    "sigmoid_averaged": lambda one, other: math.log(2),
    "f_dpo": lambda one, other: math.log(2),
    "cpo": lambda one, other: math.log(1 + math.exp(0.1 * (other.logp - one.logp))) - one.mean,
    "orpo": lambda one, other: 0.1 * math.log(1 + math.exp(log_odds(other.mean) - log_odds(one.mean))) - one.mean,
    "wpo": lambda one, other: math.log(2) * math.exp(one.mean + other.mean),
    "selm": lambda one, other: math.log(2),
    "hypo": lambda one, other: math.log(2),
    "spo": lambda one, other: math.log(2) + 0.1 * math.log(4) * (len(KEYS.variants(one.text)) > 1),
    "xpo": lambda one, other: math.log(2) + 5e-6 * (one.logp + other.logp) / 2,
    "ada_dpo": lambda one, other: 0.01,  # at the lowest scale, 0.1 * (log 2 + 0.1 - log 2)
}
MORE = {"pro": ["data.responses=4"], "ld_dpo": ["data.responses=3"], "kto": ["data.responses=3"]}
MORE["wpo"] = ["loss.aligned=false"]  # the other is below


def first_items(run: Any) -> list[list[Seen]]:
    """The items of the first step, with what the pool knows of their responses."""
    known = {}
    for row in run.pool.to_dict("records"):
        chosen = {pair["chosen"] for pair in row["pairs"]}
        columns = zip(row["response_ids"], row["logps"], row["rewards"], row["responses"], strict=True)
        known |= {
            (row["prompt_id"], *ids): Seen(logp, len(ids), reward, n in chosen, text)
            for n, (ids, logp, reward, text) in enumerate(columns)
        }
    return [[known[name, *ids] for ids in responses] for name, *responses in run.witness.pairs[0][:4]]


@pytest.mark.parametrize(
    ("loss", "labeler"), [*((loss, "function") for loss in options("loss")), ("dlma", "contrastive")]
)
def test_a_loss_starts_where_policy_is_reference_and_trains(loss, labeler, play):
    chosen = [] if labeler == "function" else [f"labeler={labeler}"]
    run = play(f"loss={loss}", *chosen, *MORE.get(loss, []), "rounds=1", "data.heldout=null")
    first = first_items(run)
    assert {len(item) for item in first} == {{"pro": 4, "kto": 1, "bco": 1}.get(loss, 2)}
    assert all(item[0].reward > item[-1].reward for item in first if len(item) > 1)
    assert run.losses[0] == pytest.approx(sum(FIRST_LOSS[loss](*item) for item in first) / len(first), rel=1e-5)
    assert all(map(math.isfinite, run.losses))
    trains_only_what_it_may(run)


def test_wpo_divides_a_pair_s_likelihood_by_that_of_the_policy_s_own_samples(play):
    run = play("loss=wpo", "rounds=1", "data.heldout=null")
    prompt_ids = {row["prompt_id"]: list(row["prompt_ids"]) for row in run.pool.to_dict("records")}
    weights = []
    with run.policy.states.as_start(), torch.no_grad():
        for name, *responses in run.witness.pairs[0][:4]:
            means = []
            for ids in responses:
                whole = torch.tensor([[*prompt_ids[name], *ids]])
                logp_TV = run.policy.causal_lm(whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
                aligned_T = logp_TV[range(len(ids)), ids] - (2 * logp_TV).logsumexp(-1)
                means.append(aligned_T.mean().item())
            weights.append(math.exp(sum(means)))
    assert run.losses[0] == pytest.approx(math.log(2) * sum(weights) / len(weights), rel=1e-4)


@pytest.mark.parametrize("loss", ["simpo", "sft", "pro"])
def test_a_loss_without_a_reference_scores_nothing_under_one(loss, play, monkeypatch):
    scored: list[int] = []
    score = Policy.score_reference

    def counted(policy, candidates, *args, **kwargs):
        scored.append(len(candidates))
        return score(policy, candidates, *args, **kwargs)

    monkeypatch.setattr(Policy, "score_reference", counted)
    without = play(f"loss={loss}", "data.heldout=null", name="without")
    assert (scored, without.summary["seconds"]["score"]) == ([], 0.0)
    assert all(math.isnan(ref) for of_prompt in without.pool["ref_logps"] for ref in of_prompt)
    if loss != "simpo":
        return
    play("loss=sigmoid", "data.heldout=null", name="with")
    assert scored == [12, 12]
    scored.clear()
    play(f"loss={loss}", "selector=certainty", "data.heldout=null", name="certainty")
    assert scored == [12, 12], "certainty compares implicit rewards"


def test_log_probs_of_single_tokens_are_kept_only_for_a_loss_that_needs_them(play):
    plain, of_tokens = (play(f"loss={loss}", "rounds=1", name=loss) for loss in ("sigmoid", "ld_dpo"))
    assert plain.pool["ref_token_logps"].isna().all()
    for row in of_tokens.pool.to_dict("records"):
        assert [*map(len, row["ref_token_logps"])] == [*map(len, row["response_ids"])]
        sums = [sum(of_response) for of_response in row["ref_token_logps"]]
        assert sums == pytest.approx(list(row["ref_logps"]), rel=1e-5)


@pytest.mark.parametrize(
    "loss", ["ld_dpo", "bmc", "pro", "kto", "selm", "hypo", "spo"]
)  # of tokens, of lists, of single responses, of own samples
def test_a_prompt_that_is_computed_once_for_its_responses_changes_no_loss(loss, play):
    few = [f"loss={loss}", *MORE.get(loss, []), "rounds=1", "lr=1e-3", "data.heldout=null"]
    shared, apart = (play(*few, f"model.compute.share_prompt={on}", name=on) for on in ("true", "false"))
    assert shared.losses == pytest.approx(apart.losses, rel=1e-4)


def test_a_head_learns_degrees_and_stays_out_of_what_is_left_behind(play, tmp_path):
    """The cross-entropy falls below log 4, which not knowing costs; the adapter for others has no such head."""
    rows = [
        {"prompt": f"Name {n}.", "chosen": f"green hills {n}, old {'ab'[n % 2]} towns. Cold beer!", "rejected": "No."}
        for n in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["data=offline", "labeler=dataset", f"data.train={tmp_path / 'rows.jsonl'}", "data.heldout=null"]
    given += ["rounds=1", "epochs_per_round=16", "lr=5e-3", "loss.share=1.0", "loss.loss.beta=1e-6"]
    run = play("loss=spo", *given, f"data.heldout_pairs={tmp_path / 'rows.jsonl'}")
    assert run.losses[0] == pytest.approx(math.log(2) + math.log(4), rel=1e-5)
    assert run.losses[-1] < math.log(2) + math.log(4) / 2
    kept = torch.load(run.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in kept if "policy" not in name} == {"degree_head.linear.weight", "degree_head.linear.bias"}
    assert kept["degree_head.linear.weight"].abs().max() > 0
    trains_only_what_it_may(run)
    assert all("lora" in name for name in load_file(run.run_dir / "adapter" / "adapter_model.safetensors"))
    parts = play("loss=spo", *given, "batching.tokens_per_step=1", name="parts")
    assert parts.losses[:3] == pytest.approx(run.losses[:3], rel=1e-3)


def test_a_loss_with_a_head_is_no_part_of_another():
    with pytest.raises(ValueError, match=r"DegreeAwareLoss is no part of another loss"):
        WeightedDPO(None, loss=LossSum({"spo": KEYS}, {"spo": 1.0}), optimizer=torch.optim.Adam)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_aot_sorts_the_step_and_not_its_parts(loss, play):
    few = ["rounds=1", "epochs_per_round=2", "lr=1e-2", "data.heldout=null"]
    whole = play(f"loss={loss}", *few, name="whole")
    parts = play(f"loss={loss}", *few, "batching.tokens_per_step=1", name="parts")
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert play("loss=sigmoid", *few, name="plain").losses != pytest.approx(whole.losses, rel=1e-4)


def test_kto_compares_with_the_kl_of_its_own_samples(play):
    """The first step has none yet; later steps log the mean log-ratio of the responses that the policy sampled."""
    run = play("loss=kto", "data.responses=3", "rounds=2", "lr=1e-2", "data.heldout=null")
    steps = pd.read_csv(run.run_dir / "metrics.csv").dropna(subset="loss_step")
    assert steps["kl"].notna().all()
    assert steps["kl"].iloc[0] == pytest.approx(0.0, abs=1e-5)
    assert steps["kl"].abs().max() > 1e-3
    assert {len(responses) for _, *responses in run.witness.pairs[0]} == {1}


def test_single_responses_are_sampled_labeled_and_trained_on(play):
    run = play("loss=kto", "data.responses=1")
    for number in range(2):
        rewards = [reward for (reward,) in run.round(number)["rewards"]]
        assert len(run.witness.pairs[number]) == sum(reward != 0 for reward in rewards) > 0
    assert run.summary["labels"]["spent"] == 24


WEIGHT_OF_GAP: dict[str, Callable[[float], float]] = {
    "uniform": lambda gap: 1.0,
    "wdpo": lambda gap: 1 / (1 + math.exp(-gap)),
    "wdpo_linear": lambda gap: gap,
    "inverse_gap": lambda gap: 1 / (1 + math.exp(gap)),  # also divided by the round's mean
    "wdpo_normalized": lambda gap: 1 / (1 + math.exp(-gap)),  # divided by the round's mean in training only
}


@pytest.mark.parametrize("weighting", [name for name in options("weighting") if name != "column"])
def test_a_weighting_weighs_pairs_by_their_reward_gap(weighting, play):
    run = play(f"weighting={weighting}", "rounds=1", "data.heldout=null")
    for row in run.pool.to_dict("records"):
        for pair in row["pairs"]:
            gap = row["rewards"][pair["chosen"]] - row["rewards"][pair["rejected"]]
            assert gap > 0
            assert pair["weight"] == pytest.approx(WEIGHT_OF_GAP[weighting](gap))
    if weighting == "wdpo_normalized":
        weight = dict(run.pool[run.pool["weight"].notna()][["prompt_id", "weight"]].itertuples(index=False))
        first = [weight[name] for name, *_ in run.witness.pairs[0][:4]]
        mean = sum(weight.values()) / len(weight)
        assert run.losses[0] == pytest.approx(math.log(2) * sum(first) / 4 / mean, rel=1e-6)


@pytest.mark.parametrize("model", options("model"))
def test_a_trained_model_is_left_behind_for_transformers(model, play, tiny_policy_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = play(f"model={model}", f"model.name={tiny_policy_dir}", "rounds=1", "data.heldout=null", "lr=1e-3")
    trains_only_what_it_may(run)
    folder = run.run_dir / ("adapter" if run.policy.lora else "model")
    if run.policy.lora:
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), folder)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(run.pool["prompt_ids"][0].tolist())[None]
    with torch.no_grad():
        assert_close(loaded(ids).logits, run.policy.causal_lm(ids).logits, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"


@pytest.fixture
def labeler_lines(tmp_path: Path, tiny_policy_dir: Path) -> dict[str, list[str]]:
    """The settings that each labeler needs besides its name."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    judge, rows = tmp_path / "judge", tmp_path / "given.jsonl"
    config = LlamaConfig.from_pretrained(tiny_policy_dir, num_labels=1)
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(judge)
    AutoTokenizer.from_pretrained(tiny_policy_dir).save_pretrained(judge)
    given = [{"prompt": f"Say {n}.", "chosen": f"{n}, how great!", "rejected": "No."} for n in range(6)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    offline = ["data=offline", f"data.train={rows}", "data.heldout=null"]
    return {
        "function": ["labeler.path=toy_rewards.toy"],
        "reward_model": [f"labeler.model={judge}"],
        "dataset": offline,
        "vader": offline,
        "relevance": offline,
        "cheerful_answer": offline,
        "noisy": offline,
        "contrastive": [],
        "weighted": ["+labeler@labeler.parts.one=function", "labeler.parts.one.path=toy_rewards.toy"],
    }


@pytest.mark.parametrize(
    "labeler",
    [
        pytest.param(name, marks=[MINILM] if name in ("relevance", "cheerful_answer") else [])
        for name in sorted({*SCORE, "noisy"} - {"thumbs_human", "thumbs_judge"})  # which need a person or a server
    ],
)
def test_a_labeler_scores_what_is_trained_on(labeler, play, labeler_lines):
    run = play(f"labeler={labeler}", *labeler_lines[labeler], "rounds=1")
    each = 2 if labeler == "dataset" else 1  # a given pair is one label
    labels = scored(run.pool) * run.data.run.labels.terms.labels_per_answer
    assert labels == each * run.summary["labels"]["spent"] > 0
    sources = {pair["source"] for pairs in run.pool["pairs"] for pair in pairs}
    assert sources == {run.data.run.labels.labeler.name}


# -- what one seed promises, and what labels cost ---------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(play):
    one, two, other = (
        play("selector=optune_certainty", f"seed={seed}", name=name)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    for number in range(2):
        pd.testing.assert_frame_equal(one.round(number), two.round(number))
        pd.testing.assert_frame_equal(one.round(number, "heldout"), two.round(number, "heldout"))
    assert_close(one.weights, two.weights, **EXACTLY)
    assert one.losses == two.losses
    assert responses(one.round(0)) != responses(other.round(0))
    assert not all(torch.equal(p, other.weights[name]) for name, p in one.weights.items())


def test_certainty_takes_the_log_probs_that_sampling_gave(play, monkeypatch):
    passes: list[int] = []

    def count(method):
        def counted(policy, candidates, *args, **kwargs):
            passes.append(len(candidates))
            return method(policy, candidates, *args, **kwargs)

        return counted

    monkeypatch.setattr(Policy, "score", count(Policy.score))
    monkeypatch.setattr(Policy, "score_reference", count(Policy.score_reference))
    everybody = 12  # evaluation scores fewer
    by_sampling = play("selector=certainty", name="sampled")
    once = passes.count(everybody)
    passes.clear()
    by_scoring = play("selector=certainty", "callbacks.certainty.rescore=fp32", name="scored")
    assert once == 2  # the reference's pass alone, each round
    assert passes.count(everybody) == 4  # and both again in round 1; in round 0 the policy is its reference
    for number in range(2):
        ours, theirs = by_sampling.round(number), by_scoring.round(number)
        assert [[(p["chosen"], p["rejected"]) for p in pairs] for pairs in ours["pairs"]] == [
            [(p["chosen"], p["rejected"]) for p in pairs] for pairs in theirs["pairs"]
        ]
        gaps = [[p["utility"] for pairs in table["pairs"] for p in pairs] for table in (ours, theirs)]
        assert gaps[0] == pytest.approx(gaps[1], abs=1e-4)


@pytest.mark.parametrize(("responses", "budget", "affordable"), [(2, 10, 10), (3, 10, 9)])
def test_a_budget_is_never_exceeded_and_the_run_goes_on(responses, budget, affordable, play, caplog):
    run = play(f"labels.budget={budget}", f"data.responses={responses}")
    assert f"labels.budget={budget} is spent: {12 - affordable // responses} of 12 judgements were not" in caplog.text
    assert run.summary["rounds"] == 2
    assert run.summary["labels"]["budget"] == budget
    assert run.summary["labels"]["spent"] == affordable == labels_in(run.run_dir / "ledger.sqlite")
    bought, still_there = (run.round(number)["pairs"].map(len).sum() for number in range(2))
    assert 0 < bought == still_there == len(run.witness.pairs[1])  # what was paid for is trained on again


def test_labels_of_a_shared_ledger_are_free_for_the_next_run(play, tmp_path):
    ledger = f"labels.ledger={tmp_path}/shared.sqlite"
    one = play(ledger, name="one")
    two = play(ledger, "labels.budget=1", name="two")
    assert one.summary["labels"]["spent"] > 0
    assert two.summary["labels"] == {
        **{"spent": 0, "evaluation": 0, "budget": 1},
        "reused": one.summary["labels"]["spent"],
    }
    assert labels_in(tmp_path / "shared.sqlite") == one.summary["labels"]["spent"]
    pd.testing.assert_frame_equal(one.pool, two.pool)


# -- the switches of a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["each_round", "never"])
def test_reset_policy_starts_each_round_from_the_same_weights(reset, play):
    run = play(f"reset_policy={reset}")
    start, first, second = run.witness.start, *run.witness.before_round
    assert_close(first, start, **EXACTLY)
    assert all(torch.equal(second[name], start[name]) for name in start) == (reset == "each_round")


@pytest.mark.parametrize("reset", ["each_round", "never"])
def test_reset_policy_starts_the_warm_up_again_with_the_optimiser(reset, play):
    class Rates(Callback):
        def __init__(self) -> None:
            self.of_round: list[list[float]] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.of_round.append([])

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.of_round[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    play(f"reset_policy={reset}", "warmup_steps=3", "lr=4e-4", "data.limit=8", callbacks=[rates])
    first, second = rates.of_round
    assert first[:2] == pytest.approx([1e-4, 2e-4])
    assert second[0] == pytest.approx(1e-4 if reset == "each_round" else 1e-4 * (len(first) + 1))


@pytest.mark.parametrize("reset", ["each_round", "never"])
def test_the_learning_rate_falls_to_the_end_and_is_logged(reset, play):
    run = play("schedule=linear", "lr=4e-4", "data.limit=8", f"reset_policy={reset}")
    rates = pd.read_csv(run.run_dir / "metrics.csv").groupby("epoch")["lr"].apply(lambda of: of.dropna().tolist())
    for number, of_round in rates.items():
        steps = np.arange(len(of_round)) / len(of_round)
        share = 1 - steps if reset == "each_round" else 1 - (number + steps) / len(rates)
        assert of_round == pytest.approx(4e-4 * share)


def test_a_warm_up_may_be_a_share_of_the_run(play):
    run = play("warmup_steps=0.5", "lr=4e-4", "data.limit=8")
    rates = pd.read_csv(run.run_dir / "metrics.csv")["lr"].dropna().tolist()
    half = len(rates) // 2
    assert half > 1
    assert rates[:half] == pytest.approx([4e-4 * (n + 1) / half for n in range(half)])
    assert rates[half:] == pytest.approx([4e-4] * (len(rates) - half))


@pytest.mark.parametrize(("reset", "rates"), [("each_round", [4e-4, 4e-4]), ("never", [2e-4, 4e-4])])
def test_every_step_learns_where_a_warm_up_is_a_share_and_a_round_has_one_step(reset, rates, play):
    run = play("warmup_steps=0.99", "lr=4e-4", "data.limit=8", f"reset_policy={reset}", "batching.batch_size=999")
    logged = pd.read_csv(run.run_dir / "metrics.csv")["lr"].dropna().tolist()
    assert logged == pytest.approx(rates, rel=0.02)


def test_a_warm_up_longer_than_the_run_is_named(play, caplog):
    play("warmup_steps=100", "data.limit=8")
    assert "warmup_steps=100, and this run has about" in caplog.text
    caplog.clear()
    play("warmup_steps=1", "data.limit=8", name="shorter")
    assert "warmup_steps" not in caplog.text


def test_only_what_is_trained_on_is_scored_where_a_selector_reads_no_log_probs(play, monkeypatch):
    typed = ["selector=random_pairs", "callbacks.random_pairs.per_prompt=1", "data.responses=4", "data.heldout=null"]
    few = play(*typed, name="few")
    monkeypatch.setattr(RandomPairs, "needs_reference", True)
    every = play(*typed, name="every")
    for one, other in zip(few.pool.to_dict("records"), every.pool.to_dict("records"), strict=True):
        used = {n for pair in one["pairs"] for n in (pair["chosen"], pair["rejected"])}
        assert list(one["pairs"]) == list(other["pairs"])
        assert [n for n, ref in enumerate(one["ref_logps"]) if not math.isnan(ref)] == sorted(used)
        assert all(map(math.isfinite, other["ref_logps"]))
        assert [one["ref_logps"][n] for n in used] == pytest.approx([other["ref_logps"][n] for n in used], rel=1e-5)
    assert few.pool["pairs"].map(len).sum() == 9
    assert few.losses == pytest.approx(every.losses, rel=1e-4)


@pytest.mark.parametrize("reference", ["previous_round", "initial", "0.6"])
def test_reference_decides_whether_reused_responses_are_scored_again(reference, play):
    full = ["model=smollm2_full"] if reference == "0.6" else []
    run = play(f"reference={reference}", *full, "selector=random", "callbacks.random_prompts.fraction=0.5")
    reused = run.round(1).query("origin == 'reused'").set_index("prompt_id")
    before = run.round(0).set_index("prompt_id").loc[reused.index]
    assert (run.round(1)["origin"] == "sampled").sum() == 6
    assert len(reused) >= 6, "a label outlives a round that samples its prompt again and makes no pair"
    assert responses(reused) == responses(before)
    now, then = (torch.tensor([list(row) for row in table["ref_logps"]]) for table in (reused, before))
    assert torch.equal(now, then) == (reference == "initial")
    start, later = run.witness.start, run.witness.before_round[1]
    share = {"initial": 0.0, "previous_round": 1.0}.get(reference, 0.6)
    mixed = {name: later[name] if share == 1 else p + share * (later[name] - p) for name, p in start.items()}
    assert_close(run.policy.states.reference, mixed, **EXACTLY)


def test_held_out_pairs_are_ranked_beside_the_start_where_the_reference_moves(play):
    policy = play("reference=previous_round", "lr=0.05").policy
    assert policy.states.reference is not policy.states.start
    texts = [("Yes.", "No, never."), ("It rains.", "Snow!")]
    pairs = [
        Candidates(
            Prompt("p", "Why?"),
            tuple(Response(t, policy.tokens.encode_response(t), gold=g) for t, g in zip(of, (1.0, 0.0), strict=True)),
            policy.tokens.encode_prompt(Prompt("p", "Why?")),
        )
        for of in texts
    ]
    at: Any = SimpleNamespace(policy=policy, ranks=OneRank(), loss=SigmoidLoss(beta=1.0))
    with policy.states.as_start():
        start = torch.tensor(policy.score(pairs))
    log_ratios = torch.tensor(policy.score(pairs)) - start
    wanted = (log_ratios[:, 0] - log_ratios[:, 1]).mean().item()
    assert abs(wanted) > 1e-3
    assert evaluate_pairs(at, pairs)["margin"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("train_on", ["round", "pool"])
def test_train_on_decides_whether_older_pairs_are_trained_again(train_on, play):
    run = play(f"train_on={train_on}", "selector=random", "callbacks.random_prompts.fraction=0.5")
    rounds = [pair["round"] for pairs in run.pool["pairs"] for pair in pairs]
    assert set(rounds) == {0, 1}
    assert len(run.witness.pairs[1]) == (rounds.count(1) if train_on == "round" else len(rounds))


def test_keep_decides_whether_an_older_label_stays_beside_a_newer_one(play):
    newest, everything = (play(f"pool.keep={keep}", name=keep) for keep in ("newest", "all"))
    first, second = (everything.round(number).query("sampled_in == @number and chosen.notna()") for number in range(2))
    assert len(everything.witness.pairs[1]) == len(first) + len(second)
    assert len(newest.witness.pairs[1]) == len({*first["prompt_id"], *second["prompt_id"]})
    trained = newest.pool[newest.pool["chosen"].notna()]
    assert trained["prompt_id"].is_unique
    assert set(trained["sampled_in"]) <= {0, 1}
    assert set(second["prompt_id"]) == set(trained.query("sampled_in == 1")["prompt_id"])


@pytest.mark.parametrize("keep", ["newest", "all"])
def test_no_label_is_dropped_when_its_prompt_is_sampled_again_unlabeled(keep, play):
    """Every round samples all prompts again and labels a quarter of them; the others' labels stay in training."""
    run = play("selector=certainty", "callbacks.certainty.fraction=0.25", f"pool.keep={keep}", "rounds=3")
    bought = {number: run.round(number).query("sampled_in == @number and chosen.notna()") for number in range(3)}
    assert all(0 < len(table) < 12 for table in bought.values())
    of = {name: table for table in bought.values() for name in table["prompt_id"]}  # the newest label of each prompt
    wanted = len(of) if keep == "newest" else sum(map(len, bought.values()))
    assert len(run.witness.pairs[2]) == wanted > max(map(len, bought.values()))
    assert {name for name, *_ in run.witness.pairs[2]} == set(of)
    newest = run.pool.groupby("prompt_id")["sampled_in"].max()
    assert newest.tolist() == [2] * 12, "selectors see this round's responses"


def test_epochs_per_round_shows_every_pair_as_often(play):
    run = play("epochs_per_round=2", "rounds=1", "data.heldout=null")
    assert set(Counter(run.witness.pairs[0]).values()) == {2}
    assert run.summary["pairs_trained"] == len(run.witness.pairs[0])


def test_a_continued_adapter_is_its_own_reference(play):
    one = play(name="one")
    two = play(f"model.adapter={one.run_dir}/adapter", "seed=1", name="two")
    assert two.losses[0] == pytest.approx(math.log(2), abs=5e-7)
    assert_close(two.witness.start, one.weights, **EXACTLY)
    assert_close(two.policy.states.reference, one.weights, **EXACTLY)


def test_the_token_budget_changes_the_speed_and_not_the_weights(play):
    one, two = (play(f"batching.tokens_per_step={n}", "rounds=1", name=f"by{n}") for n in (1, 4096))
    assert responses(one.round(0)) == responses(two.round(0))
    assert_close(one.weights, two.weights, rtol=0, atol=1e-5)


def test_items_in_pieces_train_the_same_weights(play):
    """Each pair is longer than a pass, and its responses are computed one after the other."""
    whole = play(name="whole")
    cut = play("batching.tokens_per_step=1", "model.compute.split_long=true", name="cut")
    assert responses(whole.round(0)) == responses(cut.round(0))
    assert cut.losses == pytest.approx(whole.losses, rel=1e-4)
    assert_close(cut.weights, whole.weights, rtol=0, atol=1e-5)


# -- sampling ---------------------------------------------------------------------------------------------------

PROMPTS = ["Tell me about tea.", "Why?", "What is the longest river of the continent, and who lives there?"]


def test_sampling_leaves_every_weight_as_it_was(load_policy):
    policy = load_policy()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    for _ in range(5):
        with policy.for_sampling():
            merged = dict(policy.model.named_parameters())
            assert any(not torch.equal(p, before[name]) for name, p in merged.items())
    assert_close({n: p.detach() for n, p in policy.model.named_parameters()}, before, **EXACTLY)


def test_greedy_sampling_equals_transformers_generate(load_policy, tmp_path, tiny_policy_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = load_policy()
    policy.save(str(tmp_path / "adapter"))
    peer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_dir), tmp_path / "adapter")
    prompts = [policy.tokens.tokenizer(text).input_ids for text in PROMPTS]
    ours = Generate(temperature=0, max_new_tokens=12).sample(policy, prompts, [[0]] * len(prompts))
    for ids, (response,) in zip(prompts, ours, strict=True):
        whole = peer.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0].tolist()
        assert list(response.ids) == whole[len(ids) :]


def test_a_response_depends_on_its_seed_and_not_on_its_neighbours(load_policy):
    policy = load_policy()
    prompts = [policy.tokens.tokenizer(text).input_ids for text in PROMPTS]
    seeds = [[10 * p + n for n in range(3)] for p in range(len(prompts))]
    sampler = Generate(max_new_tokens=16, batch_size=64)
    together = [[r.ids for r in of_prompt] for of_prompt in sampler.sample(policy, prompts, seeds)]
    for ids, of_prompt, theirs in zip(prompts, seeds, together, strict=True):
        assert [sampler.sample(policy, [ids], [[seed]])[0][0].ids for seed in of_prompt] == theirs
    by_prompt = Generate(max_new_tokens=16, batch_size=1).sample(policy, prompts, seeds)
    assert [[r.ids for r in of_prompt] for of_prompt in by_prompt] == together
    assert len({ids for of_prompt in together for ids in of_prompt}) == 9


def test_a_response_ends_with_its_first_end_of_sequence_token(load_policy):
    policy = load_policy()
    eos = policy.tokens.tokenizer.eos_token_id
    ids = policy.tokens.tokenizer(PROMPTS[0]).input_ids
    (responses,) = Generate(max_new_tokens=48).sample(policy, [ids], [list(range(64))])
    assert {r.finished for r in responses} == {True, False}
    for r in responses:
        assert (r.ids[-1] == eos) == r.finished
        assert eos not in r.ids[:-1]
        assert r.finished or len(r.ids) == 48
        assert "<|end|>" not in r.text


def test_round_files_tell_what_they_are_about(play):
    run = play("rounds=1")
    about = json.loads(pq.read_schema(run.run_dir / "rounds" / "round_000.parquet").metadata[b"choosy"])
    assert about["labels"] == {k: v for k, v in run.summary["labels"].items() if k != "budget"}
    assert set(run.round(0, "heldout")["outcome"]) <= {0.0, 0.5, 1.0}


def test_a_spent_budget_samples_no_more(play, capsys):
    run = play("labels.budget=10", "data.limit=5")
    assert "labels.budget=10 is spent; training continues with its pairs" in capsys.readouterr().err
    assert set(run.round(0)["origin"]) == {"sampled"}
    assert set(run.round(1)["origin"]) == {"reused"}
    assert run.summary["tokens_generated"] <= 5 * 2 * 8


def test_a_rest_of_the_budget_that_pays_no_prompt_samples_no_more(play, capsys):
    run = play("labels.budget=10", "data.responses=4", "data.limit=5")
    assert run.summary["labels"]["spent"] == 8
    assert "labels.budget=10 is spent; training continues with its pairs" in capsys.readouterr().err
    assert set(run.round(1)["origin"]) == {"reused"}


def test_a_run_that_trains_on_each_rounds_pairs_ends_as_it_should_when_its_budget_is_spent(play, capsys):
    run = play("labels.budget=10", "data.limit=5", "train_on=round", "rounds=5")
    assert "labels.budget=10 is spent; no round trains any more" in capsys.readouterr().err
    assert run.summary["pairs_trained"] > 0
    assert (run.run_dir / "summary.json").exists()


def test_the_factors_of_an_adapter_are_not_mixed_into_a_reference(play):
    with pytest.raises(ValueError, match=r"reference=0\.6 mixes weights, .*type model=smollm2_full .*previous_round"):
        play("reference=0.6")


def test_certainty_is_refused_where_it_would_draw_lots(play):
    with pytest.raises(ValueError, match=r"reference=previous_round makes the policy its own reference"):
        play("selector=certainty", "reference=previous_round")


def test_optune_can_rank_by_all_rewards_that_a_prompt_ever_had(play):
    """Each of a prompt's earlier rounds adds the rewards of its two responses."""
    run = play("selector=optune", "callbacks.optune.fraction=0.5", "callbacks.optune.statistic=shrunk", "rounds=3")
    newest = run.pool.drop_duplicates("prompt_id", keep="last").set_index("prompt_id")
    times = dict.fromkeys(newest.index, 0)
    for number in range(3):
        for name in run.round(number).query("sampled_in == @number")["prompt_id"]:
            times[name] += 1
    assert sorted(times.values())[-1] > 1
    assert {name: earlier["count"] for name, earlier in newest["earlier_rewards"].items()} == {
        name: 2 * (n - 1) for name, n in times.items()
    }


def test_responses_that_are_cut_are_counted_and_warned_of(play, capsys):
    """The tiny policy hardly ever ends: with eight tokens nearly all of its responses are cut."""
    run = play("rounds=1", "labels.missing_eos_penalty=100.0")
    table = run.round(0)
    cut = [not ends for row in table["finished"] for ends in row]
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    assert metrics["responses/cut_share"].dropna().tolist() == [pytest.approx(sum(cut) / len(cut))]
    assert (
        "of the responses were cut at sampler.max_new_tokens=8 before they ended: raise it" in capsys.readouterr().err
    )
    rewards = [reward for row in table["rewards"] for reward in row]
    assert all((reward < 0) == is_cut for reward, is_cut in zip(rewards, cut, strict=True))


def test_evaluation_has_settings_of_its_own_and_its_kl_is_from_the_start(play):
    """Greedy answers are the same text under one policy, and their log-ratio is no KL; at temperature 1 it is one."""
    greedy = play("evaluation.sampler.temperature=0", "evaluation.sampler.max_new_tokens=3", "rounds=1", name="greedy")
    assert max(len(ids) for row in greedy.round(0, "heldout")["response_ids"] for ids in row) == 3
    assert max(len(ids) for row in greedy.round(0)["response_ids"] for ids in row) > 3
    metrics = pd.read_csv(greedy.run_dir / "metrics.csv")
    assert "heldout/log_ratio" in metrics
    assert "heldout/kl" not in metrics
    moved = play("reference=previous_round", "rounds=3", "lr=0.01", "data.heldout_limit=12", name="moved")
    metrics = pd.read_csv(moved.run_dir / "metrics.csv")
    kl, error = (metrics[f"heldout/{name}"].dropna().tolist() for name in ("kl", "kl_error"))
    assert len(kl) == len(error) == 3
    assert kl[2] > 2 * error[2] > 0, "from the start policy, whatever the reference is"
    low, high = (metrics[f"heldout/win_rate_{end}"].dropna().tolist() for end in ("low", "high"))
    assert all(0 <= one < two <= 1 for one, two in zip(low, high, strict=True))


def test_prompts_can_be_streamed(play):
    """Twelve prompts, five a round: the third round takes the last two and begins the same order again."""
    run = play("data.prompts_per_round=5", "rounds=4", "data.heldout=null", "pool.keep=all")
    seen = [run.data.prompts_of(number) for number in range(4)]
    assert [len(prompts) for prompts in seen] == [5] * 4
    order = [p.id for prompts in seen for p in prompts]
    assert sorted(order[:12]) == [f"p{n:02d}" for n in range(12)]
    assert order[12:] == order[:8]
    assert order[:12] != sorted(order[:12])
    for number, prompts in enumerate(seen):
        assert set(run.round(number).query("sampled_in == @number")["prompt_id"]) == {p.id for p in prompts}


# -- a learned reward ------------------------------------------------------------------------------------------

GAP = ["selector=predicted_gap", *SOON, "data.responses=4", "rounds=3"]


def pairs_of(run: Any) -> list[Any]:
    """The labeled pairs after each round, by prompt."""
    return [
        [
            (row.prompt_id, row.sampled_in, [(p["chosen"], p["rejected"]) for p in row.pairs])
            for row in table.itertuples()
        ]
        for table in map(run.round, range(3))
    ]


def test_labels_that_evaluate_never_enter_the_learned_reward(play, prompts_file):
    """The held-out prompts are the training prompts here, and their answers are judged by the same labeler."""
    with_evaluation = play(*GAP, "data.heldout_limit=12", name="evaluated")
    without = play(*GAP, "data.heldout=null", name="alone")
    assert labels_in(with_evaluation.run_dir / "ledger.sqlite", "evaluate") > 0
    assert pairs_of(with_evaluation) == pairs_of(without)
    trained = {
        (row.prompt_id, text) for n in range(2) for row in without.round(n).itertuples() for text in row.responses
    }
    assert with_evaluation.data.run.learned_reward._rows.keys() <= trained


def test_the_learned_reward_says_how_well_it_predicted(play):
    run = play(*GAP)
    known = run.data.run.learned_reward.knowledge[run.data.run.pool.round]
    assert known["labels"] == 24  # of two rounds: six pairs each, two scores a pair
    assert 0 <= known["accuracy"] <= 1
    assert -1 <= known["correlation"] <= 1
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    assert metrics["learned_reward/accuracy"].dropna().iloc[-1] == pytest.approx(known["accuracy"])


def test_a_learned_reward_of_verdicts(play):
    run = play(*GAP, "labeler._target_=toy_rewards.Longer")
    known = run.data.run.learned_reward.knowledge[run.data.run.pool.round]
    assert known["labels"] >= 4
    assert "correlation" not in known


def test_the_sweet_spot_is_rejected_where_all_responses_are_scored(play, tmp_path, monkeypatch):
    (tmp_path / "uneven.py").write_text(
        "class Uneven:\n    name = 'uneven'\n    def __init__(self, **given): pass\n    def score(self, items):\n"
        "        return [{0: -10.0, 1: -4.0}.get(sum(map(ord, r.text)) % 12, 1.0) for _, r in items]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["selector=none", "data.responses=16", "rounds=1", "data.heldout=null", "labeler._target_=uneven.Uneven"]
    run = play(*lines, "pairing=sweet_spot")
    rows = [row for row in run.round(0).itertuples() if len(row.pairs)]
    made = [[(pair["chosen"], pair["rejected"]) for pair in row.pairs] for row in rows]
    assert made == [sweet_spot(list(row.rewards)) for row in rows]
    assert made != [best_and_worst(list(row.rewards)) for row in rows]


def test_all_pairs_of_scored_responses_are_trained_on(play):
    run = play("selector=random", "data.responses=3", "rounds=1", "data.heldout=null", "pairing=all")
    rows = [row for row in run.round(0).itertuples() if scored(run.round(0).loc[[row.Index]]) == 3]
    made = [[(pair["chosen"], pair["rejected"]) for pair in row.pairs] for row in rows]
    assert made == [all_unequal(list(row.rewards)) for row in rows]
    assert run.data.run.record.counts["pairs_trained"] == sum(map(len, made)) > len(made)


@pytest.mark.parametrize("reader", ["weighting=wdpo", "loss=dlma"])
def test_predicted_gaps_serve_a_labeler_that_only_compares(reader, play):
    lines = ["labeler._target_=toy_rewards.Longer", reader, *SOON, "rounds=3", "data.heldout=null", "pool.keep=all"]
    with pytest.raises(ValueError, match="reward_gap=predicted"):
        play(*lines, name="refused")
    run = play(*lines, "reward_gap=predicted")
    pairs = [pair for row in run.round(2).itertuples() for pair in row.pairs]
    by_round = [[(pair["predicted_gap"], pair["weight"]) for pair in pairs if pair["round"] == n] for n in range(3)]
    assert set(by_round[0]) == {(0.0, 1.0)}
    gaps, weights = (torch.tensor(column) for column in zip(*by_round[1], *by_round[2], strict=True))
    assert len(set(gaps.tolist())) > 1
    assert_close(weights, gaps.sigmoid() if reader == "weighting=wdpo" else torch.ones_like(gaps))


def test_scoring_all_responses_needs_a_labeler_that_scores(play):
    with pytest.raises(ValueError, match=r"longer only compares: type selector=predicted_gap.*labeler="):
        play("selector=spread", "labeler._target_=toy_rewards.Longer")


def test_oversampling_without_a_number_of_pairs_says_what_to_type(play):
    lines = ["callbacks.random_prompts.oversample=2", "callbacks.random_prompts.fraction=null"]
    with pytest.raises(ValueError, match=r"callbacks\.predicted_gap\.count=64"):
        play("selector=random", *lines)
    with pytest.raises(Exception, match="set fraction and count of this selector to null"):
        play("selector=random", lines[0])


@pytest.mark.parametrize(
    "selectors",
    ["selector=[random,predicted_gap]", "selector=[optune,spread]", "selector=[predicted_gain,predicted_gap]"],
)
def test_oversampling_samples_no_other_prompt_in_any_round(play, selectors):
    first, second = selectors.removeprefix("selector=[").removesuffix("]").split(",")
    first = {"random": "random_prompts"}.get(first, first)
    lines = [
        f"callbacks.{first}.oversample=2",
        f"callbacks.{first}.fraction=null",
        f"callbacks.{first}.warmup_rounds=0",
    ]
    lines += [
        f"callbacks.{second}.count=2",
        f"callbacks.{second}.fraction=null",
        *SOON,
        "rounds=3",
        "data.heldout=null",
    ]
    run = play(selectors, "data.responses=3", *lines)
    assert [sum(row.sampled_in == n for row in run.round(n).itertuples()) for n in range(3)] == [4, 4, 4]


def test_arms_of_one_seed_begin_from_the_same_responses(play):
    """Whatever chooses, to the last digit: only so is a comparison of selectors one of their choices."""
    arms = ("selector=random_pairs", "selector=predicted_gap", "selector=certainty", "selector=few_prompts")
    few = ["rounds=1", "data.responses=3", *SOON]
    runs = [play(arm, *few, name=arm.partition("=")[2]) for arm in arms]
    texts = [{row.prompt_id: list(row.responses) for row in run.round(0).itertuples()} for run in runs]
    for found in texts[1:]:
        assert found
        assert found.items() <= texts[0].items()
    starts = [run.summary["reward"]["initial"] for run in runs]
    assert starts[0] is not None
    assert len(set(starts)) == 1


def test_a_response_in_many_pairs_is_computed_once(load_policy):
    """All pairs of four responses give the values and the gradient that they give one by one, with fewer tokens."""
    policy = load_policy()
    responses = [[5, 6, 7], [8, 9], [10], [11, 12]]
    pairs = [Group([3, 4], [responses[i], responses[j]]) for i in range(4) for j in range(i + 1, 4)]
    given: list[int] = []
    policy.causal_lm.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    def gradient(*parts: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
        logp_T = torch.cat([policy.token_logps(part) for part in parts])
        logp_T.square().sum().backward()
        grads = [p.grad.clone() for _, p in policy.trainable()]
        policy.zero_grad()
        return logp_T.detach(), grads

    policy.token_logps(pairs)
    given.clear()
    together, apart = gradient(pairs), gradient(*([pair] for pair in pairs))
    assert given[0] == 2 + (2 + 1 + 0 + 1)
    assert sum(given[1:]) == 6 * 2 + 3 * (2 + 1 + 0 + 1)
    assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_pairing_is_all_for_a_loss_on_pairs_and_best_against_worst_for_others(play):
    few = ["selector=none", "data.responses=3", "rounds=1", "data.heldout=null", "pairing=auto"]
    pairs = play(*few, name="pairs").pool.pairs
    assert max(map(len, pairs)) == 3
    lists = play(*few, "loss=pro", name="lists").pool.pairs
    assert set(map(len, lists)) <= {0, 1}


def test_the_full_cost_of_a_labeler_that_compares_is_that_of_all_pairs(play):
    labeler = ["labeler=mine", "labeler._target_=toy_rewards.Longer"]
    run = play(*labeler, "selector=random_pairs", "data.responses=3", "rounds=1")
    assert read_run(run.run_dir).latest["full_labels"] == 12 * 3


@MINILM
def test_the_full_cost_of_a_sum_of_rewards_counts_each_part(play):
    run = play("labeler=cheerful_answer", "data.responses=3", "rounds=1", "data.heldout=null")
    assert read_run(run.run_dir).latest["full_labels"] == 12 * 3 * 2
