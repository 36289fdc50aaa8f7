"""Every way to choose passes one shared suite; each utility has a hand-worked example."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callbacks.certainty import Certainty
from callbacks.dissimilarity import Dissimilarity
from callbacks.entropy import Entropy
from callbacks.optune import OPTune
from choosy.methods.predicted import d_optimal, predicted_gain, predicted_gap
from choosy.methods.selection import (
    ChosenPair,
    Direction,
    centroid,
    certainty,
    dissimilarity,
    entropy,
    length_matched,
    optune,
    orient,
    pair_positions,
    quota,
    rank_pairs,
    responses_of,
    reward_statistic,
    top_k,
    top_pairs,
    two_means,
)
from choosy.methods.shrinkage import shrunk_means
from choosy.types import Moments, seed_of

ROOT = Path(__file__).resolve().parents[2]

Item = tuple[str, Any]  # the id of a prompt, and what its utility is computed from
Choose = Callable[[Sequence[Item], int, int], list[Hashable]]  # items, how many, seed -> ids, most useful first


def stored(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards of each prompt as the pool gives them: None = no score; None for a prompt = never sampled."""
    width = max((len(row) for row in rows if row), default=0)
    padded = [[*(row or []), *[None] * (width - len(row or []))] for row in rows]
    reward_PN = torch.tensor([[0.0 if r is None else r for r in row] for row in padded]).view(len(rows), width)
    scored_PN = torch.tensor([[r is not None for r in row] for row in padded], dtype=torch.bool)
    return (
        reward_PN,
        scored_PN.view(len(rows), width),
        torch.tensor([row is not None for row in rows], dtype=torch.bool),
    )


def of_prompts(utilities: Callable[[list[Any]], list[float]], direction: Direction = "largest") -> Choose:
    """Slot 1: which prompts are sampled again."""

    def choose(items: Sequence[Item], k: int, seed: int) -> list[Hashable]:
        names = [name for name, _ in items]
        oriented = orient(utilities([data for _, data in items]), direction)
        return [names[i] for i in top_k(oriented, k, names=names, seed=seed)]

    return choose


def of_pairs(utilities: Callable[[Any], list[float]], direction: Direction = "largest") -> Choose:
    """Slot 2: which pairs are labeled, at most one of a prompt."""

    def choose(items: Sequence[Item], k: int, seed: int) -> list[Hashable]:
        names = [name for name, _ in items]
        of_each = [utilities(data) for _, data in items]
        chosen = chosen_pairs(of_each, names=names, seed=seed, direction=direction, count=k)
        return [(names[c.prompt], c.i, c.j) for c in chosen]

    return choose


def chosen_pairs(
    utilities: Sequence[Sequence[float]],
    *,
    names: Sequence[str],
    seed: int,
    direction: Direction = "largest",
    fraction: float | None = None,
    count: int | None = None,
    per_prompt: int | None = 1,
    excluded: Set[tuple[int, int, int]] = frozenset(),
) -> list[ChosenPair]:
    """The pairs that a round labels: the top of the ranking, as many as the quota of those that the cap leaves."""
    ranked = rank_pairs(utilities, names=names, seed=seed, direction=direction, excluded=excluded)
    capped = top_pairs(ranked, len(ranked), per_prompt=per_prompt)
    return top_pairs(ranked, quota(len(capped), fraction=fraction, count=count), per_prompt=per_prompt)


def vectors(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(rows)


class Way(NamedTuple):
    """One way to choose: what it does, data drawn for it, data that tie, and data that are broken."""

    choose: Choose
    draw: Callable[[random.Random], Any]
    equal: Any
    broken: Sequence[Any]


THREE = [0.3, 0.1, 0.2]
SQUARE = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]
numbers = Way(
    of_prompts(lambda rows: rows),
    lambda rng: [rng.gauss(0, 1) for _ in range(3)],
    THREE,
    [math.nan, math.inf],
)


def scores(rows: list[Any], statistic: Any = "mean") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What OPTune ranks: a score for each prompt, whether it has one, whether it was ever sampled."""
    reward_PN, scored_PN, sampled_P = stored(rows)
    return reward_statistic(reward_PN, scored_PN, statistic), scored_PN.any(1), sampled_P


def rewards(statistic: Any, direction: Direction = "largest") -> Way:
    return numbers._replace(
        choose=of_prompts(lambda rows: optune(*scores(rows, statistic), direction), direction),
        broken=[[math.nan, 1.0], [1.0, math.nan], [-math.inf], [math.inf, 0.0]],
    )


def shrunk_of(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """The shrunk means of prompts with these rewards."""
    each = [Moments.of(row) for row in rows]
    return shrunk_means(*(torch.tensor([getattr(m, name) for m in each]) for name in ("count", "mean", "m2")))


def sure(direction: Direction) -> Way:
    return numbers._replace(choose=of_pairs(certainty, direction), broken=[[math.nan, 0.0, 1.0], [0.0, 1.0, math.inf]])


def embedded(utilities: Callable[[torch.Tensor], list[float]], direction: Direction = "largest") -> Way:
    return Way(
        of_pairs(lambda rows: utilities(vectors(rows)), direction),
        lambda rng: [[rng.gauss(0, 1) for _ in range(4)] for _ in range(4)],
        SQUARE,
        [[[1.0, 0.0], [math.nan, 1.0]], [[1.0, math.inf], [0.0, 1.0]]],
    )


def designed(items: Sequence[Item], k: int, seed: int) -> list[Hashable]:
    """A D-optimal design of pairs of embeddings, one a prompt."""
    every = sorted(
        (seed_of(seed, name, i, j), name, i, j, n)
        for n, (name, rows) in enumerate(items)
        for i, j in pair_positions(len(rows))
    )
    features = [vectors(items[n][1])[i] - vectors(items[n][1])[j] for _, _, i, j, n in every]
    feature_XD = torch.stack(features) if features else torch.zeros(0, 2)
    utilities = d_optimal(feature_XD, [name for _, name, *_ in every], k, per_prompt=1, ridge=0.1)
    of_pair = {(name, i, j): u for (_, name, i, j, _), u in zip(every, utilities, strict=True)}
    of_each = [[of_pair[name, i, j] for i, j in pair_positions(len(rows))] for name, rows in items]
    chosen = chosen_pairs(of_each, names=[name for name, _ in items], seed=seed, count=k)
    return [(items[c.prompt][0], c.i, c.j) for c in chosen]


WAYS = {
    "predicted_gap": numbers._replace(
        choose=of_pairs(lambda us: predicted_gap(torch.tensor(us))), broken=[[math.nan, 0.0, 1.0], [0.0, 1.0, math.inf]]
    ),
    "delta_ucb": numbers._replace(
        choose=of_pairs(lambda us: predicted_gap(torch.tensor(us), torch.tensor(us).square(), bonus=0.5)),
        broken=[[math.nan, 0.0, 1.0], [0.0, 1.0, math.inf]],
    ),
    "predicted_gain": numbers._replace(
        choose=of_prompts(lambda rows: predicted_gain([torch.tensor(us) for us in rows])),
        broken=[[math.nan, 0.0, 1.0], [0.0, 1.0, math.inf]],
    ),
    "d_optimal": Way(
        designed,
        lambda rng: [[rng.gauss(0, 1) for _ in range(4)] for _ in range(4)],
        SQUARE,
        [[[1.0, 0.0, 0.0, 0.0], [math.nan, 1.0, 0.0, 0.0]], [[1.0, math.inf, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]],
    ),
    "optune_mean": rewards("mean"),
    "optune_best": rewards("best"),
    "optune_worst": rewards("worst"),
    "optune_shrunk": numbers._replace(
        choose=of_prompts(lambda rows: optune(shrunk_of(rows), torch.ones(len(rows)) > 0, torch.ones(len(rows)) > 0)),
        broken=[[math.nan, 1.0], [1.0, math.inf]],
    ),
    "optune_easiest": rewards("mean", "smallest"),
    "optune_middle": rewards("mean", "middle"),
    "entropy": numbers._replace(choose=of_prompts(entropy), broken=[[math.nan, -1.0], [-1.0, -math.inf]]),
    "certainty_largest": sure("largest"),
    "certainty_smallest": sure("smallest"),
    "certainty_middle": sure("middle"),
    "certainty_tails": sure("tails"),
    "dissimilarity": embedded(dissimilarity),
    "similarity": embedded(dissimilarity, "smallest"),
    "centroid": embedded(centroid),
    "length_matched": Way(
        of_pairs(length_matched),
        lambda rng: [rng.randint(1, 60) for _ in range(3)],
        [10, 20, 40],
        [[math.nan, 1.0, 2.0], [1.0, math.inf, 2.0]],
    ),
    "random_prompts": Way(of_prompts(lambda us: us), lambda rng: 0.0, 0.0, [math.nan, math.inf, -math.inf]),
    "random_pairs": Way(
        of_pairs(lambda us: us),
        lambda rng: [0.0] * 6,
        [0.0] * 6,
        [[math.nan, 0.0, 0.0], [0.0, 0.0, math.inf]],
    ),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def drawn(way: Way, n: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [(f"p{i:02d}", way.draw(rng)) for i in range(n)]


def tied(way: Way, n: int = 12) -> list[Item]:
    return [(f"p{i:02d}", way.equal) for i in range(n)]


def prompt_of(chosen: Hashable) -> str:
    return chosen[0] if isinstance(chosen, tuple) else str(chosen)


# -- what every way to choose keeps --------------------------------------------------------------------------


def test_chosen_are_in_range_unique_and_as_many_as_asked(way: Way) -> None:
    items = drawn(way, 11)
    chosen = way.choose(items, 4, 0)
    assert len(chosen) == 4
    assert len({prompt_of(c) for c in chosen}) == 4
    assert {prompt_of(c) for c in chosen} <= {name for name, _ in items}


@pytest.mark.parametrize("make", [drawn, tied])
def test_one_seed_gives_one_choice(way: Way, make: Callable[..., list[Item]]) -> None:
    assert way.choose(make(way, 11), 4, 5) == way.choose(make(way, 11), 4, 5)


@pytest.mark.parametrize("make", [drawn, tied])
def test_the_order_of_the_input_does_not_matter(way: Way, make: Callable[..., list[Item]]) -> None:
    items = make(way, 11)
    chosen = way.choose(items, 4, 5)
    for shuffle in range(3):
        turned = random.Random(shuffle).sample(items, len(items))
        assert way.choose(turned, 4, 5) == chosen


def test_the_seed_decides_ties(way: Way) -> None:
    choices = {frozenset(map(prompt_of, way.choose(tied(way), 4, seed))) for seed in range(30)}
    assert len(choices) > 15
    assert len(frozenset().union(*choices)) == 12, "each is as likely as any other"


def test_smaller_choices_are_the_head_of_larger_ones(way: Way) -> None:
    items = drawn(way, 9)
    everything = way.choose(items, 9, 0)
    assert [way.choose(items, k, 0) for k in range(1, 9)] == [everything[:k] for k in range(1, 9)]


@pytest.mark.parametrize("k", [7, 8, 1000])
def test_more_than_there_are_keeps_all(way: Way, k: int) -> None:
    items = drawn(way, 7)
    assert sorted(map(prompt_of, way.choose(items, k, 0))) == [name for name, _ in items]


def test_nothing_in_nothing_out(way: Way) -> None:
    assert way.choose([], 3, 0) == []


def test_a_broken_number_raises_and_names_the_item(way: Way) -> None:
    for data in way.broken:
        items = drawn(way, 6)
        items[3] = ("the-culprit", data)
        with pytest.raises(ValueError, match=r"utility of the-culprit.* must be a finite number"):
            way.choose(items, 2, 0)


# -- top_k, orient, quota ----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-3, 3) | st.floats(-1e300, 1e300), max_size=30),
    st.integers(0, 40),
    st.integers(0, 9),
)
def test_top_k_agrees_with_a_sort(utilities: list[float], k: int, seed: int) -> None:
    chosen = top_k(utilities, k, names=[str(i) for i in range(len(utilities))], seed=seed)
    assert len(set(chosen)) == len(chosen)
    assert [utilities[i] for i in chosen] == sorted(utilities, reverse=True)[:k]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=12), st.randoms(), st.integers(0, 9))
def test_top_k_does_not_see_positions(utilities: list[float], rng: random.Random, seed: int) -> None:
    items = list(zip([f"p{i}" for i in range(len(utilities))], utilities, strict=True))
    k = (len(items) + 1) // 2

    def chosen(items: list[tuple[str, float]]) -> list[str]:
        names = [name for name, _ in items]
        return [names[i] for i in top_k([u for _, u in items], k, names=names, seed=seed)]

    assert chosen(rng.sample(items, len(items))) == chosen(items)


@pytest.mark.parametrize("n", [1, 7, 13])
def test_every_item_of_an_odd_sized_list_is_eligible(n: int) -> None:
    """The authors' scorer walks full batches only and silently forgets the last ones."""
    for best in range(n):
        utilities = [float(i == best) for i in range(n)]
        assert top_k(utilities, 1, names=[str(i) for i in range(n)], seed=0) == [best]
        pairs = chosen_pairs([[u] for u in utilities], names=[str(i) for i in range(n)], seed=0, count=1)
        assert [pair.prompt for pair in pairs] == [best]


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("largest", [4.0, 8.0, 1.0, 2.0, 9.0]),
        ("smallest", [-4.0, -8.0, -1.0, -2.0, -9.0]),
        ("middle", [0.0, -1.0, -2.0, -1.0, -2.0]),
        ("tails", [0.0, 1.0, 2.0, 1.0, 2.0]),
    ],
)
def test_orient(direction: Direction, expected: list[float]) -> None:
    """4 8 1 2 9 have the ranks 2 3 0 1 4; the median rank is 2."""
    assert orient([4.0, 8.0, 1.0, 2.0, 9.0], direction) == expected


def test_equal_utilities_are_equally_far_from_the_middle() -> None:
    """5 5 5 7 have the mean ranks 1 1 1 3, and the median rank is 1.5."""
    assert orient([5.0, 5.0, 5.0, 7.0], "tails") == [0.5, 0.5, 0.5, 1.5]


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="direction='up' is none of largest, smallest, middle, tails"):
        orient([1.0], "up")  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.floats(0.001, 1.0))
def test_quota_of_a_fraction_rounds_up(n: int, fraction: float) -> None:
    q = quota(n, fraction=fraction)
    assert min(n, 1) <= q <= n
    assert -1e-6 <= q - fraction * n < 1


@given(st.integers(0, 100), st.integers(1, 200))
def test_quota_of_a_count_is_at_most_what_there_is(n: int, count: int) -> None:
    assert quota(n, count=count) == min(n, count)


def test_quota_is_exact_where_floats_are_not() -> None:
    """0.3 * 10 and 0.07 * 100 are a little more than 3 and 7 to a float."""
    assert [quota(10, fraction=0.3), quota(100, fraction=0.07), quota(10, fraction=1.0)] == [3, 7, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fraction": 0.0}, "fraction=0.0 is no share of the items; choose 0 < fraction <= 1"),
        ({"fraction": 1.5}, "fraction=1.5 is no share"),
        ({"fraction": math.nan}, "fraction=nan is no share"),
        ({"count": 0}, "count=0 chooses nothing; choose count >= 1, or null for all"),
        ({"fraction": 0.5, "count": 3}, "fraction=0.5 and count=3 both say how many"),
    ],
)
def test_quota_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quota(10, **arguments)


# -- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "expected"), [("mean", [-0.5, 1.0]), ("best", [-3.0, 0.0]), ("worst", [2.0, 2.0])]
)
def test_least_rewarded(statistic: Any, expected: list[float]) -> None:
    """Rewards 3, -2: mean 0.5, best 3, worst -2. Rewards 0, -2: mean -1, best 0, worst -2. Each negated."""
    assert optune(*scores([[3.0, -2.0], [0.0, -2.0]], statistic)) == expected


def test_shrunk_means_worked_by_hand() -> None:
    """Means 3 of 2 rewards, 1 of 2 and 2 of 4, m2 1, 1 and 2: N = 8, mu = 2, s2 = 4 / (8 - 3) = 0.8.

    Between them: 2 + 2 + 0 = 4, so t2 = (4 - 2 * 0.8) / (8 - 24 / 8) = 0.48, and B = 0.48 / (0.48 + 0.8 / n):
    0.545454 for n = 2. A prompt without rewards gets mu.
    """
    count_P, mean_P, m2_P = (
        torch.tensor([2, 2, 4, 0]),
        torch.tensor([3.0, 1.0, 2.0, 0.0]),
        torch.tensor([1.0, 1.0, 2.0, 0.0]),
    )
    b = 0.48 / 0.88
    assert shrunk_means(count_P, mean_P, m2_P).tolist() == pytest.approx([2 + b, 2 - b, 2.0, 2.0])


def test_more_rewards_shrink_less_and_noise_shrinks_all() -> None:
    mean_P = torch.tensor([1.0, 1.0, -1.0, -1.0])
    few, many, *_ = shrunk_means(torch.tensor([2, 20, 20, 2]), mean_P, torch.tensor([2.0, 20.0, 20.0, 2.0])).tolist()
    assert 0 < few < many < 1
    noise = shrunk_means(torch.tensor([2, 2]), torch.tensor([0.1, -0.1]), torch.tensor([9.0, 9.0]))
    assert noise.tolist() == [0.0, 0.0], "the means differ by less than they would by chance"


def test_without_a_second_reward_or_prompt_nothing_is_shrunk() -> None:
    assert shrunk_means(torch.tensor([1, 1]), torch.tensor([3.0, 1.0]), torch.zeros(2)).tolist() == [3.0, 1.0]
    assert shrunk_means(torch.tensor([4, 0]), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])).tolist() == [3.0, 3.0]
    assert shrunk_means(torch.zeros(2), torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_never_sampled_goes_first_and_unscored_is_average() -> None:
    """Known utilities -1 and 3: unscored prompts get their mean 1, never sampled ones 3 + 1."""
    assert optune(*scores([[1.0], [None, -3.0], [None, None], [], None])) == [-1.0, 3.0, 1.0, 1.0, 4.0]
    assert optune(*scores([None, None])) == [1.0, 1.0]
    assert optune(*scores([[None], None])) == [0.0, 1.0]


def test_never_sampled_goes_first_in_every_direction() -> None:
    """Rewards 1, 3, 2: the highest comes first in the direction `smallest`, and before it the prompt never sampled."""
    rows, names = [[1.0], [3.0], [2.0], None], ["low", "high", "middle", "new"]
    expected: dict[Direction, list[str]] = {"largest": ["new", "low"], "smallest": ["new", "high"]}
    for direction, first in expected.items():
        oriented = orient(optune(*scores(rows), direction), direction)
        assert [names[i] for i in top_k(oriented, 2, names=names, seed=0)] == first
    for direction in ("tails", "middle"):  # equally far from the middle as others
        oriented = orient(optune(*scores(rows), direction), direction)
        assert oriented[-1] == max(oriented)


def test_a_broken_reward_is_not_blamed_on_an_unscored_prompt() -> None:
    utilities = optune(*scores([[None], [math.nan], None]))
    with pytest.raises(ValueError, match="utility of broken is nan"):
        top_k(utilities, 1, names=["unscored", "broken", "unseen"], seed=0)


def test_an_unknown_statistic_is_refused() -> None:
    with pytest.raises(ValueError, match="statistic='median' is none of mean, best, worst"):
        scores([[1.0]], "median")  # type: ignore[arg-type]


def test_sequence_entropy_of_a_hand_worked_prompt() -> None:
    """-(-12 - 15 - 9) / 3 = 12; lengths do not enter."""
    assert entropy([(-12.0, -15.0, -9.0)]) == [12.0]


def test_entropies_of_prompts_are_not_mixed() -> None:
    """The authors average the samples s .. s+N-1 for prompt s where they lie at s*N .. s*N+N-1."""
    samples = 3
    logps = [[-(10.0**p) * (1 + n) for n in range(samples)] for p in range(5)]
    assert entropy(logps) == pytest.approx([2 * 10.0**p for p in range(5)])
    flat = [logp for of_prompt in logps for logp in of_prompt]
    authors = [-sum(flat[p : p + samples]) / samples for p in range(5)]
    assert entropy(logps)[1:] != pytest.approx(authors[1:])


# -- pairs ---------------------------------------------------------------------------------------------------


def authors_certainty(first: float, second: float) -> float:
    """u = 1 - 2 |sigmoid(difference) - 1/2|; its smallest values are kept."""
    return 1 - 2 * abs(1 / (1 + math.exp(-(first - second))) - 0.5)


@pytest.mark.parametrize(
    ("implicit", "gap", "authors"),
    [((0.6, -0.2), 0.8, 0.620051), ((0.0, 0.0), 0.0, 1.0), ((2.0, 0.4), 1.6, 0.335963)],
)
def test_certainty_golden_values(implicit: tuple[float, float], gap: float, authors: float) -> None:
    """The difference itself; the authors' u is 1 - |tanh(difference / 2)|: 0.8 gives 0.620051."""
    assert certainty(implicit) == pytest.approx([gap])
    assert authors_certainty(*implicit) == pytest.approx(authors, abs=1e-6)
    assert 1 - math.tanh(certainty(implicit)[0] / 2) == pytest.approx(authors, abs=1e-6)


@given(st.lists(st.integers(-60, 60).map(lambda n: n / 10), min_size=2, max_size=8))
def test_certainty_ranks_as_the_authors_do(implicit: list[float]) -> None:
    gaps = certainty(implicit)
    us = [authors_certainty(implicit[i], implicit[j]) for i, j in pair_positions(len(implicit))]
    by_u = sorted(range(len(us)), key=us.__getitem__)
    assert [gaps[i] for i in by_u] == pytest.approx(sorted(gaps, reverse=True))


def test_saturated_gaps_still_rank() -> None:
    """A float sigmoid is 1 at 40 and at 50 alike."""
    assert authors_certainty(40, 0) == authors_certainty(50, 0)
    chosen = chosen_pairs([certainty([40, 0]), certainty([50, 0])], names=["40", "50"], seed=0)
    assert [c.prompt for c in chosen] == [1, 0]


def test_cosines_worked_by_hand() -> None:
    """(1,0), (0,2), (-3,0), (1,1): right angles 0, opposite -1, 45 degrees 0.7071, 135 degrees -0.7071."""
    half = math.sqrt(0.5)
    cosines = [0.0, -1.0, half, 0.0, half, -half]
    utilities = dissimilarity(vectors([[1, 0], [0, 2], [-3, 0], [1, 1]]).float())
    assert utilities == pytest.approx([-c for c in cosines])


def test_easy_is_the_smallest_cosine_and_hard_the_largest() -> None:
    """Of (1,0), (0.9,0.1), (-1,0.1): the last is opposite to the first, the first two nearly the same."""
    utilities = [dissimilarity(vectors([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.1]]))]
    (easy,) = chosen_pairs(utilities, names=["p"], seed=0)
    (hard,) = chosen_pairs(utilities, names=["p"], seed=0, direction="smallest")
    assert ((easy.i, easy.j), (hard.i, hard.j)) == ((0, 2), (0, 1))


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20, unique=True).filter(lambda us: len(us) % 2 == 0))
def test_easy_and_hard_halves_are_disjoint(utilities: list[float]) -> None:
    def half(direction: Direction) -> set[int]:
        names = [str(i) for i in range(len(utilities))]
        chosen = chosen_pairs([[u] for u in utilities], names=names, seed=0, direction=direction, fraction=0.5)
        return {c.prompt for c in chosen}

    assert half("largest").isdisjoint(half("smallest"))
    assert len(half("largest") | half("smallest")) == len(utilities)


def test_lengths_within_the_tolerance_tie_and_others_rank_by_how_far_they_are_beyond_it() -> None:
    """100, 110, 150 and 0 tokens, a tenth allowed: 110 / 100 is within; log(150 / 110 / 1.1) = .21484."""
    utilities = dict(zip(pair_positions(4), length_matched([100, 110, 150, 0]), strict=True))
    assert utilities[0, 1] == 0
    assert utilities[1, 2] == pytest.approx(-0.21484, abs=1e-5)
    assert utilities[0, 2] == pytest.approx(-math.log(1.5 / 1.1))
    assert utilities[0, 3] == pytest.approx(-math.log(100 / 1.1)), "nothing counts as one token"


def test_the_centroid_pair_worked_by_hand() -> None:
    """Centres (10, 1/2) and (-10, 3): responses 1 and 4 lie nearest, 0 and 4 are opposite."""
    points = vectors([[10, -2], [10, 0.5], [10, 3], [-10, 1], [-10, 2], [-10, 6]])
    assert two_means(points, seeds=(0, 4)).tolist() == [[10.0, 0.5], [-10.0, 3.0]]
    plain, utilities = dissimilarity(points), centroid(points)
    at = pair_positions(6).index((1, 4))
    assert utilities[at] == max(utilities) == plain[at] + 2
    assert max(plain) == plain[pair_positions(6).index((0, 4))] == pytest.approx(1.0)
    assert utilities[:at] + utilities[at + 1 :] == plain[:at] + plain[at + 1 :]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_responses_have_no_pair(n: int) -> None:
    embed = torch.ones(n, 3)
    assert certainty([0.0] * n) == dissimilarity(embed) == centroid(embed) == []
    assert chosen_pairs([[]], names=["lonely"], seed=0) == []


@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_embeddings_still_have_a_centroid_pair(n: int) -> None:
    assert sum(u > 1 - 1e-9 for u in centroid(torch.ones(n, 3))) == 1


# -- top_pairs --------------------------------------------------------------------------------------------


def test_constant_utilities_choose_different_pairs_under_different_seeds() -> None:
    """The authors' random pair of four responses is always (1, 2)."""
    constant = [[0.0] * 6]
    pairs = {(c.i, c.j) for seed in range(60) for c in chosen_pairs(constant, names=["p"], seed=seed)}
    assert pairs == set(pair_positions(4))


def test_the_cap_comes_before_the_quota() -> None:
    """Prompt a holds the three best pairs; with one a prompt, half of the two that are left is its best."""
    utilities = [[9.0, 8.0, 7.0], [1.0]]

    def chosen(**how: Any) -> list[tuple[int, int, int]]:
        return [(c.prompt, c.i, c.j) for c in chosen_pairs(utilities, names=["a", "b"], seed=0, **how)]

    assert chosen() == [(0, 0, 1), (1, 0, 1)]
    assert chosen(fraction=0.5) == [(0, 0, 1)]
    assert chosen(per_prompt=2) == [(0, 0, 1), (0, 0, 2), (1, 0, 1)]
    assert chosen(per_prompt=None, fraction=0.5) == [(0, 0, 1), (0, 0, 2)]
    assert chosen(count=2, excluded={(0, 0, 1), (0, 0, 2)}) == [(0, 1, 2), (1, 0, 1)]


def test_the_utility_reported_is_the_one_before_the_change_of_direction() -> None:
    (pair,) = chosen_pairs([[3.0, 1.0, 2.0]], names=["a"], seed=0, direction="smallest")
    assert (pair.i, pair.j, pair.utility) == (0, 2, 1.0)


@given(
    st.lists(
        st.sampled_from([0, 1, 3, 6]).flatmap(lambda p: st.lists(st.integers(0, 4), min_size=p, max_size=p)),
        max_size=6,
    ),
    st.sampled_from([1, 2, None]),
    st.sampled_from(["largest", "smallest", "middle", "tails"]),
    st.integers(1, 12),
    st.randoms(),
)
def test_chosen_pairs_respect_cap_bars_and_count(
    utilities: list[list[int]], per_prompt: int | None, direction: Direction, count: int, rng: random.Random
) -> None:
    names = [f"p{i}" for i in range(len(utilities))]
    every = {(p, i, j) for p, us in enumerate(utilities) for i, j in pair_positions(responses_of(len(us)))}
    excluded = {key for key in sorted(every) if rng.random() < 0.3}
    chosen = chosen_pairs(
        utilities, names=names, seed=0, direction=direction, count=count, per_prompt=per_prompt, excluded=excluded
    )
    keys = [(c.prompt, c.i, c.j) for c in chosen]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= every - excluded
    cap = len(every) if per_prompt is None else per_prompt
    of_prompt = [sum(key[0] == p for key in keys) for p in range(len(utilities))]
    most = [min(cap, sum(key[0] == p for key in every - excluded)) for p in range(len(utilities))]
    assert all(taken <= limit for taken, limit in zip(of_prompt, most, strict=True))
    assert len(keys) == min(count, sum(most))


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="per_prompt=0 chooses no pair; choose per_prompt >= 1, or null"):
        Certainty(per_prompt=0)


def test_a_prompt_with_more_pairs_is_chosen_no_more_often() -> None:
    """Six prompts with one pair and six with six, all equal: on average half of each kind is chosen."""
    names = [f"p{i}" for i in range(12)]
    utilities = [[0.0] * (1 if i % 2 else 6) for i in range(12)]
    few = [sum(c.prompt % 2 for c in chosen_pairs(utilities, names=names, seed=seed, count=6)) for seed in range(400)]
    assert sum(few) / len(few) == pytest.approx(3.0, abs=0.15)


def test_a_tie_gives_every_prompt_one_pair_before_it_gives_any_a_second() -> None:
    utilities = [[0.0] * 6, [0.0], [0.0] * 3]
    for seed in range(20):
        order = [c.prompt for c in chosen_pairs(utilities, names=["a", "b", "c"], seed=seed, per_prompt=None)]
        assert [sorted(order[start:end]) for start, end in ((0, 3), (3, 5), (5, 7), (7, 10))] == [
            [0, 1, 2],
            [0, 2],
            [0, 2],
            [0, 0, 0],
        ]


def test_the_top_of_a_ranking_counts_pairs_that_are_labeled_already() -> None:
    ranked = [ChosenPair(0, 0, 1, 9.0), ChosenPair(1, 0, 1, 8.0), ChosenPair(0, 0, 2, 7.0), ChosenPair(2, 0, 1, 6.0)]
    assert [pair.utility for pair in top_pairs(ranked, 2, per_prompt=1, labeled={0: 1})] == [8.0, 6.0]
    assert [pair.utility for pair in top_pairs(ranked, 9, per_prompt=2, labeled={0: 1})] == [9.0, 8.0, 6.0]


# -- the callbacks -------------------------------------------------------------------------------------------


def lines_of_code(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


SELECTORS = (
    "certainty",
    "d_optimal",
    "dissimilarity",
    "entropy",
    "optune",
    "predicted_gain",
    "predicted_gap",
    "random",
    "spread",
)


@pytest.mark.parametrize("name", [*SELECTORS, "predicted_gap"])
def test_a_selector_is_short(name: str) -> None:
    """Its arithmetic is in methods/selection.py, its settings in callbacks/selector.py."""
    file = ROOT / "callbacks" / f"{name}.py"
    both = "def response_utilities" in file.read_text()  # chooses single responses too
    assert 10 <= lines_of_code(file) <= (70 if both else 40)


@pytest.mark.parametrize("selector", [Certainty, Dissimilarity, Entropy, OPTune])
def test_every_selector_refuses_settings_that_choose_nothing(selector: Any) -> None:
    with pytest.raises(ValueError, match=r"fraction=0\.0 is no share"):
        selector(fraction=0.0)
    with pytest.raises(ValueError, match=r"fraction=\S+ and count=3 both say how many"):
        selector(count=3)
    with pytest.raises(ValueError, match="direction='up' is none of largest, smallest, middle, tails"):
        selector(direction="up")
    assert selector(fraction=None, count=3).count == 3
