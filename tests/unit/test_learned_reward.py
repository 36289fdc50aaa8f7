"""The learned reward reads what was labeled, embeds each response once, and is the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_ranks import FakeRanks
from pools import put

from callbacks.d_optimal import DOptimal
from callbacks.predicted_gap import PredictedGap
from choosy.data.pool import Pool
from choosy.methods.selection import PairChoice, dissimilarity
from choosy.parallel.ranks import OneRank, Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds import learned_reward
from choosy.rounds.choose import choose_pairs
from choosy.rounds.context import Round
from choosy.rounds.learned_reward import LearnedReward, without_length
from choosy.types import Candidates, Pair, Prompt, Response, seed_of

WIDTH = 5


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were embedded, in order; each embedding is drawn by its text."""
    texts: list[str] = []

    def embed(answered: Sequence[tuple[Candidates, Response]], embedder: str, policy: Any) -> torch.Tensor:
        texts.extend(r.text for _, r in answered)
        drawn = [torch.Generator().manual_seed(seed_of(r.text)) for _, r in answered]
        return torch.stack([torch.randn(WIDTH, generator=g) for g in drawn]) if drawn else torch.zeros(0, 0)

    monkeypatch.setattr(learned_reward, "embed_with_prompts", embed)
    return texts


def candidates(round: int, *, labeled: bool = False) -> list[Candidates]:
    """Seven prompts with three responses each; of every second prompt two are scored, and of some they tie."""
    return [
        Candidates(
            Prompt(f"p{p}", "?"),
            tuple(
                Response(f"{round} {p} {n}", (1,), reward=float(p + n) if scored and n < 2 else None) for n in range(3)
            ),
            round=round,
            pairs=(Pair(1, 0, round=round),) if scored and p != 4 else (),
        )
        for p in range(7)
        for scored in [labeled and p % 2 == 0]
    ]


def round_one(learned: LearnedReward, ranks: Ranks | None = None) -> Round:
    pool = put(Pool(), candidates(0, labeled=True), round=0)
    parts: Any = (None, None, pool, ranks or OneRank(), Phases(), None, learned)
    return Round(1, 0, *parts)


def test_only_labeled_prompts_are_read_a_tie_included() -> None:
    pool = put(Pool(), candidates(0, labeled=True), round=0)
    assert [c.prompt.id for c in pool.with_labels()] == ["p0", "p2", "p4", "p6"]
    assert Pool().with_labels() == []


def test_each_response_is_embedded_once_in_a_round(embedded: list[str]) -> None:
    learned = LearnedReward(min_labels=4)
    at = round_one(learned)
    learned.head(at)
    fresh, stored = candidates(1), candidates(0)
    for _ in range(2):
        found = learned.embed(fresh, at)
        learned.embed(stored, at)
    assert len(embedded) == len(set(embedded)) == 2 * 7 * 3
    assert len({tuple(row.tolist()) for of_prompt in found for row in of_prompt}) == 7 * 3


def test_before_enough_labels_dissimilarity_or_chance_chooses(embedded: list[str]) -> None:
    """Round 0 labels four prompts' two scores each: a head of at most eight labels exists in round 1."""
    fresh = candidates(1)

    def utilities(*, min_labels: int, cold: Any) -> list[list[float]]:
        at = round_one(LearnedReward(min_labels=min_labels))
        return PredictedGap(cold=cold).pair_utilities(fresh, at)

    embeds = LearnedReward().embed(fresh, round_one(LearnedReward()))
    assert utilities(min_labels=9, cold="dissimilarity") == [
        dissimilarity(without_length(embed_ND)) for embed_ND in embeds
    ]
    before = len(embedded)
    assert utilities(min_labels=9, cold="random") == [[0.0] * 3] * 7
    assert not any(text.startswith("1 ") for text in embedded[before:]), "chance needs no embedding of fresh responses"
    warm = utilities(min_labels=8, cold="random")
    assert warm == utilities(min_labels=8, cold="dissimilarity")
    assert min(map(min, warm)) > 0


@pytest.mark.parametrize("size", [2, 3, 9])
def test_any_number_of_ranks_learns_and_designs_the_same(size: int, embedded: list[str]) -> None:
    def played(ranks: Ranks) -> tuple[list[float], dict[str, list[float]]]:
        learned = LearnedReward(min_labels=4)
        at = round_one(learned, ranks)
        mine = shard(candidates(1), ranks)
        utilities = DOptimal(fraction=0.5).pair_utilities(mine, at)
        head = learned.head(at)
        assert head is not None
        return head.weight_D.tolist(), {c.prompt.id: u for c, u in zip(mine, utilities, strict=True)}

    (weights, alone), *_ = [played(OneRank())]
    together = FakeRanks.play(size, played)
    assert [found for found, _ in together] == [weights] * size
    assert {name: u for _, of_rank in together for name, u in of_rank.items()} == alone


def singles() -> list[Candidates]:
    """The first fresh response of each of seven prompts, of which that to the third has a score."""
    alone = [replace(c, responses=c.responses[:1]) for c in candidates(1)]
    scored = replace(alone[2].responses[0], reward=1.0)
    return [*alone[:2], replace(alone[2], responses=(scored,)), *alone[3:]]


@pytest.mark.parametrize("how", [{}, {"bonus": 2.0}, {"thompson": True}, {"min_labels": 99}, {"explore": 0.5}])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_any_number_of_ranks_chooses_the_same_single_responses(size: int, how: Any, embedded: list[str]) -> None:
    def played(ranks: Ranks) -> PairChoice | None:
        settings = {"min_labels": 4, **how}
        at = round_one(LearnedReward(min_labels=settings.pop("min_labels")), ranks)
        return choose_pairs(at, shard(singles(), ranks), PredictedGap(count=3, fraction=None, **settings))

    alone = played(OneRank())
    assert alone is not None
    assert FakeRanks.play(size, played) == [alone] * size
    assert {pair[:3] for pair in alone.ranked} == {(p, 0, 0) for p in range(7) if p != 2}, "one has its score already"
    assert (alone.wanted, alone.top_up, alone.score_all) == (3, True, True)


@pytest.mark.parametrize("size", [2, 9])
def test_a_design_takes_first_the_single_response_whose_reward_is_least_certain(size: int, embedded: list[str]) -> None:
    def played(ranks: Ranks) -> PairChoice | None:
        return choose_pairs(round_one(LearnedReward(), ranks), shard(singles(), ranks), DOptimal(fraction=0.5))

    at = round_one(LearnedReward())
    at.learned.head(at)
    embed_7D, known_KD = torch.cat(at.learned.embed(singles(), at)).double(), at.learned.scored().double()
    assert len(known_KD) == 8, "two scores of four prompts"
    prior_DD = 0.1 * embed_7D.square().sum(1).mean() * torch.eye(embed_7D.shape[1], dtype=torch.float64)
    variance_7 = (embed_7D @ torch.linalg.inv(prior_DD + known_KD.T @ known_KD) * embed_7D).sum(1)
    alone = played(OneRank())
    assert alone is not None
    assert alone.ranked[0].prompt == variance_7.argmax().item()
    assert alone.ranked[0].utility == pytest.approx(variance_7.max().item())
    assert FakeRanks.play(size, played) == [alone] * size


def test_single_responses_are_ranked_by_their_gap_to_an_average_one(embedded: list[str]) -> None:
    at = round_one(LearnedReward(min_labels=4))
    head = at.learned.head(at)
    assert head is not None
    embed_7D = torch.cat(at.learned.embed(singles(), at))
    gap_7 = (head.rewards(embed_7D) - head.offset).abs()
    for bonus in (0.0, 2.0):
        choice = choose_pairs(at, singles(), PredictedGap(count=2, fraction=None, bonus=bonus))
        assert choice is not None
        utility_7 = gap_7 + bonus * head.deviations(embed_7D)
        order = [p for p in utility_7.argsort(descending=True).tolist() if p != 2]
        assert [pair.prompt for pair in choice.ranked] == order
        assert [pair.utility for pair in choice.ranked] == pytest.approx(utility_7[order].tolist())


def judged(round: int, scores: Sequence[float | None], threshold: float) -> list[Candidates]:
    """A prompt for each score, with a single response that has it, or has none."""
    return [
        Candidates(
            Prompt(f"p{p}", "?"),
            (Response(f"{round} {p}", (1,), reward=score),),
            round=round if score is not None else -1,
            threshold=threshold,
        )
        for p, score in enumerate(scores)
    ]


def test_new_labels_of_single_responses_tell_how_well_the_head_ranks_good_above_bad(embedded: list[str]) -> None:
    first = judged(0, [3.0, 5.0, 4.0, 6.0, 1.0, 2.0], 3.5)
    new = judged(1, [4.0, 0.0, 7.0, 3.0, 1.0, 3.5, None], 3.5)
    learned = LearnedReward(min_labels=4)
    parts: Any = (OneRank(), Phases(), None, learned)
    head = learned.head(Round(1, 0, None, None, put(Pool(), first, round=0), *parts))  # type: ignore[arg-type]
    assert head is not None
    assert "accuracy" not in learned.knowledge[1], "nothing was predicted yet"
    learned.head(Round(2, 0, None, None, put(put(Pool(), first, round=0), new, round=1), *parts))  # type: ignore[arg-type]
    embed_7D = torch.cat(learned.embed(new, round_one(learned)))
    reward = head.rewards(embed_7D).tolist()
    right = [reward[good] > reward[bad] for good in (0, 2) for bad in (1, 3, 4)]
    assert learned.knowledge[2]["accuracy"] == pytest.approx(sum(right) / 6)
    assert -1 <= learned.knowledge[2]["correlation"] <= 1
    assert learned.knowledge[2]["labels"] == 12


def test_a_score_that_says_nothing_is_not_learned(embedded: list[str]) -> None:
    learned = LearnedReward(min_labels=4)
    pool = put(Pool(), judged(0, [1.0, -1.0, 0.0, 1.0, 0.0, -1.0], 0.0), round=0)
    parts: Any = (None, None, pool, OneRank(), Phases(), None, learned)
    learned.head(Round(1, 0, *parts, neutral=0.0))
    assert learned.knowledge[1]["labels"] == 4
    assert sorted(learned._scores.values()) == [-1.0, -1.0, 1.0, 1.0]


def test_a_head_fitted_ahead_leaves_what_the_round_before_knew(embedded: list[str]) -> None:
    """The next round's prompts may be chosen while this one trains; its table is written after that."""
    first, new = judged(0, [3.0, 5.0, 4.0, 6.0, 1.0], 3.5), judged(1, [4.0, 0.0, 7.0, 3.0], 3.5)
    learned = LearnedReward(min_labels=4)
    parts: Any = (OneRank(), Phases(), None, learned)
    none: Any = (None, None)
    learned.head(Round(1, 0, *none, put(Pool(), first, round=0), *parts))
    learned.head(Round(2, 0, *none, put(put(Pool(), first, round=0), new, round=1), *parts))
    assert [learned.knowledge[number]["labels"] for number in (1, 2)] == [5, 9]


def test_differences_know_the_verdicts_of_this_round_on_any_number_of_ranks(embedded: list[str]) -> None:
    labeled = candidates(1, labeled=True)

    def played(ranks: Ranks) -> dict[tuple[str, str, str], float] | None:
        return LearnedReward(min_labels=6).differences(labeled, round_one(LearnedReward(), ranks))

    (alone,) = [played(OneRank())]
    assert alone is not None
    assert sorted(alone) == [(f"p{p}", f"1 {p} 1", f"1 {p} 0") for p in (0, 2, 6)]
    assert FakeRanks.play(3, played) == [alone] * 3
    few = LearnedReward(min_labels=7)  # three verdicts of round 0 and three of round 1
    assert few.differences(labeled, round_one(few)) is None
