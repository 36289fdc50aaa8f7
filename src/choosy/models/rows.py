"""Rows of token ids: prompts laid out once with all their responses, for one forward pass.

The prompt is computed once for all its responses: it is followed by response 1 ... response N, positions restart
after the prompt, and attention hides the siblings. Where the attention takes a tree of segments (`grouped` on a CPU,
FlexAttention), all groups of a pass lie in one row without padding, behind what all their prompts begin with, such
as a system prompt; else each group has a row of its own.

Axes: B rows, L tokens of a row, T predicted tokens, S segments of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from choosy.models.fast.tree_attention import Segment

Ids = Sequence[int]


class Group(NamedTuple):
    """The token ids of one prompt and of its responses, each ending as the policy ended it.

    A response of several turns has a mask, which is true where the assistant speaks; without one it says all.

    Example:
        >>> Group([5], [[6, 7, 8], [9]], [(True, False, True)]).places
        [[0, 2], [0]]
    """

    prompt_ids: Ids
    response_ids: Sequence[Ids]
    masks: Sequence[Sequence[bool]] = ()

    @property
    def responses(self) -> list[tuple[Ids, Sequence[bool]]]:
        """The token ids of each response with its mask, which is empty where the assistant says all."""
        return list(zip_longest(self.response_ids, self.masks, fillvalue=()))

    @property
    def places(self) -> list[list[int]]:
        """Of each response the positions of the tokens that the assistant says, whose log-probs are computed."""
        return [[at for at in range(len(ids)) if not mask or mask[at]] for ids, mask in self.responses]

    @property
    def longest(self) -> int:
        """Length of the prompt with its longest response."""
        return len(self.prompt_ids) + max(map(len, self.response_ids), default=0)

    @property
    def tokens(self) -> int:
        """Length of the group when the prompt is shared."""
        return len(self.prompt_ids) + sum(max(len(ids) - 1, 0) for ids in self.response_ids)


@dataclass(frozen=True)
class Rows:
    """Groups laid out for one forward pass, and where each response token is predicted."""

    ids_BL: Tensor
    position_BL: Tensor
    segments: tuple[tuple[Segment, ...], ...]  # of each row
    row_T: Tensor
    column_T: Tensor
    target_T: Tensor

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        names = ("ids_BL", "position_BL", "row_T", "column_T", "target_T")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def segment_BL(self) -> Tensor:
        """The segment of each token, -1 where a row is padded."""
        segment_BL = torch.full(self.ids_BL.shape, -1)
        for b, row in enumerate(self.segments):
            for n, (start, end, _) in enumerate(row):
                segment_BL[b, start:end] = n
        return segment_BL.to(self.ids_BL.device)

    @property
    def above_BSS(self) -> Tensor:
        """Whether a token of one segment (second axis) attends to an earlier one of another (third).

        The last segment stands for padding (-1), which attends to itself, so that no row of the softmax is empty.
        """
        most = max(map(len, self.segments))
        above_BSS = torch.zeros(len(self.segments), most + 1, most + 1, dtype=torch.bool)
        above_BSS[:, most, most] = True
        for b, row in enumerate(self.segments):
            for n in range(len(row)):
                ancestor = n
                while ancestor >= 0:
                    above_BSS[b, n, ancestor] = True
                    ancestor = row[ancestor].parent
        return above_BSS.to(self.ids_BL.device)

    @property
    def mask_BLL(self) -> Tensor:
        """True where the query (second axis) attends to the key (third): itself, its own past and its ancestors."""
        rows_B11 = torch.arange(len(self.ids_BL), device=self.ids_BL.device)[:, None, None]
        segment_BL = self.segment_BL
        return self.above_BSS[rows_B11, segment_BL[:, :, None], segment_BL[:, None, :]].tril()

    @property
    def block_mask(self) -> BlockMask:
        """The mask as FlexAttention takes it: blocks without attention are not computed."""
        segment_BL, above_BSS = self.segment_BL, self.above_BSS

        def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & above_BSS[b, segment_BL[b, query], segment_BL[b, key]]

        B, L = self.ids_BL.shape
        return create_block_mask(sees, B, None, L, L, device=self.ids_BL.device)


SHORTEST_PREFIX = 8  # to gather the keys of fewer tokens for every prompt costs more than it saves


def common_prefix(prompts: Sequence[Ids]) -> Ids:
    """What all prompts begin with, so that each keeps at least one token of its own; nothing for a single prompt.

    Example:
        >>> common_prefix([[5, 6, 7], [5, 6], [5, 6, 8]])
        [5]
    """
    if len(prompts) < 2:
        return []
    shortest = min(prompts, key=len)
    length = 0
    while length < len(shortest) - 1 and all(ids[length] == shortest[length] for ids in prompts):
        length += 1
    return list(shortest[:length])


def refuse_no_prompt(groups: Sequence[Group]) -> None:
    """Refuse a prompt without tokens, of which none predicts the response's first."""
    if not all(group.prompt_ids for group in groups):
        raise ValueError("A prompt has no tokens; give it text, or a tokenizer with a beginning-of-sequence token.")


def share_prompt(groups: Sequence[Group], *, one_row: bool = False) -> Rows:
    """The prompt of each group once, then its responses; a response's last token is only ever a target.

    Args:
        groups: What the rows hold; a prompt without tokens raises a ValueError.
        one_row: All groups one behind the other, after what all their prompts begin with; else a row each.
    """
    refuse_no_prompt(groups)
    prefix = common_prefix([group.prompt_ids for group in groups]) if one_row else []
    if len(prefix) < SHORTEST_PREFIX:
        prefix = []
    laid = [_Row()] if one_row else []
    if prefix:
        laid[0].append(prefix, 0, -1)
    rows, columns, targets = [], [], []
    for group in groups:
        if not one_row:
            laid.append(_Row())
        row = laid[-1]
        prompt = row.append(group.prompt_ids[len(prefix) :], len(prefix), 0 if prefix else -1)
        last = len(row.ids) - 1
        for ids, places in zip(group.response_ids, group.places, strict=True):
            # the prompt's last token predicts the response's first, each later token its successor
            at = len(row.ids)
            columns += [at + place - 1 if place else last for place in places]
            rows += [len(laid) - 1] * len(places)
            targets += [ids[place] for place in places]
            if len(ids) > 1:
                row.append(ids[:-1], len(group.prompt_ids), prompt)
    width = max(len(row.ids) for row in laid)
    return Rows(
        ids_BL=torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in laid]),
        position_BL=torch.tensor([row.positions + [0] * (width - len(row.ids)) for row in laid]),
        segments=tuple(tuple(row.segments) for row in laid),
        row_T=torch.tensor(rows, dtype=torch.long),
        column_T=torch.tensor(columns, dtype=torch.long),
        target_T=torch.tensor(targets, dtype=torch.long),
    )


@dataclass
class _Row:
    """A row in the making."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def append(self, ids: Ids, position: int, parent: int) -> int:
        """Add a segment whose first token has this position; its number."""
        self.segments.append(Segment(len(self.ids), len(self.ids) + len(ids), parent))
        self.ids += ids
        self.positions += range(position, position + len(ids))
        return len(self.segments) - 1


def deduplicated(groups: Sequence[Group]) -> tuple[list[Group], Tensor]:
    """The groups with each prompt once and each of its responses once, and where the tokens of the given ones are.

    Pairs of one prompt often have a response in common, such as the best one; it is computed once for all of them.

    Returns:
        The merged groups, and of each token that the assistant says in the given groups (T,) its place among the
        tokens of the merged ones.

    Example:
        >>> deduplicated([Group([5], [[6, 7], [8]]), Group([5], [[8], [9]])])
        ([Group(prompt_ids=(5,), response_ids=[(6, 7), (8,), (9,)], masks=[(), (), ()])], tensor([0, 1, 2, 2, 3]))
    """
    place_of: dict[Ids, dict[tuple[Ids, Sequence[bool]], int]] = {}
    for group in groups:
        responses = place_of.setdefault(tuple(group.prompt_ids), {})
        for ids, mask in group.responses:
            responses.setdefault((tuple(ids), tuple(mask)), 0)
    distinct = [Group(prompt, [ids for ids, _ in own], [mask for _, mask in own]) for prompt, own in place_of.items()]
    start = 0
    for group, own in zip(distinct, place_of.values(), strict=True):
        for response, places in zip(own, group.places, strict=True):
            own[response] = start
            start += len(places)
    tokens: list[int] = []
    for group in groups:
        own = place_of[tuple(group.prompt_ids)]
        for (ids, mask), places in zip(group.responses, group.places, strict=True):
            first = own[tuple(ids), tuple(mask)]
            tokens += range(first, first + len(places))
    return distinct, torch.tensor(tokens, dtype=torch.long)


def together(groups: Sequence[Group], tokens_per_step: int) -> list[list[int]]:
    """Positions of the groups of each prompt, in lists of at most so many tokens when each response is computed once.

    Example:
        >>> pairs = [Group([5], [[6, 7], [8, 9]]), Group([4], [[1, 2], [3, 4]]), Group([5], [[8, 9], [7, 7]])]
        >>> together(pairs, 100), together(pairs, 3)
        ([[0, 2], [1]], [[0], [1], [2]])
    """
    lists: list[list[int]] = []
    open_of: dict[Ids, list[int]] = {}  # the list that a prompt's next group may join
    for i, group in enumerate(groups):
        beside = open_of.get(key := tuple(group.prompt_ids), [])
        joined = deduplicated([groups[j] for j in (*beside, i)])[0][0] if beside else group
        if not beside or joined.tokens > tokens_per_step:
            lists.append(beside := [])
            open_of[key] = beside
        beside.append(i)
    return lists


def cut(group: Group, tokens_per_step: int) -> list[Group]:
    """The group in pieces of at most so many tokens, each with the prompt; a response that is longer is alone.

    Example:
        >>> [piece.response_ids for piece in cut(Group([5], [[6, 7, 8], [9, 4], [3, 2]]), 3)]
        [[[6, 7, 8]], [[9, 4], [3, 2]]]
    """
    pieces: list[Group] = []
    for ids, mask in group.responses:
        alone = Group(group.prompt_ids, [ids], [mask])
        if pieces:
            _, before, masks = pieces[-1]
            joined = Group(group.prompt_ids, [*before, ids], [*masks, mask])
            if joined.tokens <= tokens_per_step:
                pieces[-1] = joined
                continue
        pieces.append(alone)
    return pieces


def packed(groups: Sequence[Group], tokens_per_step: int, *, one_row: bool = False) -> Iterator[list[int]]:
    """Positions of groups in batches of at most about so many tokens, padding included, similar lengths together.

    A group longer than the budget is in a batch alone. With `one_row` there is no padding.

    Example:
        >>> groups = [Group([1] * n, []) for n in (2, 9, 3, 8)]
        >>> [sorted(b) for b in packed(groups, 18)], [sorted(b) for b in packed(groups, 20, one_row=True)]
        ([[1, 3], [0, 2]], [[1, 2, 3], [0]])
    """
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
    batch: list[int] = []
    for i in order:
        rows = groups[batch[0]].tokens * (len(batch) + 1) if batch else 0
        if batch and (sum(groups[j].tokens for j in (*batch, i)) if one_row else rows) > tokens_per_step:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
