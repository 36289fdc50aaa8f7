"""Log-probabilities of responses under the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from choosy.data.pool import Pool
from choosy.parallel.ranks import shard
from choosy.rounds.context import Round
from choosy.types import Candidates


def score_reference(at: Round, candidates: Sequence[Candidates]) -> list[Candidates]:
    """Return the candidates with reference log-probs; those that have them are returned unchanged."""
    new = [i for i, c in enumerate(candidates) if any(math.isnan(r.logp_ref) for r in c.responses)]
    with at.phases("score", total=len(new), unit="prompts") as tick:
        scored = at.policy.score_reference([candidates[i] for i in new], tick)
    result = list(candidates)
    for i, c in zip(new, scored, strict=True):
        result[i] = c
    return result


def rescore_pool(at: Round) -> Pool:
    """Return the pool with log-probs of a reference that has changed."""
    rows = list(range(len(at.pool)))
    mine = shard(rows, at.ranks)
    with at.phases("score", total=len(mine), unit="prompts") as tick:
        new = dict(
            at.ranks.gather(list(zip(mine, at.policy.score_reference(at.pool.candidates(mine), tick), strict=True)))
        )
    return at.pool.with_rows([new[i] for i in rows])
