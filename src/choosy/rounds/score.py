"""Log-probabilities of responses under the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import tee

import pyarrow as pa

from choosy.data.pool import Pool, with_responses
from choosy.data.shared_pool import PIECE, mapped
from choosy.labeling.statistics import agreement
from choosy.methods.loss_inputs import form_of
from choosy.parallel.neighbours import share_of
from choosy.rounds.context import PairSelector, Round
from choosy.types import Candidates, Response

Positions = Sequence[int]  # of some responses in `Candidates.responses`


def scores_first(at: Round, selector: PairSelector | None) -> bool:
    """Whether all responses are scored before labels are bought, and not only what is then trained on.

    So it is where a selector or the loss reads the log-probs of all, and where nothing is chosen: labels of all
    responses are then bought, and a labeler on another machine answers during the scoring.
    """
    if selector is not None and selector.needs_reference:
        return True
    return "reference" in at.loss.needs and (selector is None or "own" in at.loss.needs)


def score_reference(at: Round, candidates: Sequence[Candidates]) -> list[Candidates]:
    """Return this rank's candidates with the reference log-probs of all responses; known ones are kept."""
    # the policy's samples beside given responses are scored as if they were candidates of their own
    every = [*candidates, *(replace(c, responses=c.own) for c in candidates)]
    scored = _scored(at, every, [_lacking(at, c, range(len(c.responses))) for c in every])
    given, own = scored[: len(candidates)], scored[len(candidates) :]
    return [replace(c, own=beside.responses) for c, beside in zip(given, own, strict=True)]


def score_trained(at: Round, mine: Sequence[Candidates]) -> list[Candidates]:
    """Return this rank's candidates with the reference log-probs of the responses that are trained on.

    Every rank must call this.
    """
    if "reference" in at.loss.needs:
        lacking = [_lacking(at, c, trained(at, c)) for c in mine]
        if any(at.ranks.gather([any(lacking)])):
            return _scored(at, mine, lacking)
    return list(mine)


def count_agreement(at: Round, mine: Sequence[Candidates]) -> None:
    """Count how often the verdicts of this round agree with the policy; the counts of all ranks are added up."""
    at.counts.update(sum((agreement(c, round=at.number) for c in mine), Counter[str]()))


def rescore_pool(at: Round) -> Pool:
    """Return the pool with log-probs of a reference that has changed; every rank must call this.

    Each rank scores its part of the rows, some at a time, and writes them to its file of the pool.
    """
    rows = range(len(at.pool))[share_of(len(at.pool), at.ranks.rank, at.ranks.size)]
    pieces = [Pool(at.pool.table[start : min(start + PIECE, rows.stop)]) for start in rows[::PIECE]]

    def forgotten(c: Candidates) -> Candidates:
        return replace(c, responses=tuple(replace(r, logp_ref=math.nan, token_logps_ref=()) for r in c.responses))

    def asked(piece: Pool) -> tuple[list[Candidates], list[Positions]]:
        some = [forgotten(c) for c in piece.candidates()]
        return some, [trained(at, c) for c in some]

    def rescored() -> Iterator[pa.Table]:
        every, again = tee(map(asked, pieces))
        total = sum(piece.labeled().true_count for piece in pieces)
        with at.phases("score", total=total, unit="prompts") as tick:
            parts = (_of(*one) for one in again)
            found = at.policy.reference_scores(parts, tick, tokens="tokens" in at.loss.needs)
            for piece, one, scored in zip(pieces, every, found, strict=True):  # strict: of no pieces, too, it is asked
                logps = [[(r.logp_ref, r.token_logps_ref) for r in c.responses] for c in _with(*one, scored)]
                yield piece.with_reference(logps).table

    return mapped(rescored(), at.folder, at.ranks, at.pool.round)


def trained(at: Round, c: Candidates) -> Positions:
    """The responses that the loss reads: all of a labeled list, those of the pairs, or a lone one."""
    if (form_of(at.loss.needs) == "list" and c.pairs) or (len(c.responses) == 1 and c.labeled):
        return range(len(c.responses))
    return sorted({n for pair in c.pairs for n in (pair.chosen, pair.rejected)})


def _lacking(at: Round, c: Candidates, positions: Positions) -> Positions:
    """Those of some responses whose log-probs are not known."""

    def lacks(r: Response) -> bool:
        return math.isnan(r.logp_ref) or ("tokens" in at.loss.needs and len(r.token_logps_ref) < r.length)

    return [n for n in positions if lacks(c.responses[n])]


def _scored(at: Round, candidates: Sequence[Candidates], lacking: Sequence[Positions]) -> list[Candidates]:
    """The candidates with the log-probs of those responses that lack them; every rank must call this."""
    asked = _of(candidates, lacking)
    with at.phases("score", total=len(asked), unit="prompts") as tick:
        found = at.policy.score_reference(asked, tick, tokens="tokens" in at.loss.needs)
    return _with(candidates, lacking, found)


def _of(candidates: Sequence[Candidates], wanted: Sequence[Positions]) -> list[Candidates]:
    """The candidates with the wanted responses alone; those of which none is wanted are left out."""
    chosen = ((c, [c.responses[n] for n in positions]) for c, positions in zip(candidates, wanted, strict=True))
    return [replace(c, responses=tuple(responses)) for c, responses in chosen if responses]


def _with(
    candidates: Sequence[Candidates], wanted: Sequence[Positions], found: Sequence[Candidates]
) -> list[Candidates]:
    """The candidates with what was found for the wanted responses in their places."""
    left = iter(found)
    return [
        with_responses(c, dict(zip(positions, next(left).responses, strict=True))) if positions else c
        for c, positions in zip(candidates, wanted, strict=True)
    ]
