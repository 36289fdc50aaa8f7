"""Edits of a round's rejected responses towards the chosen ones, which the edits replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from choosy.models.tokens import Tokens
from choosy.rounds.context import Labels, Round
from choosy.types import Candidates, Pair, Response


def edit_pairs(at: Round, labeled: Sequence[Candidates], labels: Labels) -> list[Candidates]:
    """Replace the chosen response of each pair of this round by an edit of its rejected one (BMC, arXiv 2408.07471).

    The edit takes the place of the chosen response among those of its prompt, with its reward. A pair without a usable
    edit stays as it is.

    Args:
        at: The context of the round.
        labeled: All ranks' candidates.
        labels: Where edits are bought; nothing is replaced where it has no editor.
    """
    edited = list(labeled)
    if labels.editor is None:
        return edited
    new = [(n, pair) for n, c in enumerate(labeled) for pair in c.pairs if pair.round == at.number]
    asked = [(c.prompt, c.responses[pair.chosen], c.responses[pair.rejected]) for n, pair in new for c in [labeled[n]]]
    with at.phases("label"):
        texts = at.ranks.on_rank_zero(lambda: labels.edits(asked))
    changed = 0
    for (n, pair), text in zip(new, texts, strict=True):
        if (c := with_edit(edited[n], pair, text, at.policy.tokens)) is not None:
            edited[n] = c
            changed += 1
    if changed < len(new) and at.ranks.rank == 0:
        at.phases.say(f"{len(new) - changed} of {len(new)} pairs have no usable edit and stay as they are.")
    return edited


def with_edit(c: Candidates, pair: Pair, text: str | None, tokens: Tokens) -> Candidates | None:
    """The candidates with an edit in the place of a pair's chosen response; None where the edit cannot be used.

    There may be none, it may be the rejected response unchanged, or be too long for the policy.
    """
    if text is None or text == c.responses[pair.rejected].text:
        return None
    ids = tokens.encode_response(text, c.prompt)
    if tokens.window is not None and len(c.prompt_ids) + len(ids) > tokens.window:
        return None
    old = c.responses[pair.chosen]
    edit = Response(text, ids, reward=old.reward, gold=old.gold)
    return replace(c, responses=tuple(edit if n == pair.chosen else r for n, r in enumerate(c.responses)))
