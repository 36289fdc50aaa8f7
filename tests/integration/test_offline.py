"""Given responses: each round chooses which of their pairs get a label, and trains on what the labels say."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from choosy.main import compose, train
from choosy.reporting.summary import read_run

Row = dict[str, Any]
OFFLINE = ["data=offline", "data.heldout=null", "labeler=dataset"]
GLOOMY = [{"prompt": f"Day {n}?", "chosen": "Terrible, awful, sad.", "rejected": "Wonderful!"} for n in range(4)]

HH = [
    {
        "chosen": f"\n\nHuman: What is {n} and 1?\n\nAssistant: It is {n + 1}.",
        "rejected": f"\n\nHuman: What is {n} and 1?\n\nAssistant: Who knows.",
    }
    for n in range(10)
]
TRL = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No.", "weight": 0.5 + n} for n in range(10)]
SCORED = [
    {"prompt": f"Name {n}.", "responses": [{"text": f"{n} {s}", "score": (s * n) % 7 + s / 10} for s in range(3)]}
    for n in range(10)
]


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., str]:
    def write(rows: list[Row], name: str = "rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"data.train={tmp_path / name}"

    return write


def preferred(run: Any) -> dict[str, tuple[str, str]]:
    """Chosen and rejected text of each prompt's first pair."""
    table = run.pool
    return dict(zip(table["prompt"], zip(table["chosen"], table["rejected"], strict=True), strict=True))


def pairs_of(run: Any, number: int) -> list[tuple[str, frozenset[int], int]]:
    """Every labeled pair as a round left it: its prompt, its two positions, the round that labeled it."""
    table = run.round(number)
    return [
        (name, frozenset({pair["chosen"], pair["rejected"]}), pair["round"])
        for name, pairs in zip(table["prompt_id"], table["pairs"], strict=True)
        for pair in pairs
    ]


def texts_of_pairs(run: Any) -> set[tuple[str, str, str]]:
    """Every pair as its prompt, its chosen and its rejected text."""
    return {
        (row["prompt"], row["responses"][pair["chosen"]], row["responses"][pair["rejected"]])
        for row in run.pool.to_dict("records")
        for pair in row["pairs"]
    }


def test_hh_transcripts_train_their_chosen_answer(play, rows_file):
    run = play(*OFFLINE, rows_file(HH), "rounds=1")
    expected = {(f"It is {n + 1}.", "Who knows.") for n in range(10)}
    assert set(preferred(run).values()) == expected
    assert run.summary["tokens_generated"] == 0
    assert run.summary["pairs_trained"] == 10
    ids = run.pool.iloc[0]["response_ids"]
    assert [of_response[-1] for of_response in ids] == [run.policy.tokens.tokenizer.eos_token_id] * 2


def test_given_pairs_are_trained_on_as_they_are_unless_another_labeler_is_typed(rows_file, tiny_policy_dir, tmp_path):
    typed = ["trainer=cpu", f"model.name={tiny_policy_dir}", "model.dtype=float32", "rounds=1", rows_file(GLOOMY)]
    train(compose([*typed, "callbacks.report.console=false", "data=offline"]), tmp_path / "given")
    pool = pd.read_parquet(tmp_path / "given" / "rounds" / "round_000.parquet")
    assert {*pool["chosen"]} == {"Terrible, awful, sad."}
    parts = compose(["data=offline", "labeler=vader", "selector=certainty", "weighting=wdpo", typed[-1]])
    assert parts.labeler._target_.endswith("Vader")
    assert "certainty" in parts.callbacks
    assert parts.weighting._target_.endswith("RewardGap")


@pytest.mark.parametrize(("labeler", "overruled"), [("vader", True), ("dataset", False)])
def test_a_labeler_that_overrules_given_verdicts_says_so(labeler, overruled, play, rows_file, caplog):
    play("data=offline", "data.heldout=null", f"labeler={labeler}", rows_file(GLOOMY), "rounds=1")
    said = "better for 4 of its 4 prompts, and labeler vader-3.3.2 judges them again: the run trains on its labels"
    assert (said in caplog.text) == overruled


def test_the_weight_column_weighs_the_pairs(play, rows_file):
    run = play(*OFFLINE, rows_file(TRL), "rounds=1", "weighting=column")
    assert dict(zip(run.pool["prompt"], run.pool["weight"], strict=True)) == {r["prompt"]: r["weight"] for r in TRL}
    with pytest.raises(ValueError, match="needs a weight column in the data"):
        play(*OFFLINE, rows_file(HH), "weighting=column", name="without")
    card = (run.run_dir / "adapter" / "README.md").read_text()
    assert "labels read from the data" in card
    assert "bought" not in card


def several(n: int, said: str) -> list[Row]:
    words = [f"{n}?", said, "Sure?", f"Yes, {n}."]
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, words, strict=True)]


TURNS = [{"chosen": several(n, f"{n}!"), "rejected": several(n, "No.")[:2]} for n in range(6)]


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "ld_dpo"])
def test_all_turns_of_the_assistant_are_trained_on(loss, play, rows_file, caplog):
    """The reference's log-probs are sums over the assistant's tokens of a plain forward; both paths agree."""
    how = [*OFFLINE, rows_file(TURNS), f"loss={loss}", "rounds=2", "lr=1e-2"]
    run, plain = (play(*how, f"model.compute.share_prompt={on}", name=f"share_{on}") for on in ("true", "false"))
    assert run.summary["pairs_trained"] == 12
    losses = [pd.read_csv(one.run_dir / "metrics.csv")["loss_step"].dropna().tolist() for one in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "left out" not in caplog.text
    for row in run.pool.to_dict("records"):
        ids, masks, prompt = row["response_ids"], row["masks"], list(row["prompt_ids"])
        assert masks[1].tolist() == []
        spoken = run.policy.tokens.tokenizer.decode(ids[0][masks[0].astype(bool)])
        n = row["prompt"].removesuffix("?")
        assert spoken.count(f"{n}!") == spoken.count(f"Yes, {n}.") == 1
        assert "Sure" not in spoken
        if loss == "simpo":
            continue
        with run.policy.states.as_reference(), torch.no_grad():
            logp_LV = run.policy.causal_lm(torch.tensor([[*prompt, *ids[0]]])).logits[0].log_softmax(-1)
        own = [logp_LV[len(prompt) + at - 1, ids[0][at]].item() for at in masks[0].nonzero()[0]]
        assert row["ref_logps"][0] == pytest.approx(sum(own), rel=1e-4)


def test_turns_that_the_template_cannot_tell_apart_are_left_out(play, rows_file, caplog, tmp_path):
    source = "{% for m in messages %}{{ (messages | length | string if m.role == 'user' and loop.first else '') + "
    template = tmp_path / "chat.jinja"
    template.write_text(source + "m.role + ': ' + m.content + '<|end|>' }}{% endfor %}{{ 'assistant: ' }}")
    run = play(*OFFLINE, rows_file([*TURNS, *HH]), "rounds=1", f"model.chat_template={template}")
    assert run.summary["pairs_trained"] == 10
    assert re.search(r"6 of 16 prompts with given answers are left out: \S+rows\.jsonl, line 1: the chat", caplog.text)


UNPAIRED = [{"prompt": f"Say {n}.", "completion": f"{n}!", "label": n % 3 == 0, "weight": 0.5 + n} for n in range(10)]


@pytest.mark.parametrize(("weighting", "rounds"), [("column", 1), ("uniform", 2)])
def test_unpaired_rows_train_good_and_bad_responses(weighting, rounds, play, rows_file):
    single = ["loss=kto", "loss.reference_point=zero", f"weighting={weighting}", f"rounds={rounds}"]
    run = play(*OFFLINE, rows_file(UNPAIRED), *single)
    assert run.summary["labels"]["spent"] == 10
    assert run.summary["pairs_trained"] == 10 * rounds
    known = {row["prompt"]: row for row in run.pool.to_dict("records")}
    for row in UNPAIRED:
        assert known[row["prompt"]]["rewards"].tolist() == [1.0 if row["label"] else -1.0]
        assert known[row["prompt"]]["given_weight"] == (row["weight"] if weighting == "column" else 1.0)
    first = pd.read_csv(run.run_dir / "metrics.csv").iloc[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0


@pytest.mark.parametrize("selector", ["predicted_gap", "spread", "random_pairs"])
def test_a_selector_chooses_half_of_the_single_responses_in_equal_parts(selector, play, rows_file):
    learned = ["learned_reward.embedder=policy", "learned_reward.min_labels=2"]
    half = [f"selector={selector}", f"callbacks.{selector}.fraction=0.5", "loss=kto", "loss.reference_point=zero"]
    run = play(*OFFLINE, rows_file(UNPAIRED), *half, *learned, "train_on=round")
    scored = [sum(pd.notna(of_row[0]) for of_row in run.round(number)["rewards"]) for number in range(2)]
    assert scored == [3, 5]
    assert run.summary["labels"]["spent"] == 5
    assert [len(items) for items in run.witness.pairs] == [3, 2], "each round trains on those that it labels"


def test_pairs_beside_single_responses_are_all_trained_on(play, rows_file):
    singles = [{"prompt": f"Say {n}.", "completion": f"{n}!", "label": n % 2 == 0} for n in range(4)]
    pairs = [{"prompt": f"Ask {n}.", "chosen": f"{n}?", "rejected": "No."} for n in range(3)]
    run = play(*OFFLINE, rows_file([*singles, *pairs]), "loss=kto", "selector=none", "weighting=uniform", "rounds=1")
    assert sum(map(len, run.witness.pairs)) == 4 + 2 * 3
    assert run.data.run.labels.counts.spent == 4 + 3


def test_kto_samples_one_response_beside_given_ones(play, rows_file):
    """Fresh ones in each round, that are neither labeled nor offered to a selector, and whose KL is logged."""
    run = play(*OFFLINE, rows_file(UNPAIRED), "loss=kto", "rounds=2", "lr=1e-2")
    assert run.summary["labels"]["spent"] == 10
    assert run.summary["tokens_generated"] > 0
    own = [[[tuple(ids) for ids in of_row] for of_row in run.round(number)["own_ids"]] for number in range(2)]
    assert {len(of_row) for of_round in own for of_row in of_round} == {1}
    assert own[0] != own[1]
    assert run.pool["own_ref_logps"].map(lambda refs: math.isfinite(refs[0])).all()
    steps = pd.read_csv(run.run_dir / "metrics.csv").dropna(subset="loss_step")
    assert steps["kl"].notna().all()
    assert steps["kl"].iloc[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(steps["kl"].iloc[-1]) > 1e-3


def test_a_term_of_own_samples_is_of_the_one_beside_given_pairs(play, rows_file):
    """At the first step log pi of the sample is its log-prob under the reference: ln 2 and a whole share of that."""
    run = play(*OFFLINE, rows_file(TRL), "loss=xpo", "loss.shares.own=1.0", "rounds=1", "batching.batch_size=4")
    own = {row["prompt_id"]: row["own_ref_logps"][0] for row in run.pool.to_dict("records")}
    first = [own[name] for name, *_ in run.witness.pairs[0][:4]]
    assert run.losses[0] == pytest.approx(math.log(2) + sum(first) / 4, rel=1e-5)


def test_a_pair_selector_does_not_see_the_policy_s_own_samples(play, rows_file):
    run = play(*OFFLINE, rows_file(TRL), "loss=kto", "selector=random_pairs", "callbacks.random_pairs.fraction=1.0")
    assert {len(of_row) for of_row in run.pool["responses"]} == {2}
    assert len(pairs_of(run, run.summary["rounds"] - 1)) == 10


def test_lists_train_all_scored_responses(play, rows_file):
    run = play(*OFFLINE, rows_file(SCORED), "loss=pro", "rounds=1")
    assert {len(responses) for _, *responses in run.witness.pairs[0]} == {3}
    assert run.summary["pairs_trained"] == 10


def test_scored_responses_train_best_against_worst(play, rows_file):
    run = play(*OFFLINE, rows_file(SCORED), "rounds=1")
    for row in SCORED:
        by_score = sorted(row["responses"], key=lambda r: r["score"])
        assert preferred(run)[row["prompt"]] == (by_score[-1]["text"], by_score[0]["text"])
    assert run.summary["labels"]["spent"] == 30


def test_labels_follow_the_scores_and_not_the_positions(play, rows_file):
    swapped = [{**row, "responses": row["responses"][::-1]} for row in SCORED]
    every_pair = ["selector=certainty", "callbacks.certainty.fraction=1.0", "callbacks.certainty.per_prompt=null"]
    one, two = (
        play(*OFFLINE, rows_file(rows, f"{name}.jsonl"), "rounds=1", *every_pair, name=name)
        for name, rows in (("one", SCORED), ("two", swapped))
    )
    assert texts_of_pairs(one) == texts_of_pairs(two)
    assert len(texts_of_pairs(one)) == 30


@pytest.mark.parametrize(("fraction", "rounds"), [(0.5, 4), (0.5, 1), (0.3, 3), (1.0, 2)])
def test_a_fraction_is_of_all_given_pairs_and_spent_in_equal_parts(fraction, rounds, play, rows_file):
    """REAL labels half of the pairs, however many rounds it takes."""
    share = ["selector=random_pairs", f"callbacks.random_pairs.fraction={fraction}", f"rounds={rounds}"]
    run = play(*OFFLINE, rows_file(HH), *share)
    labeled = [len(pairs_of(run, number)) for number in range(rounds)]
    assert labeled == [math.ceil(fraction * 10 * (number + 1) / rounds - 1e-9) for number in range(rounds)]
    assert run.summary["labels"]["spent"] == labeled[-1], "a given pair is one label"


@pytest.mark.parametrize("selector", ["certainty", "dissimilarity"])
def test_each_round_labels_other_pairs_than_those_before(selector, play, rows_file):
    embedder = ["callbacks.dissimilarity.embedder=policy"] if selector == "dissimilarity" else []
    share = [f"selector={selector}", f"callbacks.{selector}.fraction=0.9", f"callbacks.{selector}.per_prompt=2"]
    run = play(*OFFLINE, rows_file(SCORED), *share, *embedder, "rounds=3")
    labeled = [pairs_of(run, number) for number in range(3)]
    assert [len(pairs) for pairs in labeled] == [6, 12, 18], "of two pairs in each of ten prompts"
    assert set(labeled[0]) < set(labeled[1]) < set(labeled[2])
    assert len({(name, pair) for name, pair, _ in labeled[2]}) == 18
    assert max(run.pool["pairs"].map(len)) == 2


def test_a_count_is_of_labeled_pairs_in_each_round(play, rows_file):
    """Rows whose two scores tie make no pair, and others take their place as long as there are any."""
    tied = [{"prompt": f"Tie {n}?", "responses": [{"text": t, "score": 1.0} for t in ("yes", "no")]} for n in range(8)]
    count = ["selector=random_pairs", "callbacks.random_pairs.fraction=null", "callbacks.random_pairs.count=4"]
    run = play(*OFFLINE, rows_file([*SCORED, *tied]), *count, "rounds=3")
    assert [len(pairs_of(run, number)) for number in range(3)] == [4, 8, 10]


def test_the_hybrid_asks_no_prompt_again_that_is_labeled(play, rows_file):
    """Half of twelve prompts a round: the second round asks the other half, though entropy would rank as before."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(12)]
    lines = ["selector=entropy_certainty", "callbacks.entropy.samples=2", "callbacks.certainty.fraction=1.0"]
    run = play(*OFFLINE, rows_file(rows), *lines, "rounds=2")
    assert [len(pairs_of(run, number)) for number in range(2)] == [6, 12]
    assert [sum(run.round(number)["origin"] == "sampled") for number in range(2)] == [6, 6]


def test_a_score_is_bought_once_for_all_pairs_of_a_response(play, rows_file):
    every_pair = [
        "selector=random_pairs",
        "callbacks.random_pairs.fraction=1.0",
        "callbacks.random_pairs.per_prompt=null",
    ]
    run = play(*OFFLINE, rows_file(SCORED), *every_pair, "rounds=3")
    assert len(pairs_of(run, 2)) == 30
    assert run.summary["labels"]["spent"] == 20, "of three responses the first two are a pair"
    with closing(sqlite3.connect(run.run_dir / "ledger.sqlite")) as db:
        assert db.execute("SELECT count(*), count(DISTINCT response_first) FROM labels").fetchone() == (30, 30)


def test_a_round_without_unlabeled_pairs_trains_on_those_it_has(play, rows_file):
    run = play(*OFFLINE, rows_file(TRL), "rounds=2")
    assert [len(pairs) for pairs in run.witness.pairs] == [10, 10]
    assert run.summary["labels"]["spent"] == 10


def test_a_budget_of_given_pairs_counts_pairs(play, rows_file):
    run = play(*OFFLINE, rows_file(TRL), "rounds=1", "labels.budget=6")
    assert run.summary["labels"]["spent"] == run.summary["pairs_trained"] == 6


@pytest.mark.parametrize("name", ["hh_harmless", "alpaca_pool"])
def test_real_preference_data_plays_a_round(name, play, shared_data):
    run = play(
        *OFFLINE,
        *(f"data.train={shared_data / name}.jsonl", "data.limit=30", "rounds=1", "selector=certainty"),
        *(
            "data.reader.max_prompt_tokens=400",
            "data.reader.max_response_tokens=64",
            "callbacks.certainty.fraction=0.5",
        ),
    )
    prompts = len(run.pool)
    assert 5 < prompts <= 30
    labeled = sum(pd.notna(rewards).any() for rewards in run.pool["rewards"])
    assert labeled == math.ceil(0.5 * prompts) >= run.summary["pairs_trained"] > 0  # equal scores make no pair
    for row in run.pool[run.pool["chosen"].notna()].to_dict("records"):
        gold = dict(zip(row["responses"], row["gold"], strict=True))
        assert gold[row["chosen"]] > gold[row["rejected"]]


def test_rows_of_one_prompt_keep_their_own_labels(play, rows_file):
    """A ranking A > B > C written as three pairs: B loses one row and wins another."""
    ranking = [
        {"prompt": "Rank.", "chosen": won, "rejected": lost} for won, lost in (("A", "B"), ("A", "C"), ("B", "C"))
    ]
    run = play(*OFFLINE, rows_file(ranking), "rounds=1")
    assert {(chosen, rejected) for _, chosen, rejected in texts_of_pairs(run)} == {("A", "B"), ("A", "C"), ("B", "C")}


def test_heldout_answers_have_a_judge_of_their_own(play, rows_file):
    run = play("data=offline", "labeler=dataset", rows_file(SCORED), "labeler@labels.evaluation=vader", "rounds=1")
    with closing(sqlite3.connect(run.run_dir / "ledger.sqlite")) as db:
        found = dict(db.execute("SELECT purpose, group_concat(DISTINCT labeler) FROM labels GROUP BY purpose"))
    assert found["train"] == "dataset"
    assert found["evaluate"].startswith("vader-")
    assert 0 <= run.summary["win_rate"] <= 1


# -- held-out pairs ------------------------------------------------------------------------------------------------


def test_heldout_pairs_are_ranked_by_the_implicit_reward(play, rows_file):
    """With labeler=dataset, which cannot judge sampled answers."""
    pairs = rows_file(HH[:5], "heldout.jsonl").replace("data.train", "data.heldout_pairs")
    run = play(*OFFLINE, rows_file(HH), pairs, "data.heldout_limit=null", "rounds=2", "epochs_per_round=4", "lr=0.01")
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    loss, accuracy, margin = (metrics[f"heldout/{name}"].dropna() for name in ("loss", "accuracy", "margin"))
    assert (len(loss), accuracy.iloc[-1]) == (2, 1.0), "the pairs that it was trained on"
    assert loss.iloc[-1] < loss.iloc[0] < math.log(2)
    assert margin.iloc[-1] > margin.iloc[0] > 0
    found = run.summary["heldout_pairs"]
    assert found["accuracy"] == {"initial": 0.5, "final": 1.0}, "the start is its own reference"
    assert found["loss"] == pytest.approx({"initial": math.log(2), "final": loss.iloc[-1]})
    assert run.summary["labels"]["spent"] == 10
    assert run.summary["labels"]["evaluation"] == 0


def test_heldout_responses_that_are_good_or_bad_are_ranked_against_each_other(play, rows_file):
    heldout = rows_file(UNPAIRED, "heldout.jsonl").replace("data.train", "data.heldout_pairs")
    single = ["loss=kto", "loss.reference_point=zero", "weighting=uniform", "selector=none"]
    more = ["data.heldout_limit=null", "lr=0.01", "rounds=2", "epochs_per_round=4"]
    run = play(*OFFLINE, rows_file(UNPAIRED), heldout, *single, *more)
    found = run.summary["heldout_pairs"]
    assert found["accuracy"]["initial"] == 0.5, "the policy is its reference"
    assert found["accuracy"]["final"] > 0.75, "the responses that it was trained on"
    assert found["margin"]["final"] > 0
    assert "of 24 pairs" in read_run(run.run_dir).headline


def test_the_loss_of_heldout_pairs_is_that_of_training(play, rows_file):
    """A batch of all pairs, evaluated after the step, is the loss that the next step starts from."""
    pairs = rows_file(HH, "heldout.jsonl").replace("data.train", "data.heldout_pairs")
    steps = ["data.heldout_limit=null", "rounds=2", "batching.batch_size=10", "lr=0.01"]
    run = play(*OFFLINE, rows_file(HH), pairs, *steps)
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    losses, heldout = metrics["loss_step"].dropna().tolist(), metrics["heldout/loss"].dropna().tolist()
    assert losses[1] == pytest.approx(heldout[0], abs=1e-5)
    rewards = metrics["rewards/margins"].dropna().tolist()
    assert rewards[1] == pytest.approx(metrics["heldout/margin"].dropna().tolist()[0], abs=1e-5)


def test_prompts_whose_scores_tie_are_scored_once(play, rows_file):
    """Half of ten prompts in two rounds, all responses of each scored; of six prompts the scores tie."""
    tied = [
        {"prompt": f"Name {n}.", "responses": [{"text": f"{n} {s}", "score": s * (n % 3 == 0)} for s in range(3)]}
        for n in range(10)
    ]
    learned = ["learned_reward.embedder=policy", "learned_reward.min_labels=4"]
    half = ["selector=spread", "callbacks.spread.fraction=0.5", "callbacks.spread.cold=dissimilarity"]
    run = play(*OFFLINE, rows_file(tied), "rounds=2", *half, *learned)
    judged = [
        {row["prompt"] for row in run.round(n).to_dict("records") if len(row["pairs"]) or len(row["undecided"])}
        for n in range(2)
    ]
    assert [len(names) for names in judged] == [3, 5]
    assert {len(row["undecided"]) for row in run.round(0).to_dict("records")} == {0, 3}, "some tied, some did not"
    assert run.summary["labels"]["spent"] == 15


def test_given_pairs_of_several_files_are_mixed_in_shares(play, rows_file):
    files = [rows_file(rows, name).removeprefix("data.train=") for rows, name in ((TRL, "trl.jsonl"), (HH, "hh.jsonl"))]
    run = play(*OFFLINE, "data.train={" + f"{files[0]}:1,{files[1]}:2" + "}", "rounds=1")
    assert run.pool["source"].value_counts().to_dict() == {"hh.jsonl": 10, "trl.jsonl": 5}
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    assert metrics["sources/hh.jsonl"].dropna().tolist() == metrics["sources/trl.jsonl"].dropna().tolist() == [0.5]
