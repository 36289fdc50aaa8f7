"""Means of noisy rewards, shrunk towards the mean of all prompts."""

from __future__ import annotations

from torch import Tensor


def shrunk_means(count_P: Tensor, mean_P: Tensor, m2_P: Tensor) -> Tensor:
    """Empirical-Bayes means: each prompt's mean reward, drawn towards the mean of all by as much as it is noise.

    A prompt's n rewards scatter around its own mean with variance s2, and the means of prompts around mu with variance
    t2, both estimated from all prompts (one-way analysis of variance). The posterior mean is mu + B (mean - mu), where
    B = t2 / (t2 + s2 / n): few rewards or much scatter say little about a prompt.

    Args:
        count_P: Number of rewards of each prompt; 0 if it has none.
        mean_P: Their mean.
        m2_P: Their sum of squared differences from the mean.

    Returns:
        P posterior means; mu for a prompt without rewards, nan for one with a reward that is not finite.

    Example:
        >>> from torch import tensor
        >>> shrunk_means(tensor([2, 2]), tensor([3.0, 1.0]), tensor([1.0, 1.0])).tolist()  # s2 = 1, t2 = 1.5, B = 0.75
        [2.75, 1.25]
    """
    count_P, mean_P, m2_P = count_P.double(), mean_P.double(), m2_P.double()
    known_P = (count_P > 0) & m2_P.isfinite()
    n_P, groups, rewards = count_P[known_P], int(known_P.sum()), count_P[known_P].sum()
    if groups == 0:
        return mean_P
    mu = (n_P * mean_P[known_P]).sum() / rewards
    if groups == 1 or rewards == groups:  # nothing tells noise from difference
        return mean_P.where(count_P > 0, mu)
    s2 = m2_P[known_P].sum() / (rewards - groups)
    between = (n_P * (mean_P[known_P] - mu).square()).sum()
    t2 = ((between - (groups - 1) * s2) / (rewards - n_P.square().sum() / rewards)).clamp(min=0)
    if t2 + s2 == 0:
        return mean_P.where(count_P > 0, mu)
    shrink_P = t2 / (t2 + s2 / count_P.clamp(min=1))
    return (mu + shrink_P * (mean_P - mu)).where(count_P > 0, mu)
