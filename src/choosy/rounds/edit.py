"""Edits of a round's rejected responses towards the chosen ones, which the edits replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.protocols import ResponsePair
from choosy.models.tokens import Tokens
from choosy.rounds.context import Labels, PairTexts, Round, pair_texts
from choosy.types import Candidates, Pair, Response


def edit_pairs(at: Round, mine: Sequence[Candidates], labels: Labels) -> list[Candidates]:
    """Replace the chosen response of each pair of this round by an edit of its rejected one (BMC, arXiv 2408.07471).

    The edit takes the place of the chosen response among those of its prompt, with its reward. A pair without a usable
    edit stays as it is.

    Args:
        at: The context of the round.
        mine: This rank's candidates.
        labels: Where edits are bought, on rank 0; nothing is replaced where it has no editor.
    """
    edited = list(mine)
    if labels.editor is None:
        return edited
    new = [(n, pair) for n, c in enumerate(mine) for pair in c.pairs if pair.round == at.number]
    every = at.ranks.collect([asked_about(mine[n], pair) for n, pair in new])

    def buy() -> dict[PairTexts, str | None]:
        asked = sorted(every, key=lambda one: one[0].id)
        return dict(zip(map(named, asked), labels.edits(asked), strict=True))

    with at.phases("label"):
        texts = at.ranks.on_rank_zero(buy)
    changed = 0
    for n, pair in new:
        text = texts[pair_texts(mine[n], pair)]
        if (c := with_edit(edited[n], pair, text, at.policy.tokens)) is not None:
            edited[n] = c
            changed += 1
    unchanged = sum(at.ranks.gather([len(new) - changed]))
    if unchanged and at.ranks.rank == 0:
        at.phases.say(f"{unchanged} of {len(every)} pairs have no usable edit and stay as they are.")
    return edited


def asked_about(c: Candidates, pair: Pair) -> ResponsePair:
    """The prompt with the chosen and the rejected response."""
    return c.prompt, c.responses[pair.chosen], c.responses[pair.rejected]


def named(asked: ResponsePair) -> PairTexts:
    """What names a pair (see `pair_texts`)."""
    prompt, chosen, rejected = asked
    return prompt.id, chosen.text, rejected.text


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


def refuse_several(responses: int, editor: LabelBuyer | None) -> None:
    """Refuse an editor where several pairs of a prompt may be labeled, of so many responses."""
    if editor is not None and responses > 2:
        raise ValueError(
            f"{editor.labeler.name} edits one pair of a prompt, and {responses} responses to each may make several; "
            "type pairing=best_worst, per_prompt=1 of the selector, or ~editor instead of what is typed for the editor."
        )
