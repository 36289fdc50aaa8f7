"""Utilities of prompts or pairs, from which one shared rule chooses.

A utility says how much the next unit of budget would teach if it were spent on this item. **Larger = spend here
first, always.** A selector that wants the opposite end says so through a `Direction`, never through a sign.

Axes: P prompts, N responses of one prompt, D embedding width; pairs (i, j) with i < j in `pair_positions` order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import combinations, islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.types import seed_of

Direction = Literal["largest", "smallest", "middle", "tails"]
Statistic = Literal["mean", "best", "worst"]


def quota(n: int, *, fraction: float | None = None, count: int | None = None) -> int:
    """How many of n items may be chosen: `count` of them, or the `fraction`, rounded up; all where neither is given.

    Example:
        >>> quota(10, fraction=0.25), quota(10, count=4), quota(10)
        (3, 4, 10)
    """
    if fraction is not None and count is not None:
        raise ValueError(
            f"fraction={fraction} and count={count} both say how many to choose; keep one, "
            "and set the other to null, as in callbacks.certainty.fraction=null callbacks.certainty.count=64."
        )
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction} is no share of the items; choose 0 < fraction <= 1.")
        return math.ceil(fraction * n - 1e-9)  # 0.3 * 10 is 3.0000000000000004 to a float
    if count is not None:
        if count < 1:
            raise ValueError(f"count={count} chooses nothing; choose count >= 1, or null for all.")
        return min(count, n)
    return n


def top_k(utilities: Sequence[float], k: int, *, names: Sequence[str], seed: int) -> list[int]:
    """Positions of the k largest utilities, the most useful first.

    Ties are broken by a hash of (seed, name), so the choice depends on neither position nor rank.

    Raises:
        ValueError: A utility is nan or infinite; the message names the item.

    Example:
        >>> top_k([0.1, 0.9, 0.5], 2, names=["a", "b", "c"], seed=0)
        [1, 2]
    """

    def by_name(tied: list[int]) -> list[int]:
        return sorted(tied, key=lambda i: (seed_of(seed, names[i]), names[i]))

    return list(islice(ranking(utilities, by_name, names=names), k))


def ranking(
    utilities: Sequence[float], break_ties: Callable[[list[int]], list[int]], *, names: Sequence[str]
) -> Iterator[int]:
    """Positions in the order of falling utility; `break_ties` orders the positions of equal ones."""
    assert len(utilities) == len(names)
    known = torch.tensor(utilities, dtype=torch.float64)
    for at in (~known.isfinite()).nonzero().flatten().tolist():
        raise ValueError(f"The utility of {names[at]} is {utilities[at]}; every utility must be a finite number.")
    sorted_N, order_N = known.sort(descending=True, stable=True)
    places = iter(order_N.tolist())
    for size in torch.unique_consecutive(sorted_N, return_counts=True)[1].tolist():
        tied = list(islice(places, size))
        yield from break_ties(tied) if size > 1 else tied


def orient(utilities: Sequence[float], direction: Direction) -> list[float]:
    """Utilities after a change of direction, so that larger means *spend here first* again.

    `middle` prefers the items near the median rank, `tails` those far from it (active preference learning's
    MID and TAILS); equal utilities share their mean rank.

    Example:
        >>> orient([5.0, 1.0, 3.0], "smallest")
        [-5.0, -1.0, -3.0]
        >>> orient([5.0, 1.0, 3.0], "middle")
        [-1.0, -1.0, -0.0]
    """
    if direction == "largest":
        return list(utilities)
    if direction == "smallest":
        return [-u for u in utilities]
    if direction not in ("middle", "tails"):
        raise ValueError(f"direction={direction!r} is none of largest, smallest, middle, tails.")
    if not utilities or not all(map(math.isfinite, utilities)):
        return list(utilities)  # `top_k` names the culprit
    known = torch.tensor(utilities, dtype=torch.float64)
    _, group_n, size_g = torch.unique(known, return_inverse=True, return_counts=True)
    rank_g = size_g.cumsum(0) - (size_g + 1) / 2  # mean rank of equal utilities
    from_middle = (rank_g[group_n] - (len(utilities) - 1) / 2).abs()
    distances: list[float] = from_middle.tolist()
    return distances if direction == "tails" else [-d for d in distances]


# -- prompts ---------------------------------------------------------------------------------------------------


def reward_statistic(reward_PN: Tensor, scored_PN: Tensor, statistic: Statistic = "mean") -> Tensor:
    """Reduce the rewards of each prompt's responses to one number.

    Args:
        reward_PN: Rewards of the stored responses of each prompt.
        scored_PN: True where there is a reward.
        statistic: The `mean`, the `best` or the `worst` of the prompt's rewards.

    Returns:
        P numbers: 0 for a prompt without any reward, nan for one with a reward that is not finite.

    Example:
        >>> scored_PN = torch.tensor([[True, True], [True, False]])
        >>> reward_statistic(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), scored_PN).tolist()
        [2.0, 2.0]
    """
    reward_PN = reward_PN.double()
    count_P = scored_PN.sum(1)
    if statistic == "mean":
        of_P = reward_PN.where(scored_PN, 0.0).sum(1) / count_P.clamp(min=1)
    elif statistic in ("best", "worst"):
        end = -math.inf if statistic == "best" else math.inf
        ended_PM = F.pad(reward_PN.where(scored_PN, end), (0, 1), value=end)  # one column more: N may be 0
        of_P = ended_PM.amax(1) if statistic == "best" else ended_PM.amin(1)
    else:
        raise ValueError(f"statistic={statistic!r} is none of mean, best, worst.")
    broken_P = (scored_PN & ~reward_PN.isfinite()).any(1)
    return of_P.where(count_P > 0, 0.0).where(~broken_P, math.nan)


def optune(score_P: Tensor, scored_P: Tensor, sampled_P: Tensor, direction: Direction = "largest") -> list[float]:
    """OPTune: the lower the stored reward of a prompt, the larger the utility of sampling it again.

    Args:
        score_P: The reward that stands for each prompt (see `reward_statistic`).
        scored_P: False for a prompt without any reward: it ranks as an average one.
        sampled_P: False for a prompt that was never sampled: it comes first in this direction.
        direction: Which end of the utilities is spent on first.

    Returns:
        P utilities: minus the score (arXiv 2406.07657, section 3: the lowest rewards are regenerated).

    Example:
        >>> optune(torch.tensor([0.5, -0.5, 0.0]), torch.tensor([True, True, False]), torch.tensor([True, True, False]))
        [-0.5, 0.5, 1.5]
    """
    utility_P = -score_P.double()
    known_P = utility_P[scored_P & utility_P.isfinite()]
    known_P = known_P if len(known_P) else torch.zeros(1, dtype=torch.float64)
    average = known_P.mean()
    first = {"smallest": known_P.min() - 1, "middle": average}.get(direction, known_P.max() + 1)
    utilities: list[float] = utility_P.where(scored_P, average).where(sampled_P, first).tolist()
    return utilities


def entropy(logps: Sequence[Sequence[float]]) -> list[float]:
    """Predictive entropy of each prompt: minus the mean log-probability of responses sampled at temperature 1.

    Log-probabilities are summed over tokens, not divided by length (active preference learning, arXiv 2402.08114,
    Eq. 7). Each prompt's estimate uses its own samples only; the authors' batched code mixes prompts.

    Example:
        >>> entropy([(-12.0, -15.0, -9.0)])
        [12.0]
    """
    return [-sum(of_prompt) / len(of_prompt) for of_prompt in logps]


# -- pairs -----------------------------------------------------------------------------------------------------


def pair_positions(n: int) -> list[tuple[int, int]]:
    """All pairs i < j of n responses, in the order in which every function here lists them.

    Example:
        >>> pair_positions(3)
        [(0, 1), (0, 2), (1, 2)]
    """
    return list(combinations(range(n), 2))


def certainty(implicit_rewards_N: Sequence[float]) -> list[float]:
    """How sure the policy is which of two responses is better: |difference of their implicit rewards|.

    Larger = surer. The authors rank by u = 1 - 2|sigmoid(difference) - 1/2| and keep the smallest: the same
    order, but their sigmoid saturates in floating point (arXiv 2402.08114, section 4).

    Example:
        >>> certainty([0.5, -0.25, 0.0])
        [0.75, 0.5, 0.25]
    """
    return [abs(implicit_rewards_N[i] - implicit_rewards_N[j]) for i, j in pair_positions(len(implicit_rewards_N))]


def length_matched(lengths_N: Sequence[float], tolerance: float = 0.1) -> list[float]:
    """How nearly two responses have the same length: minus |log ratio of lengths|; ratios within the tolerance tie.

    Larger = more alike. Chance chooses among the pairs that tie, so that it is random choice without differences in
    length: the fair control for a selector whose pairs differ in length as well as in meaning.

    Example:
        >>> length_matched([20, 21, 40])[0] == 0, [round(u, 2) for u in length_matched([20, 21, 40], 0.0)]
        (True, [-0.05, -0.69, -0.64])
    """
    length_N = [max(length, 1) for length in lengths_N]
    ratios = [max(one, other) / min(one, other) for one, other in combinations(length_N, 2)]
    return [-max(math.log(ratio / (1 + tolerance)), 0.0) for ratio in ratios]


def dissimilarity(embed_ND: Tensor) -> list[float]:
    """How different two responses mean: minus the cosine of their embeddings (REAL, arXiv 2409.17169).

    Larger = more different.

    Example:
        >>> dissimilarity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        [-0.0, 1.0, -0.0]
    """
    unit_ND = torch.nn.functional.normalize(embed_ND.double(), dim=-1)
    cosine_NN = unit_ND @ unit_ND.T
    return [-cosine_NN[i, j].item() for i, j in pair_positions(len(embed_ND))]


def centroid(embed_ND: Tensor) -> list[float]:
    """REAL's centroid pair: the two responses nearest to the centres of a 2-means clustering come first.

    The utility is `dissimilarity`, plus 2 for the centroid pair, which puts it above every other pair.

    Example:
        >>> utilities = centroid(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.1], [-0.9, -0.1]]))
        >>> [pair for pair, u in zip(pair_positions(4), utilities) if u > 1]
        [(0, 2)]
    """
    utilities = dissimilarity(embed_ND)
    positions = pair_positions(len(embed_ND))
    if not positions or not all(map(math.isfinite, utilities)):
        return utilities
    centres_2D = two_means(embed_ND.double(), seeds=positions[max(range(len(positions)), key=utilities.__getitem__)])
    nearest = torch.cdist(centres_2D, embed_ND.double()).argsort(dim=-1, stable=True).tolist()
    one = nearest[0][0]
    other = next(i for i in nearest[1] if i != one)
    utilities[positions.index((min(one, other), max(one, other)))] += 2
    return utilities


def two_means(points_ND: Tensor, seeds: tuple[int, int], max_steps: int = 100) -> Tensor:
    """Centres (2, D) of Lloyd's 2-means, started from two of the points; a cluster never runs empty."""
    centres_2D = points_ND[list(seeds)]
    for _ in range(max_steps):
        nearest_N = torch.cdist(points_ND, centres_2D).argmin(dim=-1)
        if len(set(nearest_N.tolist())) < 2:
            break  # all points coincide
        moved_2D = torch.stack([points_ND[nearest_N == c].mean(dim=0) for c in (0, 1)])
        if torch.equal(moved_2D, centres_2D):
            break
        centres_2D = moved_2D
    return centres_2D


class ChosenPair(NamedTuple):
    """A pair that a label may be bought for: responses i < j of the prompt at position `prompt`, or i = j = 0, its only
    response.
    """

    prompt: int
    i: int
    j: int
    utility: float


class PairChoice(NamedTuple):
    """Which pairs to label.

    Attributes:
        ranked: All pairs that compete, the most useful first.
        wanted: How many of them to label.
        per_prompt: Most labeled pairs of one prompt; None = any number.
        top_up: Whether ties and invalid verdicts are replaced by the next pairs of the ranking.
        score_all: Whether all responses of a pair's prompt are scored, and two of them make its pair.
    """

    ranked: list[ChosenPair]
    wanted: int
    per_prompt: int | None = None
    top_up: bool = False
    score_all: bool = False


def rank_pairs(
    utilities: Sequence[Sequence[float]],
    *,
    names: Sequence[str],
    seed: int,
    direction: Direction = "largest",
    excluded: Set[tuple[int, int, int]] = frozenset(),
) -> list[ChosenPair]:
    """All pairs that compete for a label, the most useful first.

    Of equal utilities every prompt's first pair comes before any second one, in an order drawn by the seed, so that
    no prompt is favoured for having more pairs.

    Args:
        utilities: Per prompt the utilities of its pairs, in `pair_positions` order.
        names: The prompts' ids.
        seed: Decides ties, together with the names.
        direction: Which end is spent on first.
        excluded: (prompt, i, j) that do not compete: equal texts, or pairs that have been judged.

    Example:
        >>> [(pair.prompt, pair.utility) for pair in rank_pairs([[0.1], [0.7], [0.4]], names=["a", "b", "c"], seed=0)]
        [(1, 0.7), (2, 0.4), (0, 0.1)]
    """
    competing = [
        ChosenPair(p, i, j, utility)
        for p, of_prompt in enumerate(utilities)
        for (i, j), utility in zip(pair_positions(responses_of(len(of_prompt))), of_prompt, strict=True)
        if (p, i, j) not in excluded
    ]

    def prompts_in_turn(tied: list[int]) -> list[int]:
        turn: Counter[int] = Counter()
        tied_pairs = Counter(competing[at].prompt for at in tied)
        keys = {}

        def drawn(at: int) -> int:  # orders the pairs of one prompt
            prompt, i, j, _ = competing[at]
            return seed_of(seed, names[prompt], i, j) if tied_pairs[prompt] > 1 else 0

        for at in sorted(tied, key=drawn):
            prompt = competing[at].prompt
            keys[at] = (turn[prompt], seed_of(seed, names[prompt]), names[prompt])
            turn[prompt] += 1
        return sorted(tied, key=keys.__getitem__)

    oriented = orient([pair.utility for pair in competing], direction)
    places = [f"{names[pair.prompt]}:{pair.i}-{pair.j}" for pair in competing]
    return [competing[at] for at in ranking(oriented, prompts_in_turn, names=places)]


def top_pairs(
    ranked: Iterable[ChosenPair], k: int, *, per_prompt: int | None = 1, labeled: Mapping[int, int] | None = None
) -> list[ChosenPair]:
    """The first k pairs of a ranking, where no prompt gets more than `per_prompt` labeled pairs.

    Args:
        ranked: Pairs, the most useful first.
        k: Most pairs.
        per_prompt: Most pairs of one prompt; None = any number.
        labeled: Number of pairs that the prompts at these positions have already.

    Example:
        >>> ranked = [ChosenPair(0, 0, 1, 9.0), ChosenPair(0, 0, 2, 8.0), ChosenPair(1, 0, 1, 7.0)]
        >>> [(pair.prompt, pair.utility) for pair in top_pairs(ranked, 2)]
        [(0, 9.0), (1, 7.0)]
    """
    taken = Counter(labeled)
    top: list[ChosenPair] = []
    for pair in ranked:
        if len(top) >= k:
            break
        if per_prompt is None or taken[pair.prompt] < per_prompt:
            taken[pair.prompt] += 1
            top.append(pair)
    return top


def responses_of(pairs: int) -> int:
    """How many responses give so many pairs.

    Example:
        >>> [responses_of(p) for p in (0, 1, 3, 6)]
        [1, 2, 3, 4]
    """
    n = (1 + math.isqrt(1 + 8 * pairs)) // 2
    assert n * (n - 1) // 2 == pairs, f"no number of responses gives {pairs} pairs"
    return n
