"""What is worth its cost: utilities of prompts and pairs, and the one way to choose by them.

A utility says how much the next unit of budget would teach if it were spent on this item. **Larger = spend here
first, always.** A selector that wants the opposite end says so through a `Direction`, never through a sign.

Axes: P prompts, N responses of one prompt, D embedding width; pairs (i, j) with i < j in `pair_positions` order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from itertools import combinations, groupby
from statistics import fmean
from typing import Literal, NamedTuple

import torch
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


def largest(utilities: Sequence[float], k: int, *, names: Sequence[str], seed: int) -> list[int]:
    """Positions of the k largest utilities, the most useful first.

    Ties are broken by a hash of (seed, name), so the choice depends on neither position nor rank.

    Raises:
        ValueError: A utility is nan or infinite; the message names the item.

    Example:
        >>> largest([0.1, 0.9, 0.5], 2, names=["a", "b", "c"], seed=0)
        [1, 2]
    """
    assert len(utilities) == len(names), f"{len(utilities)} utilities for {len(names)} names"
    for name, utility in zip(names, utilities, strict=True):
        if not math.isfinite(utility):
            raise ValueError(f"The utility of {name} is {utility}; every utility must be a finite number.")
    order = sorted(range(len(names)), key=lambda i: -utilities[i])
    chosen: list[int] = []
    for _, tied in groupby(order, key=lambda i: utilities[i]):
        if len(chosen) >= k:
            break
        equals = list(tied)
        chosen += sorted(equals, key=lambda i: (seed_of(seed, names[i]), names[i])) if len(equals) > 1 else equals
    return chosen[:k]


def toward(utilities: Sequence[float], direction: Direction) -> list[float]:
    """Utilities after a change of direction, so that larger means *spend here first* again.

    `middle` prefers the items near the median rank, `tails` those far from it (active preference learning's
    MID and TAILS); equal utilities share their mean rank.

    Example:
        >>> toward([5.0, 1.0, 3.0], "smallest")
        [-5.0, -1.0, -3.0]
        >>> toward([5.0, 1.0, 3.0], "middle")
        [-1.0, -1.0, -0.0]
    """
    if direction == "largest":
        return list(utilities)
    if direction == "smallest":
        return [-u for u in utilities]
    if direction not in ("middle", "tails"):
        raise ValueError(f"direction={direction!r} is none of largest, smallest, middle, tails.")
    if not all(map(math.isfinite, utilities)):
        return list(utilities)  # `largest` names the culprit
    known = torch.tensor(utilities, dtype=torch.float64)
    _, group_n, size_g = torch.unique(known, return_inverse=True, return_counts=True)
    rank_g = size_g.cumsum(0) - (size_g + 1) / 2  # mean rank of equal utilities
    from_middle = (rank_g[group_n] - (len(utilities) - 1) / 2).abs()
    distances: list[float] = from_middle.tolist()
    return distances if direction == "tails" else [-d for d in distances]


# -- prompts ---------------------------------------------------------------------------------------------------


def least_rewarded(rewards: Sequence[Sequence[float | None] | None], statistic: Statistic = "mean") -> list[float]:
    """OPTune: the lower the stored reward of a prompt's responses, the larger the utility of sampling it again.

    Args:
        rewards: Per prompt the rewards of its stored responses. An entry None has not been scored: a prompt
            without any score ranks as an average one. None for a prompt never sampled: it goes first.
        statistic: Which reward stands for the prompt: the `mean`, the `best` or the `worst` of its responses.

    Returns:
        P utilities: minus the statistic (arXiv 2406.07657, section 3: the lowest rewards are regenerated).

    Example:
        >>> least_rewarded([[1.0, 0.0], [-1.0, 0.0], None])
        [-0.5, 0.5, 1.5]
    """
    if statistic not in ("mean", "best", "worst"):
        raise ValueError(f"statistic={statistic!r} is none of mean, best, worst.")
    known: dict[int, float] = {}
    for i, given in enumerate(rewards):
        if scored := [r for r in given or () if r is not None]:
            of_scored = {"mean": fmean(scored), "best": max(scored), "worst": min(scored)}
            known[i] = -of_scored[statistic] if all(map(math.isfinite, scored)) else math.nan
    finite = [u for u in known.values() if math.isfinite(u)]  # `largest` names the prompt of any other
    average = sum(finite) / len(finite) if finite else 0.0
    first = max(finite, default=0.0) + 1.0
    return [known.get(i, first if given is None else average) for i, given in enumerate(rewards)]


def sequence_entropy(logps: Sequence[Sequence[float]]) -> list[float]:
    """Predictive entropy of each prompt: minus the mean log-probability of responses sampled at temperature 1.

    Log-probabilities are summed over tokens, not divided by length (active preference learning, arXiv 2402.08114,
    Eq. 7). Each prompt's estimate uses its own samples only; the authors' batched code mixes prompts.

    Example:
        >>> sequence_entropy([(-12.0, -15.0, -9.0)])
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


def implicit_rewards(logps_N: Sequence[float], ref_logps_N: Sequence[float], beta: float) -> list[float]:
    """beta * (log pi - log ref) of each response: the reward that DPO's policy stands for (arXiv 2305.18290, Eq. 5).

    Example:
        >>> implicit_rewards([-40.0, -55.0], [-42.0, -50.0], beta=0.1)
        [0.2, -0.5]
    """
    return [beta * (logp - ref) for logp, ref in zip(logps_N, ref_logps_N, strict=True)]


def certainty(implicit_rewards_N: Sequence[float]) -> list[float]:
    """How sure the policy is which of two responses is better: |difference of their implicit rewards|.

    Larger = surer. The authors rank by u = 1 - 2|sigmoid(difference) - 1/2| and keep the smallest: the same
    order, but their sigmoid saturates in floating point (arXiv 2402.08114, section 4).

    Example:
        >>> certainty([0.5, -0.25, 0.0])
        [0.75, 0.5, 0.25]
    """
    return [abs(implicit_rewards_N[i] - implicit_rewards_N[j]) for i, j in pair_positions(len(implicit_rewards_N))]


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
    if not positions:
        return utilities
    if not all(map(math.isfinite, utilities)):
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
    """A pair that a label shall be bought for: responses i < j of the prompt at position `prompt`."""

    prompt: int
    i: int
    j: int
    utility: float


def choose_pairs(
    utilities: Sequence[Sequence[float]],
    *,
    names: Sequence[str],
    seed: int,
    direction: Direction = "largest",
    fraction: float | None = None,
    count: int | None = None,
    per_prompt: int | None = 1,
    barred: Set[tuple[int, int, int]] = frozenset(),
) -> list[ChosenPair]:
    """The pairs to label, the most useful first: at most `per_prompt` of a prompt, then the quota over all.

    Args:
        utilities: Per prompt the utilities of its pairs, in `pair_positions` order.
        names: The prompts' ids.
        seed: Decides ties, together with the names.
        direction: Which end is spent on first.
        fraction: Share of what `per_prompt` leaves over; `count` gives a number instead.
        count: See `fraction`.
        per_prompt: Most pairs of one prompt; None = any number.
        barred: (prompt, i, j) that shall not be chosen: equal texts, or pairs that have a label already.

    Example:
        >>> choose_pairs([[0.1], [0.7], [0.4]], names=["a", "b", "c"], seed=0, count=2)
        [ChosenPair(prompt=1, i=0, j=1, utility=0.7), ChosenPair(prompt=2, i=0, j=1, utility=0.4)]
    """
    if per_prompt is not None and per_prompt < 1:
        raise ValueError(f"per_prompt={per_prompt} chooses no pair; choose per_prompt >= 1, or null for no cap.")
    competing = [
        ChosenPair(p, i, j, utility)
        for p, of_prompt in enumerate(utilities)
        for (i, j), utility in zip(pair_positions(responses_of(len(of_prompt))), of_prompt, strict=True)
        if (p, i, j) not in barred
    ]
    directed = toward([pair.utility for pair in competing], direction)
    order = largest(directed, len(directed), names=[f"{names[c.prompt]}:{c.i}-{c.j}" for c in competing], seed=seed)
    taken = [0] * len(names)
    capped: list[ChosenPair] = []
    for at in order:
        pair = competing[at]
        if per_prompt is None or taken[pair.prompt] < per_prompt:
            taken[pair.prompt] += 1
            capped.append(pair)
    return capped[: quota(len(capped), fraction=fraction, count=count)] if capped else []


def responses_of(pairs: int) -> int:
    """How many responses give so many pairs.

    Example:
        >>> [responses_of(p) for p in (0, 1, 3, 6)]
        [1, 2, 3, 4]
    """
    n = (1 + math.isqrt(1 + 8 * pairs)) // 2
    assert n * (n - 1) // 2 == pairs, f"no number of responses gives {pairs} pairs"
    return n
