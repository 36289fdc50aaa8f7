"""What a round has sampled outlives the process: in parts while it samples, in shares when a rank is done."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_ranks import FakeRanks

from choosy.data.pool import Pool
from choosy.data.table_files import read_about, write_table
from choosy.methods.losses import SigmoidLoss
from choosy.parallel.ranks import OneRank
from choosy.reporting.display import Phases
from choosy.resume import partial_rounds as sampled
from choosy.resume.partial_rounds import PartWriter, files_of, forget, read_begun, unlabeled
from choosy.rounds.context import ChosenPrompt, Round
from choosy.rounds.sample import FreshResponses, Resumable
from choosy.types import Candidates, Message, Prompt, Response

PROMPTS = [Prompt(f"p{n}", f"user: {n}?", (Message("user", f"{n}?"),)) for n in range(8)]


def candidates(prompt: Prompt, *, n: int = 2) -> Candidates:
    return Candidates(prompt, tuple(Response(f"{prompt.id} {i}", (i, 2), True, -1.0) for i in range(n)), (1, 2), 3)


def parts(folder: Path, ranks: Any = None, **settings: Any) -> PartWriter:
    return PartWriter(folder, 3, ranks or OneRank(), seconds=lambda: {"sample": 2.0}, **settings)


def names(folder: Path) -> list[str]:
    return [path.name for path in files_of(folder, 3)]


def test_a_part_is_written_every_few_seconds_and_as_time_passes_less_often(tmp_path: Path) -> None:
    now = 0.0
    writer = parts(tmp_path, clock=lambda: now)
    for prompt, now, expected in ((0, 1.9, 0), (1, 2.1, 1), (2, 4.0, 1), (3, 4.2, 2), (4, 400.0, 3), (5, 403.9, 3)):
        writer.add([candidates(PROMPTS[prompt])])
        assert len(names(tmp_path)) == expected, now
    now = 404.1
    writer.add([candidates(PROMPTS[6])])
    assert len(names(tmp_path)) == 4, "one hundredth of the time has passed"
    found, seconds = read_begun(tmp_path, 3, PROMPTS, responses=2)
    assert found == {p.id: candidates(p) for p in PROMPTS[:7]}, "conversations, texts and token ids"
    assert seconds == {"sample": 2.0}
    forget(tmp_path, 3)
    assert names(tmp_path) == []


def test_a_rank_that_goes_on_does_not_write_over_its_parts(tmp_path: Path) -> None:
    for prompt in PROMPTS[:3]:
        writer = parts(tmp_path)
        writer.add([candidates(prompt)])
        writer.write()
        writer.write()
    assert len(names(tmp_path)) == 3
    assert read_begun(tmp_path, 3, PROMPTS, responses=2)[0].keys() == {"p0", "p1", "p2"}


def test_damaged_parts_are_named_and_other_rounds_and_prompts_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for prompt in PROMPTS[:2]:
        writer = parts(tmp_path)
        writer.add([candidates(prompt)])
        writer.write()
    first = files_of(tmp_path, 3)[0]
    (flipped := bytearray(first.read_bytes()))[-20] ^= 1  # in the footer, which no page's checksum covers
    first.write_bytes(flipped)
    assert read_begun(tmp_path, 3, PROMPTS, responses=2)[0].keys() == {"p1"}
    assert f"{first} is damaged" in caplog.text
    fed = next(unlabeled(tmp_path, 3, PROMPTS, responses=2))
    assert [c.prompt.id for c in fed] == ["p1"], "nothing is bought for what a damaged file holds"
    assert read_begun(tmp_path, 2, PROMPTS, responses=2) == ({}, {})
    with pytest.raises(ValueError, match=r"responses to prompt p1, which this round does not sample any more"):
        read_begun(tmp_path, 3, PROMPTS[:1], responses=2)


def test_the_feed_gives_what_was_written_since_the_last_call(tmp_path: Path) -> None:
    feed = unlabeled(tmp_path, 3, PROMPTS[:4], responses=2)
    assert next(feed) == []
    writer = parts(tmp_path)
    writer.add([candidates(PROMPTS[0]), candidates(PROMPTS[7]), candidates(PROMPTS[1], n=3)])
    writer.write()
    assert next(feed) == [candidates(PROMPTS[0])], "chosen, and with as many responses as the round has"
    writer.add([candidates(PROMPTS[2])])
    writer.write()
    other = parts(tmp_path, ranks=FakeRanks(1, 2, [], None))  # type: ignore[arg-type]
    other.add([candidates(PROMPTS[2]), candidates(PROMPTS[3])])
    other.write()
    assert [c.prompt for c in next(feed)] == PROMPTS[2:4], "each prompt once"
    assert next(feed) == []


def test_a_part_of_a_version_without_some_columns_is_read(tmp_path: Path) -> None:
    writer = parts(tmp_path)
    writer.add([candidates(prompt) for prompt in PROMPTS])
    writer.write()
    (path,) = files_of(tmp_path, 3)
    write_table(pq.read_table(path).drop_columns(["source", "parts"]), path, read_about(path))
    wanted = [candidates(prompt) for prompt in PROMPTS]
    assert [*read_begun(tmp_path, 3, PROMPTS, responses=2)[0].values()] == wanted
    assert next(unlabeled(tmp_path, 3, PROMPTS, responses=2)) == wanted


# -- a round that goes on --------------------------------------------------------------------------------------


class Stub:
    """Policy and sampler in one: batches of two prompts, of which it can fail at one, and a count of what it did."""

    start_seconds = sync_seconds = 0.0
    origin = "stub"
    max_new_tokens = 4

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.asked: list[tuple[int, ...]] = []
        self.tokens = self

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return (int(prompt.id[1:]), 7)

    def sample(
        self,
        policy: Any,
        ids: Sequence[tuple[int, ...]],
        seeds: Any,
        *,
        settings: Any = None,
        done: Callable[[Mapping[int, Any]], None],
    ) -> list[list[Response]]:
        made = [[Response(f"{seed}", (seed % 5,), seed % 2 == 0, -1.0) for seed in of_prompt] for of_prompt in seeds]
        for start in range(0, len(ids), 2):
            if len(self.asked) == self.fail_at:
                raise RuntimeError("the machine stops")
            self.asked.append(ids[start])
            done({p: made[p] for p in range(start, min(start + 2, len(ids)))})
        return made


def play(folder: Path, stub: Stub, ranks: Any, n: int = 2) -> tuple[list[Candidates], Counter[str]]:
    at = Round(3, 0, stub, stub, Pool(), ranks, Phases(), SigmoidLoss(), stub)  # type: ignore[arg-type]
    sample = Resumable(FreshResponses(n), PROMPTS, folder)
    return sample(at, [ChosenPrompt(p, 1.0) for p in PROMPTS]), at.counts


def texts(shares: Sequence[tuple[list[Candidates], Counter[str]]]) -> tuple[dict[str, list[str]], Counter[str]]:
    """The responses of all ranks, and what all ranks counted."""
    made = {c.prompt.id: [r.text for r in c.responses] for mine, _ in shares for c in mine}
    return made, sum((counts for _, counts in shares), Counter())


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2)])
def test_a_round_that_goes_on_samples_the_rest_only(before, after, tmp_path, monkeypatch):
    monkeypatch.setattr(sampled, "EVERY", 0.0)
    monkeypatch.setattr(sampled, "SHARE", 0.0)
    whole = texts([play(tmp_path / "whole", Stub(), OneRank())])
    folder = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="the machine stops"):
        FakeRanks.play(before, lambda ranks: play(folder, Stub(fail_at=1 if ranks.rank == 0 else None), ranks))
    there = read_begun(folder, 3, PROMPTS, responses=2)[0]
    assert 0 < len(there) < len(PROMPTS)
    stubs = [Stub() for _ in range(after)]
    assert texts(FakeRanks.play(after, lambda ranks: play(folder, stubs[ranks.rank], ranks))) == whole
    again = sum(len(stub.asked) for stub in stubs)
    assert again < math.ceil(len(PROMPTS) / 2), "what was there has not been sampled again"
    last = [Stub() for _ in range(after)]
    assert texts(FakeRanks.play(after, lambda ranks: play(folder, last[ranks.rank], ranks))) == whole
    assert [stub.asked for stub in last] == [[]] * after, "now all of it is there"


def test_what_was_sampled_before_is_dealt_to_all_ranks(tmp_path):
    play(tmp_path, Stub(), OneRank())
    shares = FakeRanks.play(4, lambda ranks: play(tmp_path, Stub(), ranks))
    assert [len(mine) for mine, _ in shares] == [2, 2, 2, 2]


def test_one_line_says_where_the_tokens_came_from_and_at_what_rate(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(Phases, "say", lambda self, line: said.append(line) if " tokens " in line else None)
    FakeRanks.play(2, lambda ranks: play(tmp_path, Stub(), ranks))
    (line,) = said
    assert re.fullmatch(r"16 tokens from stub on 2 processes in \d\.\d s, [\d,]+ a second", line)
    play(tmp_path, Stub(), OneRank())
    assert said == [line], "nothing was sampled again"
    play(tmp_path / "one", Stub(), OneRank())
    assert said == [line], "the phase's line says as much of one process"
    monkeypatch.setattr(Stub, "sync_seconds", property(lambda stub: float(len(stub.asked))))
    play(tmp_path / "engine", Stub(), OneRank())
    assert re.fullmatch(r"16 tokens from stub in .* a second, after 4\.00 s for the policy's weights", said[1])


def test_another_number_of_responses_is_sampled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(sampled, "EVERY", 0.0)
    with pytest.raises(RuntimeError, match="the machine stops"):
        play(tmp_path, Stub(fail_at=2), OneRank())
    stub = Stub()
    mine, counts = play(tmp_path, stub, OneRank(), n=3)
    assert {(len(c.responses), c.utility) for c in mine} == {(3, 1.0)}
    assert (len(stub.asked), counts["tokens_generated"], counts["prompts_sampled"]) == (4, 24, 8)
