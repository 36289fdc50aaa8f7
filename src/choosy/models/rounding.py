"""Log-ratios of policy and reference in fp32, and the rounding error of those in bf16."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Literal

import torch

from choosy.models.policy import Policy
from choosy.parallel.ranks import Ranks
from choosy.parallel.sharding import is_sharded
from choosy.types import Candidates

log = logging.getLogger(__name__)

Rescore = Literal["never", "auto", "fp32"]
Ratios = list[list[float]]  # log pi - log ref of each response of each candidate, in nats


def log_ratios(policy: Policy, candidates: Sequence[Candidates], ranks: Ranks, *, rescore: Rescore) -> Ratios:
    """Return log pi - log ref of each response; every rank must call this.

    Args:
        policy: The policy.
        candidates: This rank's, with log-probs under the reference.
        ranks: All processes.
        rescore: When the log-probs are computed again in fp32 instead of those that sampling gave.
    """
    if rescore == "fp32":
        return log_ratios_in_fp32(policy, candidates)
    known = all(math.isfinite(r.logp) for c in candidates for r in c.responses)
    sampled = all(ranks.gather([known]))
    logps = [[r.logp for r in c.responses] for c in candidates] if sampled else policy.score(candidates)
    refs = [[r.logp_ref for r in c.responses] for c in candidates]
    ratios = [[a - b for a, b in zip(*both, strict=True)] for both in zip(logps, refs, strict=True)]
    return beyond_rounding(policy, candidates, ratios, ranks, correct=rescore == "auto")


def log_ratios_in_fp32(policy: Policy, candidates: Sequence[Candidates]) -> Ratios:
    """Compute log pi - log ref of each response in fp32, in two passes; on a CPU one takes twice as long as in bf16."""
    with policy.in_fp32():
        logps = policy.score(candidates)
        refs = [[r.logp_ref for r in c.responses] for c in policy.score_reference(candidates)]
    return [[a - b for a, b in zip(*both, strict=True)] for both in zip(logps, refs, strict=True)]


def gaps(ratios: Ratios) -> list[float]:
    """|difference| of the log-ratios of each two responses of a prompt, in nats.

    Example:
        >>> gaps([[1.0, 3.0, 0.0], [2.0]])
        [2.0, 1.0, 3.0]
    """
    return [abs(a - b) for of in ratios for n, a in enumerate(of) for b in of[n + 1 :]]


def rounding_error(rounded: Ratios, exact: Ratios) -> float:
    """Standard deviation of the error of a gap, in nats: that of two responses' errors, which are independent.

    Example:
        >>> round(rounding_error([[1.0, 3.5]], [[1.5, 3.0]]), 6)
        0.707107
    """
    errors = [a - b for both in zip(rounded, exact, strict=True) for a, b in zip(*both, strict=True)]
    return float((2 * statistics.pvariance(errors)) ** 0.5) if errors else 0.0


def gaps_and_error(
    policy: Policy, candidates: Sequence[Candidates], rounded: Ratios, ranks: Ranks, *, probed: int = 4
) -> tuple[float, float]:
    """Median gap of all ranks' candidates, and the rounding error of a gap, measured on a few of them.

    Args:
        policy: With all its weights on each rank.
        candidates: This rank's.
        rounded: Their log-ratios.
        ranks: Every one of them must call this.
        probed: Number of candidates that are computed in fp32.
    """
    chosen = set(sorted(ranks.gather([c.prompt.id for c in candidates]))[:probed])
    mine = [n for n, c in enumerate(candidates) if c.prompt.id in chosen]
    exact = log_ratios_in_fp32(policy, [candidates[n] for n in mine])
    pairs = ranks.gather(list(zip((rounded[n] for n in mine), exact, strict=True)))
    everyones = ranks.gather(gaps(rounded))
    error = rounding_error([a for a, _ in pairs], [b for _, b in pairs])
    return statistics.median(everyones) if everyones else 0.0, error


def beyond_rounding(
    policy: Policy, candidates: Sequence[Candidates], rounded: Ratios, ranks: Ranks, *, correct: bool
) -> Ratios:
    """Return log-ratios whose gaps are compared with the rounding error of the policy's precision first.

    Args:
        policy: That the log-ratios are of.
        candidates: This rank's.
        rounded: Their log-ratios; returned where gaps are larger than the error, and where there is no way to know.
        ranks: Every one of them must call this.
        correct: Whether smaller gaps are computed again in fp32; else there is a warning.
    """
    if policy.compute_dtype == torch.float32 or is_sharded(policy):
        return rounded
    gap, error = gaps_and_error(policy, candidates, rounded, ranks)
    if gap >= error:
        return rounded
    dtype = str(policy.compute_dtype).removeprefix("torch.")
    seen = f"Certainty's gaps (median {gap:.2g} nats) are below the rounding error of {dtype} ({error:.2g} nats)"
    if correct:
        log.info("%s: they are computed again in fp32.", seen)
        return log_ratios_in_fp32(policy, candidates)
    log.warning("%s: pairs are nearly drawn by lot. rescore=auto computes such gaps again in fp32.", seen)
    return rounded
