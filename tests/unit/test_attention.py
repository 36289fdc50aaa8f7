"""Attention over a tree equals masked attention over the whole row, in values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from choosy.models.fast import tree_attention as attention
from choosy.models.fast.tree_attention import A_BUNDLE, Block, Segment, Tree, blocks, bundles, grouped_attention
from choosy.models.rows import Group, share_prompt

GROUPS = [Group([*range(9), n], [[1] * (n + 2), [2], [3] * 5]) for n in range(3)]
ROWS = share_prompt(GROUPS, one_row=True)
(SEGMENTS,) = ROWS.segments


def draw(heads: int, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, ROWS.ids_BL.shape[1], 8, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("width", [8, 6])  # of values
@pytest.mark.parametrize("a_call", [0, 40, 1 << 20])  # from a bundle for each size to one for all
@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (3, 1)])
def test_a_tree_equals_a_mask(
    heads: int, key_heads: int, block: int, a_call: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "__defaults__", (block,))
    monkeypatch.setattr(attention, "A_CALL", a_call)
    query, key, value = draw(heads, seed=0), draw(key_heads, seed=1), draw(key_heads, seed=2)
    value = value[..., :width].detach().requires_grad_()
    tree, _ = grouped_attention(None, query, key, value, None, tree=Tree(SEGMENTS))
    mask, _ = grouped_attention(None, query, key, value, ROWS.mask_BLL[:, None])
    torch.testing.assert_close(tree, mask)
    factor = torch.linspace(-1, 1, tree.numel(), dtype=tree.dtype).view_as(tree)
    wanted = torch.autograd.grad((mask * factor).sum(), (query, key, value))
    # gradients of keys and values are summed in fp32
    found = torch.autograd.grad((tree * factor).sum(), (query, key, value))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near() -> None:
    query, key, value = (draw(4, seed=n, dtype=torch.bfloat16) for n in range(3))
    near, _ = grouped_attention(None, query, key, value, None, tree=Tree(SEGMENTS))
    exact, _ = grouped_attention(None, query.double(), key.double(), value.double(), None, tree=Tree(SEGMENTS))
    torch.testing.assert_close(near.double(), exact, rtol=0.05, atol=0.05)


def test_a_softmax_that_waits_for_the_backward_gives_the_gradients_of_one_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    shares = attention._shares
    monkeypatch.setattr(attention, "_shares", lambda *given: made.append(1) or shares(*given))

    def gradients(kept: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(attention, "KEPT", kept)
        query, key, value = draw(4, seed=0), draw(2, seed=1), draw(2, seed=2)
        made.clear()
        tree, _ = grouped_attention(None, query, key, value, None, tree=Tree(SEGMENTS))
        return torch.autograd.grad(tree.sum(), (query, key, value))

    again, twice = gradients(0), len(made)
    waiting, once = gradients(1000), len(made)
    assert all(map(torch.equal, again, waiting))
    assert twice == 2 * once


def test_blocks_cover_every_token_once_and_show_each_its_own_past() -> None:
    seen = torch.zeros_like(ROWS.mask_BLL[0])
    for start, end, spans in blocks(SEGMENTS, 2):
        keys = list(itertools.chain.from_iterable(range(*span) for span in spans))
        assert keys[-(end - start) :] == list(range(start, end))
        for query in range(start, end):
            seen[query, [key for key in keys if key <= query]] = True
    assert torch.equal(seen, ROWS.mask_BLL[0])


def test_bundles_hold_every_block_once() -> None:
    plan = list(blocks(SEGMENTS, 4))
    assert sorted(block for bundle in bundles(plan) for block in bundle) == sorted(plan)
    assert len(list(bundles(plan))) == 1, "blocks this small are cheaper together"


def test_a_bundle_stays_small_however_many_blocks_there_are() -> None:
    plan = [Block(at, at + 256, ((at, at + 256),)) for at in range(0, 256 * 64, 256)]
    assert [len(bundle) for bundle in bundles(plan)] == [A_BUNDLE // 256**2] * 8
    (vast,) = bundles([Block(0, 256, ((0, 2**20),))])
    assert len(vast) == 1, "a block is not cut for it"


def test_a_lone_segment_is_causal_attention() -> None:
    query, key, value = (draw(2, seed=n) for n in range(3))
    tree, _ = grouped_attention(None, query, key, value, None, tree=Tree([Segment(0, query.shape[2], -1)]))
    book = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(tree, book.transpose(1, 2))


def test_what_a_tree_cannot_do_is_said() -> None:
    query = draw(2, seed=0)
    with pytest.raises(ValueError, match=r"supports no attention sinks; choose model\.compute\.attention=eager"):
        grouped_attention(None, query, query, query, None, s_aux=torch.zeros(2))
    with pytest.raises(ValueError, match="caps no scores in a shared prompt"):
        grouped_attention(None, query, query, query, None, softcap=50.0, tree=Tree(SEGMENTS))
