"""Log-probabilities of responses under the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from choosy.data.pool import Pool
from choosy.parallel.ranks import shard
from choosy.rounds.context import Round
from choosy.types import Candidates, Response


def score_reference(at: Round, candidates: Sequence[Candidates]) -> list[Candidates]:
    """Return the candidates with the reference log-probs that the round needs; known ones are not computed again."""
    if not at.scores_reference:
        return list(candidates)
    tokens = "tokens" in at.loss.needs

    def lacks(r: Response) -> bool:
        return math.isnan(r.logp_ref) or (tokens and len(r.token_logps_ref) < r.length)

    # the policy's samples beside given responses are scored as if they were candidates of their own
    every = [*candidates, *(replace(c, responses=c.own) for c in candidates)]
    new = [i for i, c in enumerate(every) if any(map(lacks, c.responses))]
    with at.phases("score", total=len(new), unit="prompts") as tick:
        scored = at.policy.score_reference([every[i] for i in new], tick, tokens=tokens)
    for i, c in zip(new, scored, strict=True):
        every[i] = c
    given, own = every[: len(candidates)], every[len(candidates) :]
    return [replace(c, own=beside.responses) for c, beside in zip(given, own, strict=True)]


def rescore_pool(at: Round) -> Pool:
    """Return the pool with log-probs of a reference that has changed."""
    rows = list(range(len(at.pool)))
    mine = shard(rows, at.ranks)
    with at.phases("score", total=len(mine), unit="prompts") as tick:
        tokens = "tokens" in at.loss.needs
        scored = at.policy.score_reference(at.pool.candidates(mine), tick, tokens=tokens)
        new = dict(at.ranks.gather(list(zip(mine, scored, strict=True))))
    return at.pool.with_rows([new[i] for i in rows])
