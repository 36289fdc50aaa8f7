"""Test the aggregation of votes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choosy.methods.aggregation import (
    WorkerRecord,
    likelier_verdict,
    probability_first,
    update_from_expert,
    update_from_peers,
)
from choosy.types import MIRRORED

VERDICTS = st.sampled_from(["first", "second", "tie", "invalid"])
VOTES = st.dictionaries(st.sampled_from("abcdef"), VERDICTS)
RECORDS = st.dictionaries(
    st.sampled_from("abcdef"), st.builds(WorkerRecord, right=st.floats(0, 1e4), wrong=st.floats(0, 1e4))
)


def test_values_by_hand() -> None:
    """a was right 4 of 5 times: log(6/2) = log 3; b is new: log 2; c was wrong 8 of 8 times: log(2/9).

    a says first, b second, c second: log 3 - log 2 - log(2/9) = log(27/4), so 27/31.
    """
    records = {"a": WorkerRecord(4, 1), "c": WorkerRecord(0, 8)}
    votes = {"a": "first", "b": "second", "c": "second"}
    assert probability_first(votes, records) == pytest.approx(27 / 31)
    assert likelier_verdict(27 / 31) == "first"
    after = update_from_expert(records, votes, "second")
    assert after == {"a": WorkerRecord(4, 2), "b": WorkerRecord(1, 0), "c": WorkerRecord(1, 8)}


def test_update_from_peers_leaves_the_own_vote_out() -> None:
    """Three new workers, a and b against c: to a, b and c cancel (1/2); to c, a and b say 4 : 1."""
    after = update_from_peers({}, {"a": "first", "b": "first", "c": "second"})
    assert after["a"] == after["b"] == WorkerRecord(0.5, 0.5)
    assert after["c"].right == pytest.approx(1 / 5)
    assert after["c"].wrong == pytest.approx(4 / 5)


def test_memory_forgets_old_updates() -> None:
    records: dict[str, WorkerRecord] = {"a": WorkerRecord(100, 0)}
    for _ in range(60):
        records = update_from_expert(records, {"a": "first"}, "second", memory=10)
    assert records["a"].right < 0.2
    assert records["a"].wrong == pytest.approx(10, abs=0.1), "never more than it remembers"
    assert update_from_expert({"a": WorkerRecord(100, 0)}, {}, "first", memory=10) == {"a": WorkerRecord(100, 0)}, (
        "who does not vote keeps"
    )


def test_new_workers_are_a_majority_vote() -> None:
    assert likelier_verdict(probability_first({"a": "first", "b": "first", "c": "second"}, {})) == "first"
    assert likelier_verdict(probability_first({"a": "first", "b": "second"}, {})) == "tie"
    assert likelier_verdict(probability_first({}, {})) == "tie"


@settings(deadline=None)
@given(VOTES, RECORDS)
def test_mirrored_votes_give_the_mirrored_verdict(votes, records) -> None:
    turned = {worker: MIRRORED[vote] for worker, vote in votes.items()}
    first, second = probability_first(votes, records), probability_first(turned, records)
    assert first + second == pytest.approx(1)
    assert (
        MIRRORED[likelier_verdict(first)] == likelier_verdict(second) or min(abs(first - 0.5), abs(second - 0.5)) < 1e-8
    )


@settings(deadline=None)
@given(VOTES, RECORDS)
def test_the_order_of_workers_does_not_matter(votes, records) -> None:
    assert probability_first(dict(reversed(votes.items())), records) == probability_first(votes, records)


@settings(deadline=None)
@given(VOTES, RECORDS, st.sampled_from(["first", "second"]))
def test_abstaining_changes_no_record(votes, records, truth) -> None:
    for after in (update_from_expert(records, votes, truth), update_from_peers(records, votes)):
        for worker, vote in votes.items():
            if vote in ("tie", "invalid"):
                assert after.get(worker) == records.get(worker)


@settings(deadline=None)
@given(VOTES, RECORDS, st.sampled_from("abcdef"))
def test_a_worker_cannot_confirm_itself(votes, records, worker) -> None:
    """A worker's feedback from peers is the same whatever the worker says: truthful reports are the best reports."""
    said = {vote: update_from_peers(records, {**votes, worker: vote})[worker] for vote in ("first", "second")}
    old = records.get(worker, WorkerRecord())
    gains = {vote: record.right - old.right for vote, record in said.items()}
    assert gains["first"] + gains["second"] == pytest.approx(1, abs=1e-6)
    likelier = likelier_verdict(
        probability_first({w: v for w, v in votes.items() if w != worker}, records), tolerance=1e-6
    )
    if likelier != "tie":
        assert said[likelier].weight >= said[MIRRORED[likelier]].weight


@settings(deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_right_answer_raises_the_weight_and_a_wrong_one_lowers_it(right, wrong) -> None:
    before = WorkerRecord(right, wrong).weight
    assert update_from_expert({"a": WorkerRecord(right, wrong)}, {"a": "first"}, "first")["a"].weight > before
    assert update_from_expert({"a": WorkerRecord(right, wrong)}, {"a": "first"}, "second")["a"].weight < before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_regret_stays_below_its_bound(seed: int, share: float) -> None:
    """Five workers from expert to liar judge 400 pairs; regret counts errors beyond those of the best rule."""
    draw = random.Random(seed)
    ability = {"a": 0.9, "b": 0.75, "c": 0.6, "d": 0.5, "e": 0.2}
    known = {w: math.log(p / (1 - p)) for w, p in ability.items()}
    records: dict[str, WorkerRecord] = {}
    regret = 0
    for _ in range(400):
        truth = draw.choice(["first", "second"])
        votes = {w: truth if draw.random() < p else MIRRORED[truth] for w, p in ability.items()}
        best = math.fsum(known[w] * (1 if vote == "first" else -1) for w, vote in votes.items())
        regret += (likelier_verdict(probability_first(votes, records)) != truth) - (
            ("first" if best > 0 else "second") != truth
        )
        if draw.random() < share:
            records = update_from_expert(records, votes, truth)
    assert regret <= 40, "far below the bound"
    assert regret <= 2 * math.sqrt(5 * 400 * math.log(401) / share)
    assert records["e"].weight < 0 < records["b"].weight < records["a"].weight
