"""Utilities of prompts or pairs that a reward head predicts.

Axes: P prompts, N responses of one prompt, X all pairs of a round, D features of a pair.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from choosy.methods.selection import pair_positions
from choosy.types import seed_of

AT_ONCE = 32  # values that are computed together


def predicted_gap(reward_N: Tensor, deviation_N: Tensor | None = None, bonus: float = 0.0) -> list[float]:
    """The predicted reward gap of each pair of a prompt's responses: |r_i - r_j| + bonus * (sd_i + sd_j).

    With a bonus it is the distance from the upper bound of one reward to the lower bound of the other (DeltaUCB, arXiv
    2603.09692), so that responses about which little is known are tried.

    Args:
        reward_N: Predicted rewards.
        deviation_N: Their standard deviations; not needed without a bonus.
        bonus: How many standard deviations a bound is away from the mean.

    Example:
        >>> predicted_gap(torch.tensor([1.0, 0.0, 3.0]))
        [1.0, 2.0, 3.0]
        >>> predicted_gap(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.5, 2.0, 0.0]), bonus=1.0)
        [3.5, 2.5, 5.0]
    """
    gap_NN = (reward_N[:, None] - reward_N[None, :]).abs()
    if bonus and deviation_N is not None:
        gap_NN = gap_NN + bonus * (deviation_N[:, None] + deviation_N[None, :])
    return [gap_NN[i, j].item() for i, j in pair_positions(len(reward_N))]


def gap_to_average(
    reward_N: Tensor, deviation_N: Tensor | None = None, *, average: float, bonus: float = 0.0
) -> list[float]:
    """The predicted gap between each response and an average one: |r - average| + bonus * sd.

    It is `predicted_gap` for responses that are judged by themselves, good or bad. The largest are those about which
    the verdict is least in doubt; with a bonus, those about which little is known are tried.

    Args:
        reward_N: Predicted rewards.
        deviation_N: Their standard deviations; not needed without a bonus.
        average: The reward of an average response.
        bonus: How many standard deviations a bound is away from the mean.

    Example:
        >>> gap_to_average(torch.tensor([1.0, -2.0]), average=0.5)
        [0.5, 2.5]
        >>> gap_to_average(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), average=0.5, bonus=1.0)
        [3.5, 3.0]
    """
    gap_N = (reward_N - average).abs()
    if bonus and deviation_N is not None:
        gap_N = gap_N + bonus * deviation_N
    gaps: list[float] = gap_N.tolist()
    return gaps


def predicted_gain(rewards: Sequence[Tensor | None]) -> list[float]:
    """The predicted spread of each prompt's stored responses: the largest gap that a label of fresh ones may show.

    Args:
        rewards: Per prompt the predicted rewards (N,) of its stored responses; None for a prompt never sampled, which
            ranks as an average one.

    Example:
        >>> predicted_gain([torch.tensor([1.0, -1.0]), None, torch.tensor([0.5, 0.5])])
        [2.0, 1.0, 0.0]
    """
    spreads = [None if r is None or len(r) == 0 else (r.max() - r.min()).item() for r in rewards]
    known = [spread for spread in spreads if spread is not None]
    average = sum(known) / len(known) if known else 0.0
    return [average if spread is None else spread for spread in spreads]


def explored(utilities: Mapping[str, Sequence[float]], share: float, *, seed: int) -> dict[str, Sequence[float]]:
    """Let chance choose the pairs of a share of the prompts.

    Such a prompt takes the utilities of another one, in an order drawn by lot, so that it ranks as often as any other
    and about this share of whatever is chosen was chosen by chance.

    Args:
        utilities: By the prompts' ids the utilities of their pairs; the result depends on the ids, not on their order.
        share: Probability that a prompt is given up to chance.
        seed: Of the draws.

    Example:
        >>> explored({"a": [1.0, 2.0], "b": [3.0, 4.0]}, 0.0, seed=0)
        {'a': [1.0, 2.0], 'b': [3.0, 4.0]}
        >>> sorted(explored({"a": [1.0, 2.0]}, 1.0, seed=0)["a"])
        [1.0, 2.0]
    """
    if share == 0:
        return dict(utilities)
    alike: dict[int, list[str]] = {}  # ids by the number of pairs
    for name in sorted(utilities):
        alike.setdefault(len(utilities[name]), []).append(name)

    def drawn(name: str) -> Sequence[float]:
        draw = random.Random(seed_of(seed, "explore", name))
        if draw.random() >= share:
            return utilities[name]
        others = alike[len(utilities[name])]
        taken = list(utilities[others[draw.randrange(len(others))]])
        draw.shuffle(taken)
        return taken

    return {name: drawn(name) for name in utilities}


def pair_features(embed_ND: Tensor) -> Tensor:
    """Differences phi_i - phi_j (X, D) of the embeddings of each pair of a prompt's responses.

    Example:
        >>> pair_features(torch.tensor([[1.0], [5.0], [7.0]])).tolist()
        [[-4.0], [-6.0], [-2.0]]
    """
    i_X, j_X = torch.tensor(pair_positions(len(embed_ND)), dtype=torch.long).view(-1, 2).T
    gap_XD: Tensor = embed_ND[i_X] - embed_ND[j_X]
    return gap_XD


def d_optimal(
    feature_XD: Tensor,
    prompts: Sequence[Hashable],
    k: int,
    *,
    per_prompt: int | None,
    ridge: float,
    known_KD: Tensor | None = None,
) -> list[float]:
    """Utilities under which the k pairs rank first that tell most about a linear reward (ADPO, arXiv 2503.01076).

    Pairs are taken one after the other: argmax over x of f_x' C^-1 f_x, then C <- C + f_x f_x' (Sherman-Morrison). The
    utility of a pair is this value when it was taken, or at the end; no value grows, so the first taken rank first. For
    the same reason an old value bounds a later one, and only the pairs with the largest are computed again (lazy
    greedy, Minoux 1978).

    Args:
        feature_XD: f = phi(response i) - phi(response j) of each pair.
        prompts: The prompt of each pair.
        k: How many pairs are taken.
        per_prompt: Most pairs taken of one prompt; None = any number.
        ridge: C starts as ridge * (mean squared length of the features) * identity.
        known_KD: Features of pairs that are labeled already; C starts with these too.

    Example:
        >>> one, other = [1.0, 0.0], [0.0, 1.0]
        >>> [round(u, 2) for u in d_optimal(torch.tensor([one, one, other]), [0, 1, 2], 2, per_prompt=1, ridge=1.0)]
        [1.0, 0.5, 1.0]
    """
    feature_XD = feature_XD.double()
    if bool((broken_X := ~feature_XD.isfinite().all(1)).any()):  # the ranking names the pair
        return [math.nan if broken else 0.0 for broken in broken_X.tolist()]
    length = feature_XD.square().sum(1).mean().item() if len(prompts) else 1.0
    start_DD = ridge * (length or 1.0) * torch.eye(feature_XD.shape[1], dtype=torch.float64)
    if known_KD is not None and len(known_KD):
        start_DD += known_KD.double().T @ known_KD.double()
    inverse_DD = torch.linalg.inv(start_DD)

    def values(rows_XD: Tensor) -> Tensor:
        value_X: Tensor = (rows_XD @ inverse_DD * rows_XD).sum(1)
        return value_X

    bound_X = values(
        feature_XD
    )  # no smaller than the value, and equal to it in step `known_X`; -inf = out of the choice
    known_X = torch.zeros(len(prompts), dtype=torch.long)
    numbers = {name: n for n, name in enumerate(dict.fromkeys(prompts))}
    prompt_X, taken = torch.tensor([numbers[name] for name in prompts]), Counter[int]()
    chosen: list[int] = []
    utilities: list[float] = []
    for step in range(min(k, len(prompts))):
        while known_X[x := int(bound_X.argmax())] < step and bound_X[x] > -math.inf:
            top_Y = bound_X.topk(min(AT_ONCE, len(prompts))).indices
            top_Y = top_Y[(known_X[top_Y] < step) & (bound_X[top_Y] > -math.inf)]
            bound_X[top_Y], known_X[top_Y] = values(feature_XD[top_Y]), step
        if bound_X[x] == -math.inf:
            break
        chosen.append(x)
        utilities.append(bound_X[x].item())
        taken[int(prompt_X[x])] += 1
        full = taken[int(prompt_X[x])] == per_prompt
        bound_X[prompt_X == prompt_X[x] if full else x] = -math.inf
        pulled_D = inverse_DD @ feature_XD[x]
        inverse_DD -= torch.outer(pulled_D, pulled_D) / (1 + utilities[-1])
    utility_X = values(feature_XD)
    utility_X[chosen] = torch.tensor(utilities, dtype=torch.float64)
    return utility_X.tolist()
