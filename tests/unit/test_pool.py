"""The pool: what goes to disk comes back, a round replaces what it sampled, a crash leaves a whole file."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import put

from choosy.data import pool as pool_module
from choosy.data.pool import Pool, round_file, with_responses
from choosy.data.pool_rows import from_row, to_row
from choosy.data.table_files import damage, read_about, write_table
from choosy.types import Candidates, Pair, Prompt, Response


def candidates(
    name: str, round: int = 0, *, rewards: Sequence[float | None] = (None, None), paired: bool = True
) -> Candidates:
    """A prompt with one response a reward, and a pair of the first two unless given."""
    responses = [
        Response(f"{name} says {n}", (n, 7), True, -1.5 * n, -2.0 * n, reward) for n, reward in enumerate(rewards)
    ]
    pairs = (Pair(0, 1, weight=0.5, utility=0.25, source="vader", round=round),) if paired else ()
    return Candidates(Prompt(name, f"Ask {name}."), tuple(responses), (1, 2, 3), round, pairs=pairs)


def contents(pool: Pool) -> list[tuple[str, int, str]]:
    """What the table holds: prompt, the round that sampled it, origin."""
    return [(row["prompt_id"], row["sampled_in"], row["origin"]) for row in pool.table.to_pylist()]


ODD = [
    candidates("plain"),
    candidates("unpaired", paired=False),
    candidates("scored", rewards=[0.1, -1e300, None]),
    Candidates(Prompt("no responses", ""), ()),
    Candidates(
        Prompt("everything", "Zwölf Boxkämpfer 🥊\n\0"),
        (
            Response("", (), False, math.nan, -3.5, None, 4.0),
            Response("yes", (5, 6, 2), True, -0.1, math.nan, 0.1 + 0.2, None),
            Response("no", (9,), True, -1.0, -1.0, -1.0, -4.0, (-1.0,), parts=(("short", -2.0), ("right", 1.0))),
            Response("twice", (7, 8, 2), True, -1.0, -1.0, -1.0, -4.0, (-1.0, -2.0), mask=(True, False, True)),
        ),
        (1,),
        round=3,
        utility=1 / 3,
        pairs=(
            Pair(1, 0, weight=2.5, utility=math.nan, source="vader", round=3),
            Pair(2, 0, weight=0.0, utility=0.7, source="a judge", round=4),
        ),
        weight=0.75,
    ),
]


# -- rows and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ODD, ids=lambda c: c.prompt.id)
def test_a_row_gives_back_its_candidates(c: Candidates) -> None:
    (back,) = put(Pool(), [c], round=c.round).candidates()
    assert repr(back) == repr(c)  # nan is not equal to itself, but reads the same
    assert repr(from_row(to_row(c, origin="sampled"))) == repr(c)


def test_the_pool_comes_back_from_its_file(tmp_path: Path) -> None:
    pool = put(Pool(), ODD, round=3)
    about = {"round": 3, "labels": {"spent": 7}, "seconds": {"sample": 0.5}}
    path = pool.save(tmp_path / "rounds", about)
    assert path == round_file(tmp_path / "rounds", 3) == tmp_path / "rounds" / "round_003.parquet"
    assert list(path.parent.iterdir()) == [path], "nothing unfinished is left"
    loaded, known = Pool.load(tmp_path / "rounds", 3)
    assert loaded.table.equals(pool.table.replace_schema_metadata(loaded.table.schema.metadata))
    assert repr(loaded.candidates()) == repr(pool.candidates())
    assert (loaded.round, known, read_about(path)) == (3, about, about)


def test_unknown_numbers_are_null_on_disk_and_nan_in_memory(tmp_path: Path) -> None:
    unknown = Candidates(Prompt("p", "?"), (Response("a"), Response("b")), pairs=(Pair(0, 1),))
    pool = put(Pool(), [unknown], round=0)
    (row,) = pq.read_table(pool.save(tmp_path, {})).to_pylist()
    assert (row["prompt_utility"], row["utility"], row["pairs"][0]["utility"]) == (None, None, None)
    assert row["logps"] == row["ref_logps"] == row["rewards"] == row["gold"] == [None, None]
    (back,) = Pool.load(tmp_path, 0)[0].candidates()
    assert math.isnan(back.utility)
    assert math.isnan(back.pairs[0].utility)
    assert all(math.isnan(r.logp) and math.isnan(r.logp_ref) and r.reward is None for r in back.responses)


def test_people_can_read_the_first_pair_in_the_table() -> None:
    (row,) = put(Pool(), [ODD[-1]], round=3).table.to_pylist()
    assert (row["chosen"], row["rejected"], row["weight"], row["utility"]) == ("yes", "", 2.5, None)
    (row,) = put(Pool(), [candidates("unpaired", paired=False)], round=0).table.to_pylist()
    assert (row["chosen"], row["rejected"], row["weight"]) == (None, None, None)


def test_heldout_rows_are_written_and_never_trained_on(tmp_path: Path) -> None:
    heldout = to_row(candidates("held out"), origin="heldout", split="heldout", outcome=0.5)
    path = put(Pool(), [candidates("a")], round=0).save(tmp_path, {}, [heldout])
    assert [(r["prompt_id"], r["outcome"]) for r in pq.read_table(path).to_pylist()] == [
        ("a", None),
        ("held out", 0.5),
    ]
    loaded, _ = Pool.load(tmp_path, 0)
    assert contents(loaded) == [("a", 0, "sampled")]


def test_a_file_of_an_earlier_version_has_nulls_in_newer_columns(tmp_path: Path) -> None:
    pool = put(Pool(), [candidates("old")], round=0)
    rows = pool.table.drop_columns(["masks"]).to_pylist()
    for row in rows:
        for pair in row["pairs"]:
            del pair["predicted_gap"]
    write_table(pa.Table.from_pylist(rows), round_file(tmp_path, 0), {"round": 0})
    table = Pool.load(tmp_path, 0)[0].table
    assert table.schema == pool.table.schema
    assert table.to_pylist() == pool.table.to_pylist()


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(Pool(), [candidates("old")], round=0).save(tmp_path, {"labels": 1})
    before = path.read_bytes()

    def broken(table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1 and then the disk was full")
        raise OSError("No space left on device")

    monkeypatch.setattr(pool_module.pq, "write_table", broken)
    with pytest.raises(OSError, match="No space left"):
        put(Pool(), [candidates("new")], round=0).save(tmp_path, {"labels": 2})
    assert path.read_bytes() == before
    loaded, about = Pool.load(tmp_path, 0)
    assert (contents(loaded), about) == ([("old", 0, "sampled")], {"labels": 1})


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_file_that_cannot_be_read_is_named_with_the_last_good_one(tmp_path: Path, damage: str) -> None:
    for number in (0, 1, 2):
        path = put(Pool(round=number), [candidates("a", number)], round=number).save(tmp_path, {})
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(
        ValueError,
        match=r"pool file .*round_002\.parquet cannot be read .*last good one is round_001\.parquet",
    ):
        Pool.load(tmp_path, 2)


@pytest.mark.slow
def test_any_byte_that_changes_is_noticed(tmp_path: Path) -> None:
    heldout = to_row(candidates("held out"), origin="heldout", split="heldout", outcome=0.5)
    path = put(Pool(), ODD, round=0).save(tmp_path, {"round": 0, "labels": {"spent": 7}}, [heldout])
    whole = path.read_bytes()
    draw = random.Random(0)
    unnoticed = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        if damage(path) is None:
            unnoticed.append(place)
    assert not unnoticed, f"of {len(whole)} bytes"
    path.write_bytes(whole)
    assert damage(path) is None


def test_a_changed_byte_is_named_with_the_last_good_round(tmp_path: Path) -> None:
    for number in (0, 1):
        path = put(Pool(), [candidates("a", number)], round=number).save(tmp_path, {})
    flipped = bytearray(path.read_bytes())
    flipped[-9] ^= 1  # in the footer, which no page's checksum covers
    path.write_bytes(flipped)
    message = r"round_001\.parquet cannot be read \(its bytes are not .*last good one is round_000\.parquet"
    with pytest.raises(ValueError, match=message):
        Pool.load(tmp_path, 1)


def test_a_file_without_a_checksum_counts_as_damaged_or_as_one_of_an_earlier_version(tmp_path: Path) -> None:
    path = put(Pool(), ODD, round=0).save(tmp_path, {"round": 0})
    pq.write_table(pq.read_table(path).replace_schema_metadata({"choosy": "{}"}), path)
    with pytest.raises(ValueError, match=r"an earlier version of Choosy wrote it\. .* free with labels\.ledger=\.\.\."):
        Pool.load(tmp_path, 0)


def test_what_a_response_says_is_not_taken_for_the_checksum(tmp_path: Path) -> None:
    saying = Candidates(Prompt("p", "?"), (Response(f"choosy-checksum sha256:{'a' * 64}"), Response("b")))
    path = put(Pool(), [saying], round=0).save(tmp_path, {})
    assert damage(path) is None


def test_a_missing_file_with_no_other_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"round_000\.parquet cannot be read .*no other round is there"):
        Pool.load(tmp_path, 0)


# -- rounds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["newest", "all"])
def test_the_newest_responses_replace_those_without_a_label(keep: Any) -> None:
    first = put(Pool(), [candidates(name, paired=False) for name in "bac"], round=0, keep=keep)
    second = put(first, [candidates("b", 1, paired=False), candidates("d", 1)], round=1, keep=keep)
    assert contents(first) == [("a", 0, "sampled"), ("b", 0, "sampled"), ("c", 0, "sampled")]
    assert contents(second) == [("a", 0, "reused"), ("b", 1, "sampled"), ("c", 0, "reused"), ("d", 1, "sampled")]
    assert (first.round, second.round, len(second)) == (0, 1, 4)


@pytest.mark.parametrize("keep", ["newest", "all"])
def test_a_label_outlives_a_round_that_samples_its_prompt_and_buys_nothing(keep: Any) -> None:
    """The labeled row is trained on, the unlabeled one is what selectors see, and is replaced by the next one."""
    pool = put(Pool(), [candidates("a", rewards=[1.0, 2.0])], round=0, keep=keep)
    for round in (1, 2):
        pool = put(pool, [candidates("a", round, paired=False, rewards=[5.0, 6.0 + round])], round=round, keep=keep)
        assert contents(pool) == [("a", 0, "reused"), ("a", round, "sampled")]
        assert [place for *place, _ in pool.pair_rows()] == [[0, 0]]
        assert pool.newest(["a", "b"]).to_pylist() == [1, None]
        assert pool.rewards(["a"])[0].tolist() == [[5.0, 6.0 + round]]


@pytest.mark.parametrize(("reward", "labeled"), [(1.0, True), (-1.0, True), (0.0, False), (None, False)])
def test_a_lone_response_is_labeled_by_a_reward_that_is_good_or_bad(reward: float | None, labeled: bool) -> None:
    row = candidates("a", paired=False, rewards=[reward])
    assert row.labeled == labeled
    pool = put(Pool(), [row, candidates("b", paired=False, rewards=[1.0, 2.0])], round=0)
    assert pool.lone_rows() == pool.lone_rows(round=0) == ([(0, 1.0)] if labeled else [])
    assert pool.lone_rows(round=1) == []
    again = put(pool, [candidates("a", 1, paired=False, rewards=[None])], round=1)
    assert [name for name, *_ in contents(again)] == ["a"] * (1 + labeled) + ["b"]


def test_newest_replaces_a_label_by_a_newer_one_and_all_keeps_both() -> None:
    fresh = {"newest": [("a", 2, "sampled")], "all": [("a", 0, "reused"), ("a", 2, "sampled")]}
    for keep, expected in fresh.items():
        pool = put(Pool(), [candidates("a")], round=0, keep=keep)  # type: ignore[arg-type]
        pool = put(pool, [candidates("a", 1, paired=False)], round=1, keep=keep)  # type: ignore[arg-type]
        assert contents(put(pool, [candidates("a", 2)], round=2, keep=keep)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("keep", ["newest", "all"])
def test_a_round_played_again_never_duplicates(keep: Any, paired: bool) -> None:
    pool = put(Pool(), [candidates("a"), candidates("b")], round=0, keep=keep)
    once = put(pool, [candidates("a", 1, paired=paired)], round=1, keep=keep)
    twice = put(once, [candidates("a", 1, paired=paired)], round=1, keep=keep)
    assert contents(twice) == contents(once)


def test_the_table_does_not_depend_on_the_order_of_the_candidates() -> None:
    several = [candidates(name, 1) for name in "dbca"]
    old = put(Pool(), [candidates("c"), candidates("e")], round=0)
    assert put(old, several, round=1).table.equals(put(old, several[::-1], round=1).table)


def test_an_empty_round_keeps_everything() -> None:
    pool = put(Pool(), [candidates("a")], round=0)
    assert contents(put(pool, [], round=1)) == [("a", 0, "reused")]
    assert contents(put(Pool(), [], round=0)) == []


# -- what is asked of it --------------------------------------------------------------------------------


def test_rewards_are_those_of_the_newest_responses() -> None:
    pool = put(Pool(), [candidates("a", rewards=[1.0, 2.0]), candidates("b", rewards=[None, 3.0])], round=0, keep="all")
    pool = put(pool, [candidates("a", 1, rewards=[5.0, 6.0])], round=1, keep="all")
    reward_PN, scored_PN, sampled_P = pool.rewards(["b", "never sampled", "a"])
    assert sampled_P.tolist() == [True, False, True]
    assert scored_PN.tolist() == [[False, True], [False, False], [True, True]]
    assert reward_PN[scored_PN].tolist() == [3.0, 5.0, 6.0]
    assert [len(x) for x in Pool().rewards(["a"])] == [1, 1, 1]


def test_candidates_of_some_rows_come_in_the_order_asked() -> None:
    pool = put(Pool(), [candidates(name) for name in "abc"], round=0)
    assert [c.prompt.id for c in pool.candidates([2, 0, 2])] == ["c", "a", "c"]
    assert pool.candidates([]) == []


def test_pair_rows_of_the_pool_and_of_a_round() -> None:
    two = ODD[-1]  # pairs of rounds 3 and 4
    pool = put(Pool(), [candidates("a", 3), candidates("b", paired=False), two], round=4)
    assert pool.pair_rows() == [(0, 0, 0.5), (2, 0, 2.5), (2, 1, 0.0)]
    assert pool.pair_rows(round=4) == [(2, 1, 0.0)]
    assert pool.pair_rows(round=9) == []


def test_other_log_probs_of_the_reference_for_the_same_rows() -> None:
    pool = put(put(Pool(), [candidates("a"), candidates("b")], round=0), [candidates("b", 1)], round=1)
    logps = [[(-float(row), ()), (math.nan, (-1.0, -2.0))] for row in range(len(pool))]
    rescored = pool.with_reference(logps)
    assert contents(rescored) == contents(pool)
    assert rescored.round == 1
    for row, (before, after) in enumerate(zip(pool.candidates(), rescored.candidates(), strict=True)):
        first, second = after.responses
        assert (first.logp_ref, first.token_logps_ref) == (-float(row), ())
        assert math.isnan(second.logp_ref)
        assert second.token_logps_ref == (-1.0, -2.0)
        known = tuple(replace(r, logp_ref=math.nan, token_logps_ref=()) for r in before.responses)
        again = tuple(replace(r, logp_ref=math.nan, token_logps_ref=()) for r in after.responses)
        assert repr(replace(after, responses=again)) == repr(replace(before, responses=known))


def test_the_parts_of_the_last_round_s_rewards_have_means() -> None:
    def fresh(name: str, round: int, *values: float) -> Candidates:
        return Candidates(
            Prompt(name, name), tuple(Response(str(v), reward=v, parts=(("short", v),)) for v in values), round=round
        )

    pool = put(Pool(), [fresh("a", 0, 1.0, 3.0), fresh("b", 0, 8.0)], round=0)
    assert pool.part_means() == {"short": 4.0}
    assert put(pool, [fresh("b", 1, -1.0, -2.0)], round=1).part_means() == {"short": -1.5}
    assert put(Pool(), [candidates("a")], round=0).part_means() == Pool().part_means() == {}


def test_bought_rewards_join_those_that_are_known() -> None:
    c = with_responses(candidates("a", rewards=[1.0, None, None]), {2: Response("a says 2", reward=-2.0)})
    assert [r.reward for r in c.responses] == [1.0, None, -2.0]


# -- all rewards that a prompt ever had -------------------------------------------------------------------------


def test_moments_cover_all_rewards_that_a_prompt_ever_had(tmp_path: Path) -> None:
    """Rewards 1 and 3, then 8, then 4 and 5 (of which the pool keeps the last round's): mean 4.2, m2 26.8."""
    pool = Pool()
    for round, rewards in enumerate(([1.0, 3.0], [8.0], [4.0, 5.0])):
        fresh = [candidates("a", round, paired=round == 0, rewards=rewards)]
        pool = put(pool, fresh, round=round)
        pool = put(pool, fresh, round=round)  # played again, or labeled again: the same responses count once
        pool.save(tmp_path, {})
        pool, _ = Pool.load(tmp_path, round)
    count_P, mean_P, m2_P = pool.reward_moments(["new", "a"])
    assert (count_P.tolist(), mean_P.tolist(), m2_P.tolist()) == (
        [0, 5],
        [0, pytest.approx(4.2)],
        [0, pytest.approx(26.8)],
    )


def test_moments_leave_out_responses_without_a_reward() -> None:
    pool = put(Pool(), [candidates("a", rewards=[None, 2.0])], round=0)
    assert [column.tolist() for column in pool.reward_moments(["a"])] == [[1], [2], [0]]


def test_it_knows_how_long_the_newest_responses_to_a_prompt_are() -> None:
    pool = put(Pool(), [candidates("a"), candidates("b", rewards=[None], paired=False)], round=0)
    pool = put(pool, [candidates("a", round=1, rewards=[None] * 3, paired=False)], round=1)
    assert pool.response_tokens(["b", "never", "a"]).tolist() == pytest.approx([2, math.nan, 6], nan_ok=True)
    assert math.isnan(*Pool().response_tokens(["a"]))
