"""Runs with the labelers that learn, and with the one that is the policy itself."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

TOY = ["labeler.members.two.path=toy_rewards.toy"]
MEMBERS = ["+labeler@labeler.members.one=vader", "+labeler@labeler.members.two=function"]


def rows(run_dir: Path, where: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(run_dir / "ledger.sqlite")) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f"SELECT * FROM labels WHERE {where} ORDER BY rowid")]


def test_a_crowd_with_an_expert(play, caplog):
    expert = ["labeler@labeler.expert=function", "labeler.expert.path=toy_rewards.toy"]
    with caplog.at_level(logging.INFO, logger="choosy"):
        run = play("labeler=crowd", *MEMBERS, *TOY, *expert, "labeler.audit=0.5")
    answers = rows(run.run_dir, "labeler = 'crowd:one+two'")
    assert {tuple(json.loads(row["raw"])["votes"]) for row in answers} == {("one", "two")}
    assert 0 < sum(row["annotator"] == "expert" for row in answers) < len(answers)
    # of each pair: two scores of VADER, two of the toy; the expert is the same toy, and its scores are in the ledger
    assert run.summary["labels"]["spent"] == sum(row["judgements"] for row in answers if row["purpose"] == "train") > 0
    assert "crowd:one+two: two +" in caplog.text
    assert run.round(1)["chosen"].notna().any()


def test_several_rewards_with_weights(play, tmp_path):
    parts = [
        *("labeler=weighted", "+labeler@labeler.parts.cheerful=vader", "+labeler@labeler.parts.toy=function"),
        *("labeler.parts.toy.path=toy_rewards.toy", f"labels.ledger={tmp_path}/ledger.sqlite"),
    ]
    run = play(*parts, "+labeler.weights.toy=0.5", name="half")
    pool = run.round(1, "heldout")
    for split in (run.round(1), pool):
        for rewards, parts_of in zip(split["rewards"], split["parts"], strict=True):
            assert [d["cheerful"] + 0.5 * d["toy"] for d in map(dict, parts_of)] == pytest.approx([*rewards])
    metrics = pd.read_csv(run.run_dir / "metrics.csv")
    assert {"parts/cheerful", "heldout/parts/cheerful"} < {*metrics}
    last = {name: metrics[name].dropna().iloc[-1] for name in ("parts/toy", "heldout/parts/toy")}
    fresh = run.round(1).query("origin == 'sampled'")["parts"]
    toy = [dict(part)["toy"] for of_prompt in fresh for part in of_prompt]
    assert last["parts/toy"] == pytest.approx(sum(toy) / len(toy))
    assert last["heldout/parts/toy"] == pytest.approx(sum(dict(p[0])["toy"] for p in pool["parts"]) / len(pool))

    # from the same start, so that the first round's responses are the same
    again = play(*parts, "labeler.weights={toy:2,cheerful:0}", name="other")
    sums = rows(tmp_path, f"labeler LIKE 'weighted%' AND run = '{again.data.run.labels.run}' AND purpose = 'train'")
    assert len(sums) > 24
    assert [row["judgements"] for row in sums[:24]] == [0] * 24, "of the first round nothing is bought again"


def test_the_policy_judges_itself(play):
    run = play("labeler=contrastive", "weighting=wdpo", name="start")
    rewards = {row["score"] for row in rows(run.run_dir, "labeler = 'contrastive:start'")}
    assert len(rewards) > 20
    assert run.summary["reward"]["final"] is not None
    again = play("labeler=contrastive", "weighting=wdpo", name="again")
    assert again.summary["reward"] == run.summary["reward"]
    current = play("labeler=contrastive", "labeler.weights=current", "rounds=2", name="current")
    assert len({row["fingerprint"] for row in rows(current.run_dir, "purpose = 'train'")}) == 2, "a judge a round"


def test_a_predictor_saves_labels(play, tiny_policy_dir, caplog):
    with caplog.at_level(logging.INFO, logger="choosy"):
        run = play(
            *("labeler=predictor", "labeler@labeler.paid=function"),
            *("labeler.paid.path=toy_rewards.toy", f"labeler.model.encoder={tiny_policy_dir}"),
            *("labeler.min_labels=6", "labeler.max_error=0.95", "labeler.audit=0.3"),
            *("labeler.model.epochs=1", "labeler.model.max_length=64", "rounds=3"),
        )
    saved = run.data.run.labels.labeler.savings
    answers = rows(run.run_dir, "labeler LIKE 'predictor:%'")
    assert saved.answered == sum(row["annotator"] == "predictor" for row in answers) > 0
    assert f"{saved.answered} labels saved" in caplog.text
    labels = run.summary["labels"]
    assert labels["spent"] + labels["evaluation"] == len(rows(run.run_dir, "labeler LIKE 'function:%'"))


def test_a_crowd_without_members_says_what_to_type(play):
    with pytest.raises(Exception, match=r"two members or more, and labeler\.members names 0; type for instance"):
        play("labeler=crowd")


def test_only_verdicts_cannot_be_weighed_by_their_gap(play):
    with pytest.raises(Exception, match=r"labeler crowd:one\+two gives none: it only compares.*weighting=uniform"):
        play("labeler=crowd", *MEMBERS, *TOY, "weighting=wdpo")
