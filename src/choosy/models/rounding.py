"""Log-ratios of the policy to its reference in fp32, with the rounding error of those in bf16."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import torch

from choosy.methods.selection import certainty
from choosy.models.policy import Policy
from choosy.parallel.ranks import Ranks
from choosy.parallel.sharding import is_sharded
from choosy.terminal import logger
from choosy.types import Candidates

log = logger(__name__)

TYPED = "callbacks.certainty.rescore=auto"
Rescore = Literal["never", "auto", "fp32"]
Ratios = list[list[float]]  # log pi - log ref of each response of each candidate, in nats


def log_ratios(
    policy: Policy, candidates: Sequence[Candidates], ranks: Ranks, *, rescore: Rescore, stale: bool = False
) -> Ratios:
    """Return log pi - log ref of each response; every rank must call this.

    Args:
        candidates: This rank's, with log-probs under the reference.
        stale: Whether they were sampled from earlier weights, so that their log-probs are not the policy's.
        rescore: When the log-probs are computed again in fp32 instead of those that sampling gave: `auto` = where the
            gaps of a prompt's responses are smaller than the rounding error of the policy's precision. `never` warns
            of such gaps.
    """
    if rescore == "fp32":
        return log_ratios_in_fp32(policy, candidates)
    known = not stale and all(math.isfinite(r.logp) for c in candidates for r in c.responses)
    sampled = all(ranks.gather([known]))
    logps = [[r.logp for r in c.responses] for c in candidates] if sampled else policy.score(candidates)
    rounded = _ratios(logps, candidates)
    if policy.compute_dtype == torch.float32 or is_sharded(policy):
        return rounded
    gap, error = gaps_and_error(policy, candidates, rounded, ranks)
    if gap >= error:
        return rounded
    dtype = str(policy.compute_dtype).removeprefix("torch.")
    seen = f"Certainty's gaps (median {gap:.2g} nats) are below the rounding error of {dtype} ({error:.2g} nats)"
    if rescore == "auto":
        log.info("%s: they are computed again in fp32.", seen)
        return log_ratios_in_fp32(policy, candidates)
    log.warning("%s: the choice of pairs is nearly random. Type %s to compute such gaps again in fp32.", seen, TYPED)
    return rounded


def log_ratios_in_fp32(policy: Policy, candidates: Sequence[Candidates]) -> Ratios:
    """Compute log pi - log ref of each response in fp32, in two passes; on a CPU one takes twice as long as in bf16."""
    with policy.in_fp32():
        return _ratios(policy.score(candidates), policy.score_reference(candidates))


def _ratios(logps: Ratios, candidates: Sequence[Candidates]) -> Ratios:
    return [
        [a - r.logp_ref for a, r in zip(of, c.responses, strict=True)] for of, c in zip(logps, candidates, strict=True)
    ]


def gaps_and_error(
    policy: Policy, candidates: Sequence[Candidates], rounded: Ratios, ranks: Ranks, *, probed: int = 4
) -> tuple[float, float]:
    """Median gap of all ranks' candidates, and the standard deviation of a gap's rounding error, in nats.

    The error is that of two responses, which are independent; it is measured on a few of the candidates, whose
    log-ratios are computed in fp32. Every rank must call this, with all weights.
    """
    chosen = set(sorted(ranks.gather([c.prompt.id for c in candidates]))[:probed])
    mine = [n for n, c in enumerate(candidates) if c.prompt.id in chosen]
    exact = log_ratios_in_fp32(policy, [candidates[n] for n in mine])
    errors = ranks.gather(
        [a - b for n, of in zip(mine, exact, strict=True) for a, b in zip(rounded[n], of, strict=True)]
    )
    gaps = ranks.gather([gap for of in rounded for gap in certainty(of)])
    error = (2 * statistics.pvariance(errors)) ** 0.5 if errors else 0.0
    return statistics.median(gaps) if gaps else 0.0, error
