"""Ranks put a round into one pool that they all map: the same as one process makes in its memory."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_ranks import FakeRanks
from pools import put
from test_pool import candidates

from choosy.data import shared_pool, table_files
from choosy.data.pool import Keep, Pool
from choosy.data.shared_pool import forget_mapped, mapped, put_together, read_pieces, read_round
from choosy.parallel.neighbours import share_of
from choosy.parallel.ranks import OneRank, shard
from choosy.types import Candidates, Response


def some(draw: random.Random, round: int) -> list[Candidates]:
    """Fresh responses to some of twenty prompts, in any order, some of them labeled."""
    names = [f"p{n}é" for n in range(20) if draw.random() < 0.6]
    draw.shuffle(names)
    return [candidates(name, round, paired=draw.random() < 0.5) for name in names]


@pytest.mark.parametrize("keep", ["newest", "all"])
@pytest.mark.parametrize("piece", [1, 3, 4096])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_make_the_pool_of_one_process(
    size: int, piece: int, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pool, "PIECE", piece)
    draw = random.Random(0)
    alone, together = Pool(), [Pool()] * size
    for round in range(4):
        fresh = [] if round == 2 else some(draw, round)
        alone = put(alone, fresh, round=round, keep=keep)

        def play(
            ranks: FakeRanks, pools: list[Pool] = together, fresh: list[Candidates] = fresh, round: int = round
        ) -> Pool:
            mine = shard(fresh, ranks)
            return put_together(pools[ranks.rank], mine, tmp_path, ranks, round=round, keep=keep)

        together = FakeRanks.play(size, play)
        for pool in together:
            assert pool.table.to_pylist() == alone.table.to_pylist()
            assert repr(pool.candidates([5, 0, 3, 5])) == repr(alone.candidates([5, 0, 3, 5]))
        parts = {f"pool_{round:03d}.{rank}of{size}.arrow" for rank in range(size)}
        assert {path.name for path in tmp_path.iterdir()} == parts, "only the newest is kept"
    assert len(alone) > 20 or keep == "newest"


def test_a_pool_is_for_its_owner_alone_and_is_read_when_its_file_is_gone(tmp_path: Path) -> None:
    pool = put_together(Pool(), [candidates("a")], tmp_path, OneRank(), round=0, keep="newest")
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    forget_mapped(tmp_path)
    assert not list(tmp_path.iterdir())
    assert [c.prompt.id for c in pool.candidates([0])] == ["a"]


def test_a_part_is_replaced_when_no_rank_reads_it_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that has moved scores a round's rows again, and their files keep the names."""
    table = put(Pool(), some(random.Random(1), 0), round=0).table
    first, waits, begun = tmp_path / "pool_000.0of2.arrow", threading.Event(), threading.Event()
    forget = shared_pool.forget_mapped

    def forget_late(*given: Any, **named: Any) -> None:
        assert begun.wait(60), "rank 1 writes its next part already"
        forget(*given, **named)

    monkeypatch.setattr(shared_pool, "forget_mapped", forget_late)

    def play(ranks: FakeRanks) -> Pool:
        part = table[share_of(len(table), ranks.rank, ranks.size)]
        mapped([part], tmp_path, ranks, 0)
        number, gather = first.stat().st_ino, ranks.gather
        monkeypatch.setattr(ranks, "gather", lambda mine: (waits.set(), gather(mine))[1])

        def again() -> Iterator[pa.Table]:
            if ranks.rank == 1:
                begun.set()
            assert ranks.rank == 0 or waits.wait(60), "rank 0 has written its part"
            assert first.stat().st_ino == number
            yield part

        pool = mapped(again(), tmp_path, ranks, 0)
        assert first.stat().st_ino != number
        return pool

    for pool in FakeRanks.play(2, play):
        assert pool.table == table


@pytest.mark.parametrize("piece", [2, 4096])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_round_is_mapped_from_its_file(
    size: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pool, "PIECE", piece)
    monkeypatch.setitem(table_files.HOW, "row_group_size", 3)
    pool = put(Pool(), some(random.Random(1), 3), round=3)
    heldout = pool.table.set_column(0, "split", [["heldout"] * len(pool)]).to_pylist()
    pool.save(tmp_path, {"labels": 7}, heldout[:2])
    for read, about in FakeRanks.play(size, lambda ranks: read_round(tmp_path, 3, ranks)):
        assert read.table.to_pylist() == pool.table.to_pylist(), "held-out rows are not trained on"
        assert (read.round, about) == (3, {"labels": 7})
    parts = [len(read_pieces(tmp_path / f"pool_003.{rank}of{size}.arrow")) for rank in range(size)]
    assert sum(parts) == len(pool)
    assert sum(map(bool, parts)) == min(size, 4), "of five groups the last has a held-out row alone"
    with pytest.raises(ValueError, match=r"round_004.parquet cannot be read .* the last good one is round_003.parquet"):
        read_round(tmp_path, 4, OneRank())


def test_responses_cross_with_four_bytes_a_token() -> None:
    ids = tuple(range(40_000, 40_512))
    response = Response("text", ids, False, -1.0, -2.0, 0.5, None, (-0.1,), mask=(True, False))
    sent = pickle.dumps(response)
    assert len(sent) < 4 * len(ids) + 400
    both = pickle.loads(sent), pickle.loads(sent)
    assert both == (response, response)
    assert all(one is other for one, other in zip(both[0].ids, both[1].ids, strict=True)), "one object a number"
