"""Says which prompts a run evaluates on where none are typed."""

from __future__ import annotations

from collections.abc import Sequence

from choosy.data.sources import PACKAGED, Source
from choosy.types import Prompt, seed_of

AUTO = "auto"
MOST = 64  # as many as the packaged ones
SHARE = 10  # one of so many prompts is held out


def heldout_source(train: Source, heldout: Source | None) -> Source | None:
    """Return the source of held-out prompts; None where there is none, or where they are a part of `train`.

    Example:
        >>> heldout_source("choosy:prompts/train.jsonl", "auto"), heldout_source("mine.jsonl", "auto")
        ('choosy:prompts/heldout.jsonl', None)
    """
    if heldout != AUTO:
        return heldout
    return f"{PACKAGED}heldout.jsonl" if train == f"{PACKAGED}train.jsonl" else None


def question(prompt: Prompt) -> str:
    """What a prompt asks, which several rows of the data may have in common."""
    return (prompt.plain or prompt).text


def held_out(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """Return the prompts to evaluate on: a tenth, at most `limit` or 64 of them, in any run the same.

    Of rows that ask the same (see `question`) one is returned, and counted.

    Example:
        >>> prompts = [Prompt(str(n), f"{n}?") for n in range(30)]
        >>> len(held_out(prompts, None)), len(held_out(prompts, 2)), len(held_out(prompts[:9], None))
        (3, 2, 0)
        >>> held_out(prompts, None) == held_out(prompts[::-1], None)
        True
        >>> [p.text for p in held_out([Prompt(str(n), f"{n % 10}?") for n in range(30)], None)]
        ['8?']
    """
    drawn: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda p: seed_of("held out", p.id)):
        drawn.setdefault(question(prompt), prompt)
    count = min(len(drawn) // SHARE, MOST if limit is None else limit)
    return list(drawn.values())[:count]
